"""Repairs files in which both branches use the encoder's first call, as Keras 3.2.1 wrote them."""

from __future__ import annotations

from typing import Any

from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError
from batchverify.model.config_graph import iterate_references, name_of, reachable_layers


def mend_shared_encoder(name: str, config: dict[str, Any], allowed: bool) -> list[str]:
    """Rewires the comparison in `config` to the encoder's unused call, if the output does not depend on one of the inputs.

    Args:
        name: The model's name, for messages.
        config: The model's config, which is changed in place.
        allowed: Whether the user allows it.

    Returns:
        A note on what was done; nothing if nothing was wrong.

    Raises:
        PreflightError: If it is not allowed, or does not help.
    """
    ignored = _ignored_input(config)
    if ignored is None:
        return []
    fault = f"the score does not depend on the input '{ignored}': in the file, both branches use the other input's embedding"
    unused = _unused_call(config, ignored)
    if unused is None:
        raise PreflightError(
            f"--model {name}: {fault}; build the network anew from its code, load its weights and save it again."
        )
    encoder, call = unused
    if not allowed:
        problem = (
            f"--model {name}: {fault}, while a second call of '{encoder}' is used by nothing (Keras 3.2.1 wrote such files); "
            "add --mend-shared-encoder to rewire the comparison to it."
        )
        raise OpenQuestionError(OpenQuestion(problem, ("--mend-shared-encoder",), {"mend_shared_encoder": True}))
    _rewire(config, encoder, call)
    if _ignored_input(config) is not None:
        raise PreflightError(f"--model {name}: {fault}; it cannot be mended, so save it again with a current Keras.")
    return [f"Mended: the comparison took one call of '{encoder}' twice and now takes both, as --mend-shared-encoder allows."]


def _rewire(config: dict[str, Any], encoder: str, call: int) -> None:
    for layer in config["config"]["layers"]:
        for node in layer.get("inbound_nodes") or []:
            uses = [reference for reference in iterate_references(node) if reference[0] == encoder]
            if len(uses) > 1:
                uses[1][1] = call


def _ignored_input(config: dict[str, Any]) -> str | None:
    """Returns the name of an input that the output does not depend on, or None."""
    settings = config["config"]
    if not isinstance(settings, dict) or "input_layers" not in settings or "output_layers" not in settings:
        return None
    inputs = [reference[0] for reference in iterate_references([settings["input_layers"]])]
    outputs = list(iterate_references([settings["output_layers"]]))
    if len(inputs) != 2 or not outputs:
        return None
    reached = reachable_layers(config, outputs)
    return next((name for name in inputs if name not in reached), None)


def _unused_call(config: dict[str, Any], ignored: str) -> tuple[str, int] | None:
    """Returns a layer and the number of a call of it that depends on the ignored input and that nothing uses, or None."""
    layers = config["config"]["layers"]
    references = iterate_references([layer.get("inbound_nodes", []) for layer in layers])
    used = {(reference[0], reference[1]) for reference in references}
    for layer in layers:
        for number, node in enumerate(layer.get("inbound_nodes") or []):
            is_unused = number > 0 and (name_of(layer), number) not in used
            if is_unused and ignored in reachable_layers(config, list(iterate_references(node))):
                return name_of(layer), number
    return None
