"""The night's job under Airflow 3: one task a day, which scores into `dt=DAY` and compares with the day before.

The environment of the workers sets PAIRS, SCORES, MODEL and PYTHON, as for `nightly.sh`. That script lies beside this file, or
NIGHTLY is its path; it also makes the page of all nights again, `_nights.html` in SCORES. PYTHON is the interpreter of
batchverify's own environment, not Airflow's.
"""

import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

NIGHTLY = os.environ.get("NIGHTLY", str(Path(__file__).with_name("nightly.sh")))
ON_CALL = os.environ.get("ON_CALL")
# Another try would end in the same way, so these exit codes fail the task at once. Airflow tries again after all others.
FINAL = {
    2: "refused before anything ran: manifest, model, baseline or an option; the log says which",
    3: "done and written, but a gate is not met: look at the scores before anybody uses them",
}


def run_night(day: str) -> int:
    """Scores a day and returns the exit code; where Airflow stops the task, the job is stopped, too, and cleans up first.

    At its time limit Airflow raises an exception. A task that is cleared gets SIGTERM, and SIGKILL five seconds later.
    """
    # Somebody who clears a task wants its day scored again.
    night = subprocess.Popen([NIGHTLY, "--overwrite"], env={**os.environ, "DAY": day})
    earlier = signal.signal(signal.SIGTERM, lambda *_: night.terminate())
    try:
        return night.wait()
    except BaseException:
        night.terminate()
        night.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


@dag(
    dag_id="batchverify",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=15),
        "execution_timeout": timedelta(hours=18),
        "on_failure_callback": [SmtpNotifier(to=ON_CALL, subject="batchverify failed for {{ ds }}")] if ON_CALL else [],
    },
)
def batchverify():
    @task
    def score(day: str) -> None:
        code = run_night(day)
        if code in FINAL:
            raise AirflowFailException(f"exit code {code}: {FINAL[code]}")
        if code:
            why = "the manifest is not there yet" if code == 75 else "the run failed, and left nothing"
            raise RuntimeError(f"exit code {code}: {why}; Airflow tries again")

    score("{{ ds }}")


batchverify()
