"""What the launcher of the Flex Template runs: it turns the template's parameters into batchverify's arguments.

A parameter has one value, even where batchverify's option is a flag or takes two values, which a comma separates. Cloud
Scheduler sends the same parameters every night, so {day} stands for the day of the parameter `day`, or today in UTC, and
{day_before} for the day before it. The workers get the same image as the launcher.
"""

import datetime
import os
import re
import sys
from collections.abc import Sequence

from batchverify.cli.job import make_parser
from batchverify.cli.main import run_as_process


def arguments(parameters: Sequence[str], image: str | None, today: datetime.date) -> list[str]:
    """Returns batchverify's arguments for `--name=value` parameters. A parameter without a value is passed on as it is."""
    converted = [parameter for parameter in parameters if "=" not in parameter]
    values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
    day_of_run = values.pop("--day", "today")
    day = today if day_of_run == "today" else datetime.date.fromisoformat(day_of_run)
    days = {"{day}": str(day), "{day_before}": str(day - datetime.timedelta(1))}
    if image:
        values.setdefault("--sdk_container_image", image)
    number_of_values = {option: action.nargs for action in make_parser()._actions for option in action.option_strings}
    for name, value in values.items():
        number = number_of_values.get(name.replace("_", "-"))
        if number == 2:
            converted += [name.replace("_", "-"), *value.split(",", 1)]
        elif number != 0:
            converted.append(f"{name}={re.sub('|'.join(days), lambda word: days[word[0]], value)}")
        elif value == "true":
            converted.append(name)
    return converted


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:], os.environ.get("BATCHVERIFY_IMAGE"), datetime.datetime.now(datetime.UTC).date())
    run_as_process()
