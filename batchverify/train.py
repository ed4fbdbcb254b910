"""`python -m batchverify.train`: trains the network of the published case on class folders.

    python -m batchverify.train --images omniglot/ --output model.keras --hold-out Tagalog Early_Aramaic

The folders are `alphabet/character/*.png`. Alphabets named by `--hold-out` are never trained on; the figures
that are printed and written beside the model, in `MODEL.json`, are measured on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    from batchverify.training import data, evaluate, network, recipe

    plan = recipe.Recipe(
        head=options.head,
        steps=options.steps,
        seed=options.seed,
        learning_rate=options.learning_rate,
        frozen_statistics=options.start_from is not None,
    )
    alphabets = data.read_alphabets(options.images, plan.image_size)
    held_out = [alphabet for alphabet in alphabets if alphabet.name in options.hold_out]
    seen = [alphabet for alphabet in alphabets if alphabet.name not in options.hold_out]
    invented = data.draw_alphabets(options.invented, 24, 20, plan.image_size, plan.seed)

    trainer = recipe.Trainer(plan, encoder=_load_encoder(options.start_from))
    started = time.monotonic()
    for progress in trainer.train(data.with_quarter_turns(seen) * options.repeat + data.with_quarter_turns(invented)):
        print(
            f"step {progress.step:6d}  loss {progress.loss:.4f}  accuracy {progress.accuracy:.4f}"
            f"  {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if progress.step % 1000 == 0 and held_out:
            print("  ", evaluate.evaluate(trainer.encoder, trainer.head, held_out, plan.seed, 2000, 100), flush=True)

    network.assemble(trainer.encoder, trainer.head).save(options.output)
    figures = {"recipe": dataclasses.asdict(plan), "minutes": round((time.monotonic() - started) / 60, 1)}
    if held_out:
        measured = evaluate.evaluate(trainer.encoder, trainer.head, held_out, plan.seed)
        figures |= {"held_out": options.hold_out, **dataclasses.asdict(measured)}
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m batchverify.train", description="Train a Siamese network.")
    parser.add_argument("--images", type=Path, required=True, help="folder of alphabet/character/*.png")
    parser.add_argument("--output", type=Path, required=True, help="the .keras file to write")
    parser.add_argument("--head", choices=["repaired", "published"], default="repaired")
    parser.add_argument("--hold-out", nargs="*", default=[], help="alphabets to measure on and never train on")
    parser.add_argument("--invented", type=int, default=80, help="alphabets drawn by this package to add (default 80)")
    parser.add_argument("--repeat", type=int, default=10, help="weight of the folders' alphabets (default 10)")
    parser.add_argument("--start-from", type=Path, help="a .keras file whose encoder to start from")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _load_encoder(path: Path | None):
    import keras

    return keras.models.load_model(path).get_layer("encoder") if path else None


if __name__ == "__main__":
    main()
