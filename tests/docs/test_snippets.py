"""What the README and the documentation show works: snippets run, command lines parse, and every name exists.

A snippet or a command line that cannot run here has a comment before it: `<!-- not run: needs BigQuery -->`.
"""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest

from batchverify.schema import STATUSES

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
PAGES = [*TOP_LEVEL, "deploy/README.md", "benchmarks/README.md", "benchmarks/SCALE.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
SUBCOMMANDS = ("doctor", "report", "nights", "calibrate", "convert", "train")
# The example of CONTRIBUTING.md, which does not exist.
FOREIGN = {"--max-match-rate", "--semi-persist-dir", "--number-of-execution-retries"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


# The entry points of the program. All that the tests below know of its modules is in these four functions.


def run_command(arguments: list[str]) -> str:
    """Runs the program in this process, and returns what it printed to stdout."""
    from batchverify.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(arguments) == 0
    return printed.getvalue()


def parse_command(arguments: list[str]) -> None:
    """Parses a command line as the program does, and raises what it raises at a mistake."""
    from batchverify.cli.subcommands import JOB, load_subcommand

    has_subcommand = bool(arguments) and arguments[0] in SUBCOMMANDS
    load_subcommand(arguments[0] if has_subcommand else JOB).parse(arguments[has_subcommand:])


def help_of(*command: str) -> str:
    """Returns the help of a subcommand, or of the job."""
    from batchverify.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main([*command, "--help"])
    return printed.getvalue()


def kinds() -> tuple[str, ...]:
    """Returns what `--lambda` knows."""
    from batchverify.model.safe_layers import KINDS

    return KINDS


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: after the fence; may be empty.
        text: between the fences.
        runs: whether nothing says that it cannot run here.
    """

    language: str
    text: str
    runs: bool


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """Returns the fenced blocks of a page in these languages, or all."""
    fence = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```(\w*)\n(.*?)^```$", re.M | re.S)
    found = [Block(language, text, not marker) for marker, language, text in fence.findall(read(page))]
    return [block for block in found if not languages or block.language in languages]


def command_lines(page: str) -> Iterator[list[str]]:
    """Yields the arguments of each call of the program in a page's shell blocks."""
    for block in blocks(page, "bash", "console"):
        for line in block.text.replace("\\\n", " ").splitlines() if block.runs else ():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for call in re.split("\0(?:&&|;|\\|)\0", "\0".join(words)):
                arguments = re.split("\0>", call)[0].split("\0")
                for program in (["batchverify"], ["python", "-m", "batchverify"]):
                    if arguments[: len(program)] == program:
                        yield arguments[len(program) :]


COMMAND_LINES = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder with pairs.csv, its images, a model and the finished run scores/; and what that run printed."""
    folder = tmp_path_factory.mktemp("snippets")
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    shutil.copy(ROOT / "manifests" / "demo.csv", folder / "pairs.csv")
    shutil.copytree(ROOT / "manifests" / "images", folder / "images")
    for suffix in ("", ".batchverify.json"):
        shutil.copy(ROOT / "batchverify" / "demo" / f"sane.keras{suffix}", folder / f"model.keras{suffix}")
    with contextlib.chdir(folder):
        return folder, run_command(["--manifest", "manifests/demo.csv", "--output", "scores/"])


@pytest.fixture
def folder(finished, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, which is the working directory."""
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def run_python(snippets: list[str]) -> tuple[dict, str]:
    """Runs snippets one after the other in one namespace, and returns it with what they printed."""
    names: dict = {"__name__": "snippet"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for snippet in snippets:
            exec(snippet, names)
    return names, printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page, "python"))])
def test_the_python_of_a_page_runs(page, folder):
    assert run_python([block.text for block in blocks(page, "python") if block.runs])[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page, "sql"))])
def test_the_sql_of_a_page_runs(page, folder):
    for block in blocks(page, "sql"):
        if block.runs:
            assert (rows := duckdb.sql(block.text)) and rows.fetchall()


def reading(library: str) -> str:
    """Returns the snippet that reads the output with `library`."""
    python = (block.text for block in blocks("docs/output.md", "python") if block.runs)
    (found,) = (text for text in python if library in text.splitlines()[0])
    return found


