"""`python -m batchverify.convert`: the field's lists of pairs into manifests, and a run's scores into the field's files.

    python -m batchverify.convert lfw pairs.txt --images lfw/ --output pairs.csv
    python -m batchverify.convert list pairs.lst --images faces/ --output pairs.parquet
    python -m batchverify.convert scores out/ --format bob --output scores.txt
    python -m batchverify.convert scores out/ --format pyeer --output scores/

Files are read and written a piece at a time, and appear whole or not at all. Exit codes: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from batchverify.cli.logging import quieten_libraries
from batchverify.errors import PreflightError, printable
from batchverify.uris import is_remote

DONE, REFUSED = 0, 2
_ROWS_AT_ONCE = 65_536
_MOST_LINE = 65_536
_LABELS = {"1": 1, "true": 1, "0": 0, "-1": 0, "false": 0}
ORDERS = ("label-left-right", "left-right-label")


class Pair(NamedTuple):
    """One pair of a list.

    Attributes:
        left: path of an image.
        right: of the other.
        genuine: 1, or 0 for an impostor pair.
        fold: number of its fold, counted from 1; None where there are none.
    """

    left: str
    right: str
    genuine: int
    fold: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Converts what `argv` names, says what was written and returns the exit code."""
    try:
        options, beam_args = _parse(sys.argv[1:] if argv is None else list(argv))
        if beam_args or is_remote(options.source):
            from batchverify.io.object_store import set_storage_arguments

            set_storage_arguments(beam_args, [("the run", options.source)])
        if os.path.lexists(options.output) and not options.overwrite:
            raise PreflightError(f"--output {options.output} exists; name another one, or add --overwrite.")
        print(printable(options.convert(options)))
        return DONE
    except PreflightError as refused:
        for problem in refused.problems:
            print(f"batchverify: {problem}", file=sys.stderr)
    except OSError as error:
        words = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"batchverify: {printable(words)}; check the path, your rights and the free space.", file=sys.stderr)
    return REFUSED


def lfw_pairs(lines: Iterable[str], path: str, ending: str = ".jpg") -> Iterator[Pair]:
    """Reads `pairs.txt` or `pairsDevTrain.txt` of Labeled Faces in the Wild.

    Its header gives the folds and the pairs of either kind in each, or these pairs alone; then for each fold first the
    genuine pairs, `name number number`, then the impostors, `name number name number`
    (http://vis-www.cs.umass.edu/lfw/README.txt).

    Args:
        lines: of the file.
        path: what to call it in a refusal.
        ending: of the image files.

    Raises:
        PreflightError: with the number of the line that is not as it should be.
    """
    numbered = ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
    number, header = next(numbered, (1, []))
    if len(header) not in (1, 2) or not all(map(_is_number, header)):
        raise PreflightError(f"{path}, line {number}: a header gives folds and pairs, '10 300', or pairs alone, '1100'.")
    folds, of_each = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    read = 0
    for read, (number, fields) in enumerate(numbered, 1):
        fold, place = divmod(read - 1, 2 * of_each) if of_each else (folds, 0)
        if fold >= folds:
            raise PreflightError(f"{path}, line {number}: there are more pairs than the {2 * folds * of_each} of the header.")
        genuine = place < of_each
        wanted = "name number number" if genuine else "name number name number"
        if len(fields) != len(wanted.split()) or not all(map(_is_number, fields[1::2] if not genuine else fields[1:])):
            raise PreflightError(f"{path}, line {number}: it should be '{wanted}', as the header counts the pairs.")
        one, other = (fields[0], fields[-2] if not genuine else fields[0])
        left, right = (f"{name}/{name}_{int(photo):04d}{ending}" for name, photo in ((one, fields[1]), (other, fields[-1])))
        yield Pair(left, right, int(genuine), fold + 1 if len(header) == 2 else None)
    if read != 2 * folds * of_each:
        raise PreflightError(
            f"{path}: the header promises {2 * folds * of_each} pairs, but there are {read}; get the whole file."
        )


def listed_pairs(lines: Iterable[str], path: str, order: str = ORDERS[0]) -> Iterator[Pair]:
    """Reads a list with a label and two paths in each line, parted by tabs, by commas, or else by blanks.

    Args:
        lines: of the file.
        path: what to call it in a refusal.
        order: one of `ORDERS`.

    Raises:
        PreflightError: with the number of the line that is not as it should be.
    """
    split: Callable[[str], list[str]] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        split = split or _splitter(line)
        fields = [field.strip() for field in split(line)]
        if len(fields) != 3 or not all(fields):
            found = f"{len([field for field in fields if field])} fields"
            raise PreflightError(
                f"{path}, line {number}: there are {found}, not the three of {order}; part them by tabs or commas."
            )
        label, left, right = fields if order == ORDERS[0] else [fields[2], *fields[:2]]
        if label.lower() not in _LABELS:
            other = ORDERS[1] if order == ORDERS[0] else ORDERS[0]
            raise PreflightError(
                f"{path}, line {number}: the label is '{label:.40}', not 1 or 0; see --order {other}, or mend it."
            )
        yield Pair(left, right, _LABELS[label.lower()])


