"""Who takes part: a name, what it is, the command that runs it, and where its answer lies."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("score", "identity_left", "identity_right")
OURS = "batchverify"
_VARIABLE = re.compile(r"[A-Z_]+=")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to score a manifest.

    Attributes:
        name: for the table and the command line.
        meaning: The same in words.
        script: module of `benchmarks.speed.scripts`; None for batchverify itself.
        needs: packages that must be installed.
        is_limit: Whether it is one of the scripts whose better one is the limit.
        options: more arguments of batchverify's.
        variables: variables of its environment, `NAME=VALUE` each.
    """

    name: str
    meaning: str
    script: str | None
    needs: tuple[str, ...] = ()
    is_limit: bool = False
    options: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Returns the packages that it needs and that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]

    def command(self, manifest: Path, model: Path, output: Path) -> list[str]:
        """Returns the command that scores `manifest` into `output`: a Parquet file, or batchverify's directory."""
        start = ["batchverify", "--overwrite"] if self.script is None else ["benchmarks.speed.scripts", self.script]
        files = ["--manifest", str(manifest), "--model", str(model), "--output", str(output)]
        return [*(["env", *self.variables] if self.variables else []), sys.executable, "-m", *start, *files, *self.options]


CONTENDERS = {
    one.name: one
    for one in (
        Contender("published", "model.predict over tf.data, three times", "published"),
        Contender("runinference", "Beam's RunInference, TFModelHandlerNumpy", "runinference", ("tensorflow_hub",)),
        Contender("spark", "Spark's predict_batch_udf", "spark", ("pyspark",)),
        Contender("ray", "Ray Data's map_batches", "ray_data", ("ray",)),
        Contender("limit-tfdata", "by hand: tf.data, each image once", "limit_tfdata", is_limit=True),
        Contender("limit-threads", "by hand: threads and Pillow, each image once", "limit_threads", is_limit=True),
        Contender(OURS, "python -m batchverify", None),
    )
}


def with_options(options: str, variants: list[str]) -> dict[str, Contender]:
    """Returns the contenders, batchverify with more options, and its variants.

    Args:
        options: The options of batchverify and all its variants, as a user types them.
        variants: `NAME=OPTIONS` each; variables of the environment may come first, as in a shell.

    Raises:
        ValueError: at a variant without a name, or with one that is taken.
    """
    shared = tuple(shlex.split(options))
    found = CONTENDERS | {OURS: dataclasses.replace(CONTENDERS[OURS], options=shared)}
    for variant in variants:
        name, separator, more = variant.partition("=")
        if not separator or not name or name in found:
            raise ValueError(f"--variant is '{variant}'; give NAME='OPTIONS', with a name that is not {', '.join(found)}.")
        words = shlex.split(more)
        variables = tuple(itertools.takewhile(_VARIABLE.match, words))
        meaning = shlex.join([*variables, "python", "-m", "batchverify", *words[len(variables) :]])
        found[name] = Contender(name, meaning, None, options=(*shared, *words[len(variables) :]), variables=variables)
    return found


def read_answer(output: Path) -> np.ndarray:
    """Returns a contender's `COLUMNS` in the manifest's order, float64 `(3, n)`; NaN where there is no score."""
    if output.is_dir():
        table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("scores-*.parquet"))]).sort_by("pair")
    else:
        table = pq.read_table(output)
    return np.stack([table[name].to_numpy().astype(np.float64) for name in COLUMNS])


def difference(found: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference of two answers; infinite if their shapes differ or a score is missing."""
    if found.shape != reference.shape or not np.all(np.isfinite(found)):
        return float("inf")
    return float(np.max(np.abs(found - reference)))
