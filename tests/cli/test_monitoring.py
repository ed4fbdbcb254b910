"""What is told of a run to machines: metrics for Prometheus, the command at the end, and logs as lines of JSON."""

import datetime
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_fd_to_metric_families

import batchverify.pipeline.run
from batchverify import tracing
from batchverify.cli import run_end
from batchverify.cli.job import parse
from batchverify.cli.main import main
from batchverify.cli.progress import watcher
from batchverify.errors import RunError
from tests.support.manifests import write_pairs
from tests.support.processes import start_program, wait_for

# What Google's libraries write before their logs are set up; no Python sees it.
NATIVE = re.compile(r"WARNING: All log messages before absl|[IWEF]\d{4} ")


@pytest.fixture
def arguments(pictures, small_model, tmp_path) -> list[str]:
    manifest = write_pairs(tmp_path, pictures)
    return ["--manifest", str(manifest), "--output", str(tmp_path / "out"), "--model", small_model]


@pytest.fixture
def told(tmp_path):
    """The options that have a run told of, and a function that returns what was told: metrics, and the environment."""
    metrics, environment = tmp_path / "batchverify.prom", tmp_path / "environment"
    options = ["--metrics-file", str(metrics), "--notify-command", f"env | grep ^BATCHVERIFY_ > '{environment}'"]

    def read() -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        lines = dict(line.split("=", 1) for line in environment.read_text().splitlines())
        return read_metrics(metrics), {
            name: lines[f"BATCHVERIFY_{name}"] for name in ("EXIT_CODE", "OUTPUT", "SUMMARY", "VERDICT")
        }

    return options, read


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """Returns the values of each metric without its prefix, by the value of its label."""
    with path.open() as file:
        families = list(text_fd_to_metric_families(file))
    assert all(family.documentation and family.type == "gauge" for family in families)
    found: dict[str, dict[str, float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        assert re.fullmatch(r"batchverify_[a-z][a-z_]*[a-z]", sample.name) and len(sample.labels) <= 1
        found.setdefault(sample.name.removeprefix("batchverify_"), {})["".join(sample.labels.values())] = sample.value
    return found


def records(text: str) -> list[dict[str, str]]:
    """Returns the lines of a log as objects, but for what native libraries write."""
    return [json.loads(line) for line in text.splitlines() if not NATIVE.match(line)]


@pytest.mark.slow
def test_the_figures_are_those_of_the_run(demo, tmp_path, told, read_scores):
    options, read = told
    before = time.time()
    job = ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "one")]
    assert main([*job, *options]) == 0
    assert "drift_population_stability_index" not in read()[0]
    job = ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "two"), "--baseline", str(tmp_path / "one")]
    assert main([*job, "--max-failed-rows", "2", "--max-drift", "0.25", "--embeddings", str(tmp_path / "e"), *options]) == 3
    found, environment = read()
    scores, summary = read_scores(tmp_path / "two"), json.loads((tmp_path / "two" / "_summary.json").read_text())
    assert found["rows"] == {"scored": scores["score"].notna().sum(), "failed": scores["score"].isna().sum()}
    assert found["match_ratio"][""] == scores["match"].dropna().mean()
    assert found["identity_checks"] == dict.fromkeys(("below_threshold", "outscored"), 0) | (
        scores["identity_check"].astype(str).value_counts().to_dict()
    )
    assert found["images"] == {"ok": 85, "missing": 1, "unreadable": 1}
    assert found["embedded_images"] == {"encoded": 85, "store": 0}
    assert found["stranger_match_ratio"][""] == summary["strangers"]["match_rate"]
    assert found["false_match_ratio"][""] == summary["error_rates"]["fmr"]
    assert found["drift_population_stability_index"] == {"pairs": 0, "strangers": 0} and found["model_changed"] == {"": 0}
    assert found["gate_met"] == {"max-failed-rows": 0, "max-drift": 1} and found["gate_found"]["max-failed-rows"] == 3
    assert found["model_info"] == {summary["run"]["model_digest"]: 1}
    assert found["pipeline_duration_seconds"][""] == summary["profile"]["wall_seconds"] < found["last_run_duration_seconds"][""]
    assert found["last_run_exit_code"] == {"": 3} and before < found["last_run_timestamp_seconds"][""] < time.time()
    assert environment == {
        "EXIT_CODE": "3", "OUTPUT": str(tmp_path / "two"), "SUMMARY": str(tmp_path / "two" / "_summary.json"),
        "VERDICT": "The model is sane, but a limit that you set is not met. Gate not met: 3 of 125 rows, where "
        "--max-failed-rows allows 2.",
    }  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("batchverify.prom.")]  # the temporary file is gone