def write_manifest(pairs: Iterable[Pair], folder: str, output: str) -> int:
    """Writes pairs as a manifest, CSV or Parquet by the name's ending, and returns how many they were.

    Args:
        pairs: in their order.
        folder: what goes before relative paths; they start from the folder of `output`.
        output: the file, which appears once it is whole.

    Raises:
        PreflightError: if the ending is another.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if not output.endswith((".csv", ".parquet")):
        raise PreflightError(f"--output {output} says neither CSV nor Parquet; end it with .csv or .parquet.")
    prefix, written, writer = _from_output(folder, output), 0, None
    with _appearing(output) as unfinished, ExitStack() as opened:
        for batch in _batched(pairs):
            columns = {
                "left": pa.array([_under(prefix, pair.left) for pair in batch], pa.string()),
                "right": pa.array([_under(prefix, pair.right) for pair in batch], pa.string()),
                "genuine": pa.array([pair.genuine for pair in batch], pa.int8()),
            }
            if batch[0].fold is not None:
                columns["fold"] = pa.array([pair.fold for pair in batch], pa.int16())
            table = pa.table(columns)
            if writer is None:
                make = pa.csv.CSVWriter if output.endswith(".csv") else pq.ParquetWriter
                writer = opened.enter_context(make(unfinished, table.schema))
            writer.write_table(table)
            written += len(batch)
        if writer is None:
            raise PreflightError("there are no pairs; give a list that has some.")
    return written


class _Options(Protocol):
    """What the options say; those of other subcommands are absent."""

    source: str
    output: str
    images: str
    ending: str
    order: str
    format: str
    label_column: str


def _convert_lfw(options: _Options) -> str:
    pairs = lfw_pairs(_lines(options.source), options.source, options.ending)
    return _told(write_manifest(pairs, options.images, options.output), options.output)


def _convert_list(options: _Options) -> str:
    pairs = listed_pairs(_lines(options.source), options.source, options.order)
    return _told(write_manifest(pairs, options.images, options.output), options.output)


def _told(pairs: int, output: str) -> str:
    return f"{pairs:,} pairs written to {output}."


def _convert_scores(options: _Options) -> str:
    """Writes the scores of labelled rows; rows without a label or a score have no place in these files."""
    left_out, written = {"a score": 0, "a label": 0}, {1: 0, 0: 0}
    files = {1: "genuine.txt", 0: "impostor.txt"} if options.format == "pyeer" else dict.fromkeys((1, 0), "")
    with _appearing(options.output) as unfinished, ExitStack() as opened:
        if options.format == "pyeer":
            Path(unfinished).mkdir()
        names = {name: os.path.join(unfinished, name) if name else unfinished for name in files.values()}
        streams = {name: opened.enter_context(open(path, "w", encoding="ascii")) for name, path in names.items()}
        for labels, scores in _labelled_scores(options.source, options.label_column):
            known = [score is not None for score in scores]
            left_out["a score"] += known.count(False)
            left_out["a label"] += sum(has_score and label < 0 for has_score, label in zip(known, labels, strict=True))
            for kind in (1, 0):
                theirs = [score for score, label in zip(scores, labels, strict=True) if score is not None and label == kind]
                before = "" if options.format == "pyeer" else "1 " if kind else "-1 "
                streams[files[kind]].writelines(f"{before}{score}\n" for score in theirs)
                written[kind] += len(theirs)
        if not sum(written.values()):
            raise PreflightError(f"{options.source} has no labelled row with a score; name the labels with --label-column.")
    words = [f"{number:,} rows without {what}" for what, number in left_out.items() if number]
    return (
        f"{written[1]:,} genuine and {written[0]:,} impostor scores written to {options.output}"
        + (f"; {' and '.join(words)} left out" if words else "")
        + "."
    )


def _labelled_scores(path: str, label_column: str) -> Iterator[tuple[list[int], list[str | None]]]:
    """Yields labels, 1, 0 or -1 for none, and scores as text that gives the same float32 again, None for none."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from apache_beam.io.filesystems import FileSystems

    from batchverify.io.filesystem import open_for_reading
    from batchverify.manifest.columns import parse_labels
    from batchverify.output.run_directory import RunDirectory

    directory = RunDirectory(path)
    if not directory.is_finished():
        raise PreflightError(f"{path} holds no finished run; name a directory with _SUCCESS in it.")
    for found in FileSystems.match([f"{directory.scores_prefix()}-*.parquet"])[0].metadata_list:
        with open_for_reading(found.path) as file:
            reader = pq.ParquetFile(file)
            if label_column not in reader.schema_arrow.names:
                names = ", ".join(reader.schema_arrow.names)
                raise PreflightError(
                    f"{found.path}: there is no column '{label_column}', only {names}; name it with --label-column."
                )
            for batch in reader.iter_batches(_ROWS_AT_ONCE, columns=["score", label_column]):
                table = pa.Table.from_batches([batch])
                labels, bad = parse_labels(table[label_column])
                bad &= table["score"].is_valid().to_numpy()
                if bad.any():
                    value = table[label_column][int(bad.argmax())].as_py()
                    raise PreflightError(
                        f"{found.path}: column '{label_column}' holds {value!r:.40}, no label; name another column."
                    )
                yield labels.tolist(), table["score"].cast(pa.string()).to_pylist()


