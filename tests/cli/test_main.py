"""The program and its subcommands: names, spellings, version, completion, and how it ends."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import setuptools  # noqa: F401  (brings distutils)

import batchverify.__main__
from batchverify.cli import doctor, job
from batchverify.cli.main import main
from batchverify.cli.subcommands import JOB, SUBCOMMANDS, load_subcommand
from batchverify.errors import PreflightError, RunError
from batchverify.io.storage_options import beam_options
from batchverify.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
JOB_ARGUMENTS = ["--manifest=m.csv", "--output=o"]


def test_the_console_script_and_the_module_are_the_same_program():
    from distutils.core import run_setup

    package: Any = run_setup(str(ROOT / "setup.py"), stop_after="init")
    (line,) = package.entry_points["console_scripts"]
    name, target = line.split(" = ")
    assert name == "batchverify"
    assert EntryPoint(name, target, "console_scripts").load() is vars(batchverify.__main__)["run_as_process"]


def test_the_module_is_a_program():
    done = subprocess.run([sys.executable, "-m", "batchverify", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"batchverify {VERSION}\n", "")
    done = subprocess.run([sys.executable, "-m", "batchverify", "report"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "DIR" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_has_its_own_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: batchverify {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("docter", "there is no subcommand 'docter'; did you mean doctor?"),
        (
            "pairs.csv",
            "there is no subcommand 'pairs.csv'; give doctor, report, nights, calibrate, convert or train, or options, which "
            "begin with --.",
        ),
    ],
)
def test_a_misspelt_subcommand_is_a_sentence(argument, expected, capsys):
    assert main([argument]) == 2
    assert capsys.readouterr().err == f"batchverify: {expected}\n"


def test_a_subcommand_after_an_option_is_refused(capsys):
    assert main([*JOB_ARGUMENTS, "doctor"]) == 2
    assert "'doctor' is not an option" in capsys.readouterr().err


def test_hyphens_and_underscores_are_the_same():
    hyphens = job.parse(
        [*JOB_ARGUMENTS, "--max-failed-rows", "3", "--image-root=a_b-c", "--no-wait", "--temp-location=gs://a_b-c"]
    )
    mixed = job.parse(
        [*JOB_ARGUMENTS, "--max_failed_rows", "3", "--image_root=a_b-c", "--no_wait", "--temp_location=gs://a_b-c"]
    )
    assert hyphens.beam_args == mixed.beam_args == ["--temp_location=gs://a_b-c"]  # as Beam spells it
    assert hyphens.no_wait and mixed.no_wait
    assert (hyphens.config.max_failed_rows, hyphens.config.image_root) == (mixed.config.max_failed_rows, "a_b-c")
    assert mixed.config.image_root == "a_b-c"
    assert job.parse([*JOB_ARGUMENTS, "--image_root", "a_b"]).config.image_root == "a_b"
    assert job.parse([*JOB_ARGUMENTS, "--job_server_timeout=9"]).beam_args == ["--job-server-timeout=9"]


@pytest.mark.parametrize(
    ("name", "arguments", "field", "value"),
    [
        ("doctor", ["--write_sidecar"], "write_sidecar", True),
        ("convert", ["lfw", "pairs.txt", "--output", "p.csv", "--over_write"], None, "did you mean --overwrite?"),
        ("convert", ["scores", "out", "--output", "s", "--format", "bob", "--label_column", "same"], "label_column", "same"),
        ("report", ["out", "--s3-endpoint-url", "http://x"], "directory", "out"),
        ("report", ["--s3-endpoint-url", "http://x", "out"], "directory", "out"),
    ],
)
def test_hyphens_and_underscores_are_the_same_in_subcommands(name, arguments, field, value):
    if field is None:
        with pytest.raises(PreflightError, match=value.replace("?", "[?]")):
            load_subcommand(name).parse(arguments)
        return
    parsed: Any = load_subcommand(name).parse(arguments)
    options, *_, beam_args = parsed
    assert getattr(options, field) == value
    assert beam_args == (["--s3_endpoint_url=http://x"] if name == "report" else [])


def test_training_takes_underscores_and_file_uris():
    given = ["--images=i", "--output=m.keras", "--steps_per_epoch=7", "--hold_out", "a"]
    parsed: Any = load_subcommand("train").parse(given)
    recipe, settings = parsed
    assert recipe.steps_per_epoch == 7 and settings.hold_out == ("a",)
    parsed = load_subcommand("train").parse(["--manifest=file:///a%20b/p.csv", "--output=m.keras"])
    assert parsed[1].manifest.manifests == ("/a b/p.csv",)


def test_no_option_of_ours_is_one_of_beams():
    beams = {name.replace("_", "-") for name in beam_options()}
    assert not beams & {
        name for command in (JOB, *SUBCOMMANDS) for name in load_subcommand(command).make_parser().option_names()
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["doctor", "--modle", "m.keras"], "there is no option --modle; did you mean --model?"),
        (["doctor", "--s3_endpont_url=x"], "there is no option --s3_endpont_url; did you mean --s3_endpoint_url?"),
        (["report", "out", "--outptu=x"], "there is no option --outptu; did you mean --output?"),
        (["train", "--imags", "x"], "there is no option --imags; did you mean --images?"),
        (["doctor", "model.keras"], "'model.keras' is not an option; options begin with --; see batchverify doctor --help."),
        (
            ["doctor", "--project=p", "model.keras"],
            "'model.keras' is not an option; options begin with --; see batchverify doctor --help.",
        ),
        (
            ["report", "out", "--project", "p", "more"],
            "'more' is not an option; options begin with --; see batchverify report --help.",
        ),
        (
            ["train", "--images=i", "--output=o", "-q"],
            "'-q' is not an option; options begin with --; see batchverify train --help.",
        ),
    ],
)
def test_an_unknown_option_of_a_subcommand_is_a_sentence(arguments, expected, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"batchverify: {expected}\n"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (PreflightError(["a is wrong.", "b is wrong."]), 2, "batchverify: a is wrong.\nbatchverify: b is wrong.\n"),
        (RunError("it broke"), 1, "batchverify: it broke\n"),
        (KeyboardInterrupt(), 130, "batchverify: stopped by SIGINT.\n"),
    ],
)
def test_what_a_subcommand_raises_becomes_sentences_and_an_exit_code(error, code, expected, monkeypatch, capsys):
    def fail(argv):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_options_and_subcommands(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    for word in ("doctor", "convert", "lfw", "max-failed-rows", "write-sidecar", "steps-per-epoch"):
        assert word in script


def test_bash_takes_the_completion(tmp_path, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    complete = "COMP_WORDS=(batchverify doctor --write); COMP_CWORD=2; _shtab_batchverify; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f". {tmp_path}/completion; {complete}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--write-sidecar"]


def test_without_shtab_the_completion_is_refused(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == ("batchverify: --print-completion needs shtab: pip install 'batchverify[completion]'.\n")


def start(*command: str, cwd: Path = ROOT) -> tuple[int, str]:
    """Runs a command, and returns its exit code and what it printed to stderr."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


