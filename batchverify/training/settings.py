"""What to train on and where to write, apart from the recipe. Nothing here imports a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What to train on and where to write. It validates itself.

    Attributes:
        output: The `.keras` file to write; the other files get its name with other endings.
        images: The folder of class folders, or None.
        manifest: The manifest of labelled pairs and its columns, or None. One of `images` and `manifest` is given.
        hold_out: The names of the groups that are measured on and never trained on.
        validation: The share of each group's classes that the best model is chosen by.
        turned_classes: Whether a class that is turned or mirrored is another class.
        invented: The number of drawn alphabets to add.
        repeat: How many times each group counts against an invented one.
        encoder_weights: The file with weights of MobileNetV2 to start from, or None.
        start_from: The model whose encoder to start from, with its width and its dropout, or None.
        resume: Whether to go on with an interrupted training.
        overwrite: Whether to replace a model that exists.
    """

    output: Path
    images: str | None = None
    manifest: VerificationConfig | None = None
    hold_out: tuple[str, ...] = ()
    validation: float = 0.1
    turned_classes: bool = False
    invented: int = 0
    repeat: int = 1
    encoder_weights: str | None = None
    start_from: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise PreflightError(problems)

    def _problems(self) -> Iterator[str]:
        if self.output.suffix != ".keras":
            yield f"--output {self.output}: give a name that ends in .keras."
        if not 0 <= self.validation < 1:
            yield f"--validation is {self.validation}; give a share of the classes, from 0 to below 1."
        for name, least in (("invented", 0), ("repeat", 1)):
            if getattr(self, name) < least:
                yield f"--{name} is {getattr(self, name)}; give at least {least}."
        for option, path in (("--encoder-weights", self.encoder_weights), ("--start-from", self.start_from)):
            if path is not None and not Path(path).is_file():
                yield f"{option} {path}: there is no such file; check the path."