def test_every_figure_of_the_documentation_is_written_and_none_else(tmp_path):
    from batchverify.report import prometheus

    page = (Path(batchverify.__file__).parents[1] / "docs" / "nightly.md").read_text(encoding="utf-8")
    documented = re.findall(r"`batchverify_(\w+)", page.split("| metric |")[1].split("\n\n")[0])
    source = Path(prometheus.__file__).read_text(encoding="utf-8")
    written = re.findall(r'(?:_single|Metric)\(\s*"(\w+)"', source)
    assert len(written) > 30 and sorted(documented) == sorted(written)


ENDS = [
    ("no option", ["--outptu", "x"], 2, "there is no option --outptu; did you mean --output?"),
    ("bad value", ["--threshold", "7"], 2, "--threshold is 7.0; a score lies in [0, 1], so give a number from 0 to 1."),
    ("no manifest", ["--manifest", "none.csv"], 75, "there is no such file"),
    ("bad baseline", ["--baseline", "none"], 2, "--baseline none does not exist"),
    ("not UTF-8", ["--limit", "\udcff"], 2, "is not UTF-8"),
]


@pytest.mark.parametrize(("given", "code", "verdict"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
def test_a_refusal_is_told(given, code, verdict, arguments, told, capsys):
    options, read = told
    assert main([*arguments, *options, *given]) == code
    found, environment = read()
    assert set(found) == {"last_run_exit_code", "last_run_timestamp_seconds", "last_run_duration_seconds", "build_info"}
    assert found["last_run_exit_code"] == {"": code} and environment["EXIT_CODE"] == str(code)
    assert verdict in environment["VERDICT"] and environment["SUMMARY"] == "" and environment["OUTPUT"] == arguments[3]
    assert verdict in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--output"], ["--output=o", "--output"], ["--check=yes"]])
def test_a_refusal_is_told_though_another_early_option_is_wrong(wrong, told, capsys):
    options, read = told
    assert main(["--manifest", "m.csv", *wrong, *options, "--log-format", "json"]) == 2
    found, environment = read()
    assert found["last_run_exit_code"] == {"": 2} and environment["EXIT_CODE"] == "2"
    assert records(capsys.readouterr().err)[-1]["message"] == environment["VERDICT"] != ""


def test_a_refusal_is_told_though_the_format_of_the_log_is_wrong(told, capsys):
    options, read = told
    assert main(["--manifest", "m.csv", "--output", "o", "--log-format", "$UNSET", *options]) == 2
    assert read()[0]["last_run_exit_code"] == {"": 2} and read()[1]["OUTPUT"] == "o"


@pytest.mark.parametrize(
    ("error", "verdict"), [(RunError("it broke."), "the run failed: it broke."), (ValueError("a\x1b"), "ValueError")]
)
def test_a_failure_is_told(error, verdict, arguments, told, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(batchverify.pipeline.run, "plan_run", fail)
    options, read = told
    if isinstance(error, RunError):
        assert main([*arguments, *options]) == 1
    else:
        with pytest.raises(ValueError, match="a"):
            main([*arguments, *options])
    found, environment = read()
    assert found["last_run_exit_code"] == {"": 1} and "rows" not in found
    assert environment["EXIT_CODE"] == "1" and verdict in environment["VERDICT"] and "\x1b" not in environment["VERDICT"]


@pytest.mark.slow
def test_the_figures_of_an_earlier_run_do_not_outlive_it(arguments, told):
    options, read = told
    assert main([*arguments, *options]) == 0
    assert read()[0]["rows"]["scored"] == 57
    assert main([*arguments, *options]) == 2
    assert "rows" not in read()[0] and read()[0]["last_run_exit_code"] == {"": 2}


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_told(number, demo, tmp_path, told):
    options, read = told
    job = ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "out"), "--log-format", "json", *options]
    program = start_program(job)
    wait_for(tmp_path / "out" / "_RUNNING", program)
    program.send_signal(number)
    _, err = program.communicate(120)
    assert program.returncode == 128 + number, err
    found, environment = read()
    assert found["last_run_exit_code"] == {"": 128 + number} and "rows" not in found
    told_words = f"stopped by {number.name}; no unfinished output is left."
    assert environment["EXIT_CODE"] == str(128 + number) and environment["VERDICT"] == told_words
    last = records(err)[-1]
    assert last["message"] == told_words and last["level"] == "ERROR" and re.fullmatch("[0-9a-f]{32}", last["run_id"])


def test_nothing_is_told_of_a_check_or_of_help(arguments, told, tmp_path, capsys):
    options, _ = told
    assert main([*arguments, *options, "--check"]) == 0
    with pytest.raises(SystemExit):
        main([*arguments, *options, "--help"])
    assert not (tmp_path / "batchverify.prom").exists() and not (tmp_path / "environment").exists()
    assert "BATCHVERIFY_EXIT_CODE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["--metrics-file", "{tmp}/none/b.prom"],
            "--metrics-file {tmp}/none/b.prom cannot be written; name a file in a folder",
        ),
        (["--metrics-file", "{tmp}"], "--metrics-file {tmp} cannot be written"),
        (["--metrics-file", "gs://bucket/b.prom"], "lies in a store, and node_exporter reads files of this machine"),
        (
            ["--metrics-file", "{tmp}/b.prom", "--no-wait"],
            "--metrics-file tells of a run's end, which this process does not",
        ),
        (["--notify-command", "true", "--no-wait"], "--notify-command tells of a run's end"),
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_what_cannot_be_told_is_refused_before_any_work(given, sentence, check, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batchverify.pipeline.run, "plan_run", None)
    assert main([*arguments, *(word.format(tmp=tmp_path) for word in given), *check]) == 2
    assert sentence.format(tmp=tmp_path) in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_prometheus_client_the_option_is_refused(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main([*arguments, "--metrics-file", str(tmp_path / "b.prom")]) == 2
    told = "batchverify: --metrics-file needs prometheus-client: pip install 'batchverify[metrics]'."
    assert told in capsys.readouterr().err.splitlines()
    assert not (tmp_path / "out").exists() and not (tmp_path / "b.prom").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_fails_is_a_warning(code, arguments, caplog):
    assert main([*arguments, "--threshold", "7", "--notify-command", f"echo no pager; exit {code}"]) == 2
    assert [record.getMessage() for record in caplog.records] == (
        ["--notify-command ended with exit code 3 (no pager)."] if code else []
    )


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run_end, "_NOTIFY_WITHIN_S", 0.5)
    started = time.monotonic()
    assert main(["--threshold", "7", "--notify-command", f"(echo $BASHPID; exec sleep 60) > {tmp_path}/pid & sleep 60"]) == 2
    assert time.monotonic() - started < 20 and "--notify-command was stopped after 0.5 seconds." in caplog.text
    assert main(["--threshold", "7", "--notify-command", f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60'"]) == 2
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_command_that_says_much_is_not_blocked(caplog):
    assert main(["--threshold", "7", "--notify-command", "yes | head -c 3000000; echo end; exit 1"]) == 2
    assert len(caplog.text) < 2000 and "end)" in caplog.text


def test_names_of_strangers_reach_the_command_only_through_its_environment(tmp_path, told):
    options, read = told
    name = f"$(touch {tmp_path}/pwned)`touch {tmp_path}/pwned`'\";touch {tmp_path}/pwned;\n"
    assert main(["--manifest", name, "--output", str(tmp_path / "o") + name, "--baseline", name, *options]) == 2
    assert not (tmp_path / "pwned").exists() and f"$(touch {tmp_path}/pwned)`" in read()[1]["VERDICT"]


@pytest.mark.slow
def test_a_run_is_told_in_lines_of_json(arguments, tmp_path):
    program = start_program([*arguments, "--log-format", "json", "--max-failed-rows", "0", "--limit", "30"])
    out, err = program.communicate(120)
    assert program.returncode == 0 and out == ""
    lines = records(err)
    assert len(lines) >= 2 and all(set(line) <= {"time", "level", "logger", "message", "run_id", "exception"} for line in lines)
    for line in lines:
        moment = datetime.datetime.fromisoformat(line["time"])
        assert line["time"].endswith("Z") and abs(datetime.datetime.now(datetime.UTC) - moment).total_seconds() < 600
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    closing = next(line for line in lines if line["message"].startswith("Rows "))
    assert closing["run_id"] == summary["run"]["run_id"] and closing["level"] == "INFO" and "SANE" in closing["message"]
    assert "\x1b" not in err


def test_a_refusal_is_told_in_lines_of_json(arguments, capsys):
    assert main([*arguments, "--log-format=json", "--threshold", "7", "--batch-size", "0"]) == 2
    out, err = capsys.readouterr()
    lines = records(err)
    assert out == "" and [line["level"] for line in lines] == ["ERROR", "ERROR"] and "run_id" not in lines[0]
    assert lines[1]["message"] == "--batch-size is 0; give at least 1." and lines[1]["logger"] == "batchverify"
    assert main([*arguments, "--threshold", "7"]) == 2  # The format is that of one run, not of the process.
    assert capsys.readouterr().err.startswith("batchverify: --threshold is 7.0")


@pytest.mark.processes
def test_a_crash_is_a_line_of_json_with_its_traceback(arguments):
    program = start_program([*arguments, "--log-format", "json"], before=_break_planning)
    _, err = program.communicate(120)
    assert program.returncode == 1
    last = records(err)[-1]
    assert (
        last["level"] == "CRITICAL" and last["exception"].startswith("Traceback") and "ValueError: größer" in last["exception"]
    )
    assert err.isascii()


def _break_planning() -> None:
    def fail(*_):
        raise ValueError("größer")

    batchverify.pipeline.run.plan_run = fail  # type: ignore[attr-defined]


@pytest.mark.processes
def test_what_others_write_to_stderr_is_told_in_lines_of_json(arguments):
    program = start_program([*arguments, "--log-format", "json"], before=_chat_while_planning)
    out, err = program.communicate(120)
    assert program.returncode == 1 and out == "" and err.isascii() and "\x1b" not in err
    found = {line["message"]: (line["level"], line["logger"]) for line in records(err)}
    no_device = "E0000 00:00:1795923928.792946   16906 cuda_platform.cc:52] no device"
    assert found[no_device] == ("ERROR", "stderr")
    assert [found[text] for text in ("of C\x1b[1m\ufffd", "of Python", "of a child")] == [("WARNING", "stderr")] * 3
    assert found["a record"] == ("INFO", "other") and "the program failed: ValueError" in found


def _chat_while_planning() -> None:
    def fail(*_):
        os.write(2, b"E0000 00:00:1795923928.792946   16906 cuda_platform.cc:52] no device\nof C\x1b[1m\xff\n\n")
        os.write(2, b'{"level": "INFO", "logger": "other", "message": "a record"}\n')
        print("of Python", file=sys.stderr, flush=True)
        subprocess.run(["sh", "-c", "printf 'of a child' >&2"], check=True)
        os.write(2, b"\n")
        raise ValueError("größer")

    batchverify.pipeline.run.plan_run = fail  # type: ignore[attr-defined]


@pytest.mark.processes
@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_the_process_ends_when_all_that_was_written_to_stderr_has_been_printed(number, arguments):
    """The first process of a container takes all others with it when it ends."""
    program = start_program([*arguments, "--log-format", "json"], before=functools.partial(_write_much_at_the_end, number))
    said = [line["message"] for line in records(program.communicate(120)[1])]
    assert [line for line in said if line.startswith("line ")] == [f"line {line}" for line in range(30_000)]


def _write_much_at_the_end(number: int | None) -> None:
    def fail(*_):
        sys.stderr.write("".join(f"line {line}\n" for line in range(30_000)))
        if number:
            os.kill(os.getpid(), number)
        raise ValueError("the end")

    batchverify.pipeline.run.plan_run = fail  # type: ignore[attr-defined]


def test_there_is_no_bar_among_lines_of_json(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ExitStack() as stack:
        watch = watcher(stack, "json")
        watch(dict.fromkeys(("images_encoded", "images_reused", "images_failed", "rows_scored", "rows_failed"), 0.0), 9, 9)
    assert capsys.readouterr().err == ""


@pytest.mark.processes
def test_warnings_logs_and_failed_threads_are_lines_of_json():
    program = (
        "import logging, threading, warnings\n"
        "from batchverify.cli.logging import set_log_format\n"
        "set_log_format('json')\n"
        "warnings.warn('a\\nb')\n"
        "logging.getLogger('some.library').error('two\\nlines %s', '\x1b]0;owned\x07')\n"
        "threading.Thread(target=lambda: 1 / 0, name='worker').start()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "\x1b" not in done.stderr
    warning, log, failure = map(json.loads, done.stderr.splitlines())
    assert [line["logger"] for line in (warning, log, failure)] == ["py.warnings", "some.library", "batchverify"]
    assert "a\nb" in warning["message"] and log["message"] == "two\nlines \x1b]0;owned\x07"
    assert failure["message"] == "the thread worker failed" and "ZeroDivisionError" in failure["exception"]


def test_the_options_are_none_of_the_configuration():
    arguments = parse(["--manifest=m", "--output=o", "--metrics_file=x", "--notify-command=y", "--log-format=json"])
    assert arguments.log_format == "json" and not hasattr(arguments.config, "metrics_file") and arguments.beam_args == []


def _configure_spans() -> None:
    """Has the program write its spans to the file that SPANS names, one object a line."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    file = open(os.environ["SPANS"], "w")  # noqa: SIM115
    exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@pytest.mark.slow
def test_a_run_records_spans_where_they_are_configured(arguments, tmp_path):
    env = {**os.environ, "SPANS": str(tmp_path / "spans")}
    program = start_program([*arguments, "--block-rows", "20"], env=env, before=_configure_spans)
    _, err = program.communicate(120)
    assert program.returncode == 0 and "detach" not in err, err
    spans = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    by_name: dict[str, list[dict]] = {}
    for span in spans:
        by_name.setdefault(span["name"].removeprefix("batchverify."), []).append(span)
    assert set(by_name) == {"run", "plan", "load", "encode", "compare", "write", "finish"}
    (run,), (plan,), (load,) = by_name["run"], by_name["plan"], by_name["load"]
    assert run["parent_id"] is None and load["parent_id"] == plan["context"]["span_id"]
    others = [span for span in spans if span not in (run, load)]
    assert {span["parent_id"] for span in others} == {run["context"]["span_id"]}
    assert (
        run["attributes"]["batchverify.run_id"] == json.loads((tmp_path / "out" / "_summary.json").read_text())["run"]["run_id"]
    )
    assert sum(span["attributes"]["batchverify.images"] for span in by_name["encode"]) == 10
    for name in ("compare", "write"):
        assert sum(span["attributes"]["batchverify.rows"] for span in by_name[name]) == 57 and len(by_name[name]) == 3
    assert all(run["start_time"] <= span["start_time"] <= span["end_time"] <= run["end_time"] for span in spans)


def test_a_span_of_what_fails_says_so_and_is_sent(arguments, tmp_path):
    env = {**os.environ, "SPANS": str(tmp_path / "spans")}
    program = start_program([*arguments, "--baseline", "none"], env=env, before=_configure_spans)
    assert program.wait(120) == 2
    plan, run = (json.loads(line) for line in (tmp_path / "spans").read_text().splitlines())
    assert [span["name"] for span in (plan, run)] == ["batchverify.plan", "batchverify.run"]
    assert plan["status"] == {"status_code": "ERROR", "description": "PreflightError"}
    assert "--baseline none does not exist" in plan["events"][0]["attributes"]["exception.message"]


def test_without_opentelemetry_a_span_is_nothing(monkeypatch):
    tracing._api.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with tracing.span("run", is_parent=True) as set_attribute:
        set_attribute("run_id", "x")
    tracing.flush_spans()
    tracing._api.cache_clear()
