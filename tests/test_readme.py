"""The README's code for reading the output, as it stands there."""

import contextlib
import io
from pathlib import Path

import pytest

import batchverify

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def scored(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    config = batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(folder / "scores"))
    return folder, batchverify.run(config).summary


def snippet(library: str) -> str:
    """Returns the README's indented block that imports `library`."""
    section = README.read_text(encoding="utf-8").split("### Reading it\n")[1].split("\n#")[0]
    (found,) = (block for block in section.split("\n\n") if block.startswith("    import") and library in block.splitlines()[0])
    lines = [line.removeprefix("    ") for line in found.splitlines()]
    assert len(lines) == 3
    return "\n".join(lines)


def test_pandas_reads_the_output_as_the_readme_says(scored, monkeypatch):
    folder, summary = scored
    monkeypatch.chdir(folder)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(snippet("pandas"), names)
    assert len(names["scores"]) == summary["rows"]["total"]
    assert names["scores"]["match"].sum() == summary["rows"]["matches"]
    assert f"{names['scores']['score'].max():.6f}" in shown.getvalue()


def test_duckdb_reads_the_output_as_the_readme_says(scored, monkeypatch):
    folder, summary = scored
    monkeypatch.chdir(folder)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(snippet("duckdb"), names)
    counted = names["scores"].aggregate("count(*), count(score)").fetchall()
    assert counted == [(summary["rows"]["total"], summary["rows"]["scored"])]
    for verdict in ("sane", "not_checked"):
        assert verdict in shown.getvalue() and str(summary["identity"][verdict]) in shown.getvalue()
