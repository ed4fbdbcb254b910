"""Turns each line of stdin into a line of JSON on stderr: `python stderr_records.py`.

It runs as a process of its own, so that nothing is lost where the process whose stderr it reads crashes. It ends when all
processes that write to it have ended.
"""

from __future__ import annotations

import datetime
import json
import re
import sys

# The letter of the level in a line of TensorFlow's log, before and after it is set up.
_LOG_LINE = re.compile(r"(?:([IWEF])\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) )")
_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}


def to_record(line: str) -> str:
    """Returns a line as JSON, in ASCII; one that is a JSON object already keeps its fields."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    return json.dumps(record if isinstance(record, dict) else _wrap(line))


def _wrap(line: str) -> dict[str, str]:
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found = _LOG_LINE.match(line)
    level = _LEVELS[found[1] or found[2]] if found else "WARNING"
    return {"time": time, "level": level, "logger": "stderr", "message": line}


def main() -> None:
    """Reads stdin to its end."""
    for data in sys.stdin.buffer:
        line = data.decode(errors="replace").rstrip()
        if line:
            sys.stderr.write(f"{to_record(line)}\n")
            sys.stderr.flush()


if __name__ == "__main__":
    main()