def test_pandas_reads_the_output_as_the_page_says(folder):
    summary = json.loads((folder / "scores" / "_summary.json").read_text())
    names, shown = run_python([reading("pandas")])
    assert len(names["scores"]) == summary["rows"]["total"]
    assert names["scores"]["match"].sum() == summary["rows"]["matches"]
    assert f"{names['scores']['score'].max():.6f}" in shown


def test_duckdb_reads_the_output_as_the_page_says(folder):
    summary = json.loads((folder / "scores" / "_summary.json").read_text())
    names, shown = run_python([reading("duckdb")])
    counted = names["scores"].aggregate("count(*), count(score)").fetchall()
    assert counted == [(summary["rows"]["total"], summary["rows"]["scored"])]
    for verdict in ("sane", "not_checked"):
        assert verdict in shown and str(summary["identity"][verdict]) in shown


def without_times(text: str) -> str:
    return re.sub(r"^Time .*\n .*\n", "", text, flags=re.M).strip()


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_first_run_prints_what_the_page_shows(page, finished):
    shown = next(block.text for block in blocks(page, "text") if "Identity  SANE" in block.text)
    assert without_times(shown) == without_times(finished[1]).replace("scores/", "out/")


def test_the_readme_keeps_its_two_commands():
    lines = [line for block in blocks("README.md", "bash") for line in block.text.splitlines()]
    assert "pip install . && python -m batchverify --manifest manifests/demo.csv --output out/" in lines
    assert "pip install '.[test]' && pytest" in lines
    assert len(read("README.md").splitlines()) <= 120


@pytest.mark.parametrize(
    ("page", "arguments"), COMMAND_LINES, ids=[f"{page}: {' '.join(line)}" for page, line in COMMAND_LINES]
)
def test_each_command_line_is_understood(page, arguments):
    parse_command(arguments)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All options of the program, with hyphens: its own, and Beam's."""
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    beams = _BeamArgumentParser(add_help=False, conflict_handler="resolve")
    for each in PipelineOptions.__subclasses__():
        each._add_argparse_args(beams)
    converts = [("convert", name) for name in ("lfw", "list", "scores")]
    pages = [help_of(), *(help_of(name) for name in SUBCOMMANDS), *(help_of(*command) for command in converts)]
    ours = {option for page in pages for option in OPTION.findall(page)}
    return {option.replace("_", "-") for option in ours | set(beams._option_string_actions) | FOREIGN}


@pytest.mark.parametrize("page", [page for page in PAGES if "benchmarks/" not in page])
def test_each_option_in_the_text_exists(page, options):
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    others = re.compile(r"python -m (benchmarks|apache_beam)|pip |mkdocs |pytest|systemctl ")
    code = [text for text in re.findall(r"`([^`]+)`", prose) if not others.match(text)]
    named = {option for text in code for option in OPTION.findall(text)}
    assert not {option for option in named if option.replace("_", "-") not in options}


@pytest.mark.parametrize("page", PAGES)
def test_each_file_and_module_in_the_text_exists(page):
    text = read(page)
    paths = re.findall(r"(?<![\w/.:-])(?:tests|deploy|benchmarks|manifests|docs)/[\w./-]*\w\.\w+", text)
    base = (ROOT / page).parent
    assert not {path for path in paths if not (ROOT / path).exists() and not (base / path).exists()}
    modules = re.findall(r"python -m (benchmarks[\w.]*\w)", text)
    assert not {module for module in modules if importlib.util.find_spec(module) is None}


def anchors(page: Path) -> set[str]:
    """Returns the names that headings of a page have in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*TOP_LEVEL, "deploy/README.md", "benchmarks/README.md", "benchmarks/SCALE.md"])
def test_each_link_of_a_page_outside_of_the_site_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", read(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), anchor


def test_each_status_is_documented():
    rows = re.findall(r"^\| `(\w+)` \|", read("docs/images.md").split("## How pixels")[0], re.M)
    assert rows == [str(status) for status in STATUSES]
    (row,) = (line for line in read("docs/output.md").splitlines() if line.startswith("| `left_status`"))
    assert re.findall(r"`(\w+)`", row)[2:] == rows


def test_each_kind_is_documented():
    text = read("docs/model.md").split("A KIND is one of ")[1].split("\n\n")[0]
    assert re.findall(r"`([^`]+)`", text) == list(kinds())
