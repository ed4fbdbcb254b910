"""Repairs files of Keras 3.2.1 whose two branches both use the encoder's first call."""

from __future__ import annotations

from typing import Any

from batchverify.errors import PreflightError
from batchverify.model.config_graph import iterate_references, name_of, reachable_layers

# Keras 3.2.1's broken shared encoders


def mend_shared_encoder(name: str, config: dict[str, Any], allowed: bool) -> list[str]:
    """Finds an input that the output does not depend on; rewires the comparison to the encoder's unused call."""
    ignored = _ignored_input(config)
    if ignored is None:
        return []
    fault = f"the score does not depend on the input '{ignored}': in the file, both branches use the other input's embedding"
    found = _unused_call(config, ignored)
    if found is None:
        raise PreflightError(
            f"--model {name}: {fault}; build the network anew from its code, load its weights and save it again."
        )
    encoder, call = found
    if not allowed:
        raise PreflightError(
            f"--model {name}: {fault}, while a second call of '{encoder}' is used by nothing (Keras 3.2.1 wrote such files); "
            "add --mend-shared-encoder to rewire the comparison to it."
        )
    for layer in config["config"]["layers"]:
        for node in layer.get("inbound_nodes") or []:
            uses = [reference for reference in iterate_references(node) if reference[0] == encoder]
            if len(uses) > 1:
                uses[1][1] = call
    if _ignored_input(config) is not None:
        raise PreflightError(f"--model {name}: {fault}; it cannot be mended, so save it again with a current Keras.")
    return [f"Mended: the comparison took one call of '{encoder}' twice and now takes both, as --mend-shared-encoder allows."]


def _ignored_input(config: dict[str, Any]) -> str | None:
    inner = config["config"]
    if not isinstance(inner, dict) or "input_layers" not in inner or "output_layers" not in inner:
        return None
    inputs = [reference[0] for reference in iterate_references([inner["input_layers"]])]
    outputs = list(iterate_references([inner["output_layers"]]))
    if len(inputs) != 2 or not outputs:
        return None
    reached = reachable_layers(config, outputs)
    return next((name for name in inputs if name not in reached), None)


def _unused_call(config: dict[str, Any], ignored: str) -> tuple[str, int] | None:
    """Returns the layer and the number of its call that depends on the ignored input and that nothing uses."""
    layers = config["config"]["layers"]
    used = {
        (reference[0], reference[1]) for reference in iterate_references([layer.get("inbound_nodes", []) for layer in layers])
    }
    for layer in layers:
        for number, node in enumerate(layer.get("inbound_nodes") or []):
            if (
                number
                and (name_of(layer), number) not in used
                and ignored in reachable_layers(config, list(iterate_references(node)))
            ):
                return name_of(layer), number
    return None
