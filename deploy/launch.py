"""What the launcher of the Flex Template runs: the template's parameters become batchverify's arguments.

Parameters have underscores where batchverify's options have hyphens, and a value where they are flags. Two more things are
done to them, as Cloud Scheduler sends the same parameters every night: {day} and {day_before} stand for the day of the
parameter `day`, today in UTC without it, and for the day before; and the workers get this very image.
"""

import datetime
import os
import re
import sys
from collections.abc import Sequence

from batchverify.cli.job import run_as_process
from batchverify.cli.options import make_parser


def arguments(parameters: Sequence[str], image: str | None, today: datetime.date) -> list[str]:
    """Returns batchverify's arguments for `--name=value` parameters; what has no value is passed on as it is."""
    found = [parameter for parameter in parameters if "=" not in parameter]
    given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
    said = given.pop("--day", "today")
    day = today if said == "today" else datetime.date.fromisoformat(said)
    days = {"{day}": str(day), "{day_before}": str(day - datetime.timedelta(1))}
    if image:
        given.setdefault("--sdk_container_image", image)
    is_flag = {option: action.nargs == 0 for action in make_parser()._actions for option in action.option_strings}
    for name, value in given.items():
        ours = name.replace("_", "-")
        option = ours if ours in is_flag else name  # Beam's have underscores
        if not is_flag.get(option):
            found.append(f"{option}={re.sub('|'.join(days), lambda word: days[word[0]], value)}")
        elif value == "true":
            found.append(option)
    return found


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:], os.environ.get("BATCHVERIFY_IMAGE"), datetime.datetime.now(datetime.UTC).date())
    run_as_process()
