"""What stands in deploy/, tried as far as a machine without a cluster can."""

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

DEPLOY = Path(__file__).parent.parent / "deploy"
FIRST, SECOND = datetime.date(2026, 2, 28), datetime.date(2026, 3, 1)


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
    assert f"scores/dt={FIRST - datetime.timedelta(1)} does not exist: this run is compared with nothing" in log
    second = night(SECOND)
    assert second.returncode == 3 and "batchverify: exit code 3; see deploy/README.md." in second.stdout
    assert "gate not met: the drift of 50 scores" in second.stdout and f"against {site}/scores/dt={FIRST}" in second.stdout
    assert (site / "scores" / f"dt={SECOND}" / "_SUCCESS").exists()


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