JOB_OF_THE_DEMO = ["-m", "batchverify", "--manifest", str(ROOT / "manifests" / "demo.csv"), "--output", "out"]


@pytest.mark.processes
def test_a_signal_while_modules_load_gives_its_code():
    program = (
        "import os, batchverify.cli.main as program\n"
        "program.load_subcommand = lambda name: os.kill(os.getpid(), 15)\n"
        "program.run_as_process()"
    )
    assert start(sys.executable, "-c", program) == (143, "batchverify: stopped by SIGTERM.\n")


END_OF_THE_PROGRAM = """
import atexit, os, subprocess, sys, threading, types
import batchverify.cli.main as program

class Torn:
    def __del__(self):
        os.write(1, b" torn apart")

torn = Torn()
torn.itself = torn
atexit.register(print, "registered", end="")
def run(arguments):
    {run}
    print("run", end=" ")
    return 3
program.load_subcommand = lambda name: types.SimpleNamespace(run=run)
program.run_as_process()
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("run", "printed"),
    [
        ("pass", "run registered"),
        ("threading.Timer(0.5, lambda: print('thread', end=' ')).start()", "run thread registered torn apart"),
        ("sys.child = subprocess.Popen(['sleep', '1'])", "run registered torn apart"),
    ],
    ids=["nothing is left", "a thread is left", "a child is left"],
)  # fmt: skip
def test_the_interpreter_is_taken_apart_only_where_something_still_needs_it(run, printed):
    done = subprocess.run(
        [sys.executable, "-c", END_OF_THE_PROGRAM.format(run=run)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, printed)


@pytest.mark.processes
def test_garbage_is_collected_while_a_subcommand_runs():
    program = (
        "import gc, sys, types, batchverify.cli.main as program\n"
        "run = lambda arguments: 0 if gc.isenabled() else 1\n"
        "program.load_subcommand = lambda name: types.SimpleNamespace(run=run)\n"
        "program.run_as_process()"
    )
    assert start(sys.executable, "-c", program, "report") == (0, "")


@pytest.mark.processes
def test_a_working_directory_that_was_deleted_is_told_in_a_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    script = 'rmdir "$PWD" && exec "$@"'
    code, err = start("sh", "-c", script, "sh", sys.executable, *JOB_OF_THE_DEMO, cwd=tmp_path / "gone")
    assert (code, len(err.splitlines())) == (2, 1) and "working directory" in err


@pytest.mark.processes
def test_an_interpreter_without_docstrings_is_told_in_a_sentence():
    code, err = start(sys.executable, "-OO", *JOB_OF_THE_DEMO)
    assert (code, len(err.splitlines())) == (2, 1) and "-OO" in err