def _lines(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline=None) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(_MOST_LINE)
            except UnicodeDecodeError:
                raise PreflightError(f"{path}, near line {number}: it is not UTF-8; save the file as UTF-8.") from None
            if len(line) == _MOST_LINE:
                raise PreflightError(
                    f"{path}, line {number}: it is longer than {_MOST_LINE:,} characters; is it a list of pairs?"
                )
            if not line:
                return
            yield line.rstrip("\n")


def _splitter(line: str) -> Callable[[str], list[str]]:
    if "\t" in line:
        return lambda text: text.split("\t")
    if "," in line:
        return lambda text: next(csv.reader([text], skipinitialspace=True), [])
    return str.split


def _batched(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _from_output(folder: str, output: str) -> str:
    """Returns `folder` as the manifest must name it, whose relative paths start from its own folder."""
    if not folder or is_remote(folder) or is_remote(output) or os.path.isabs(folder):
        return folder
    return os.path.relpath(folder, os.path.dirname(os.path.abspath(output)))


def _under(prefix: str, path: str) -> str:
    return path if not prefix or is_remote(path) or os.path.isabs(path) else f"{prefix.rstrip('/')}/{path}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


@contextmanager
def _appearing(output: str) -> Iterator[str]:
    """Gives the name of something unfinished beside `output`, which takes its place at the end, or goes."""
    folder = os.path.dirname(os.path.abspath(output))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".batchverify-", dir=folder) as room:
        unfinished = os.path.join(room, "unfinished")
        yield unfinished
        if os.path.isdir(output) and not os.path.islink(output):
            shutil.move(output, os.path.join(room, "replaced"))
        os.replace(unfinished, output)


def _parse(argv: Sequence[str]) -> tuple[Any, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m batchverify.convert",
        description="Turns lists of pairs into manifests, and the scores of a run into files that other tools read.",
        epilog="Beam's own options say to scores how stores are reached. Exit codes: 0 done, 2 refused.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    lfw = _command(commands, "lfw", "pairs.txt or pairsDevTrain.txt of Labeled Faces in the Wild", "FILE", _convert_lfw)
    lfw.add_argument("--ending", default=".jpg", help="of the image files (default: .jpg)")
    listed = _command(commands, "list", "a label and two paths in each line, as InsightFace has them", "FILE", _convert_list)
    listed.add_argument("--order", choices=ORDERS, default=ORDERS[0], help=f"of the fields (default: {ORDERS[0]})")
    for command in (lfw, listed):
        command.add_argument("--images", default="", metavar="DIR", help="folder or URI that the paths start from")
    scores = _command(commands, "scores", "the scores of a finished run, genuine and impostor", "DIR", _convert_scores)
    scores.add_argument(
        "--format", choices=("bob", "pyeer"), required=True,
        help="bob: a file with 1 or -1 and the score in each line, as bob.measure reads; pyeer: a folder with genuine.txt and "
        "impostor.txt, a score in each line",
    )  # fmt: skip
    scores.add_argument("--label-column", default="genuine", metavar="NAME", help="column with labels (default: genuine)")
    for command in (parser, lfw, listed, scores):
        command.error = _refuse  # type: ignore[method-assign]
    options, beam_args = parser.parse_known_args(argv)
    if beam_args and options.convert is not _convert_scores:  # the others read no store
        _refuse(f"unrecognized arguments: {' '.join(beam_args)}")
    return options, beam_args


def _command(commands: Any, name: str, text: str, source: str, convert: Callable[..., str]) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("source", metavar=source)
    command.add_argument("--output", required=True, metavar="PATH", help="what to write")
    command.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    command.set_defaults(convert=convert)
    return command


def _refuse(message: str) -> Any:
    raise PreflightError(f"{message}; see python -m batchverify.convert --help.")


if __name__ == "__main__":
    quieten_libraries()
    sys.exit(main())
