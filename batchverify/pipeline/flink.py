"""Jobs on a Flink cluster, through Flink's own REST interface: Beam's job server for Flink does not cancel a batch job."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from batchverify.errors import RunError

_ENDED = ("CANCELED", "FAILED", "FINISHED")
_ANSWER_S, _POLL_S = 5.0, 0.2


def cancel_flink_job(master: str, name: str, within_s: float) -> None:
    """Cancels a job, and waits until none of its tasks runs.

    Args:
        master: The URL of Flink's REST interface, such as http://localhost:8081.
        name: The name of the job, which Beam's job server chooses.
        within_s: The longest time in seconds to wait.

    Raises:
        RunError: If the job is not on the cluster, or still runs after that time.
        OSError: If the cluster does not answer.
    """
    # See https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/
    jobs = [job["jid"] for job in _ask(f"{master}/jobs/overview")["jobs"] if job["name"] == name]
    if not jobs:
        raise RunError(f"Flink at {master} has no job {name}.")
    for job in jobs:
        _ask(f"{master}/jobs/{job}?mode=cancel", "PATCH")
    deadline = time.monotonic() + within_s
    while any(_ask(f"{master}/jobs/{job}")["state"] not in _ENDED for job in jobs):
        if time.monotonic() > deadline:
            raise RunError(f"job {name} still runs {within_s:g} s after it was cancelled.")
        time.sleep(_POLL_S)


def _ask(url: str, method: str = "GET") -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=_ANSWER_S) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
