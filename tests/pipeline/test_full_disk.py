"""A temporary folder without space, and a limit on the size of files: a sentence that names the cause."""

import os
import resource
import signal

import pytest

from tests.support.processes import start_program

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def limit_files_to(size: int):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_files() -> None:
    """Limits the size of files to less than that of the demo model, which is the full disk that a test can have."""
    limit_files_to(50_000)


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_a_copy_of_a_model_without_space_is_no_damaged_model(option, demo, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    arguments = ["--manifest", demo / "demo.csv", "--output", tmp_path / "out", *option]
    process = start_program(arguments, environment, before=limit_files)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert f"it cannot be copied to the temporary folder {tmp_path} (File too large); free space there, or set TMPDIR" in said
    assert "damaged" not in said and "Traceback" not in said


def test_a_temporary_folder_in_which_no_folder_can_be_made_is_named(demo, tmp_path):
    # Python takes the temporary folder that a program sets without a look at it.
    process = start_program(
        ["--manifest", demo / "demo.csv", "--output", tmp_path / "out"],
        before=make_no_temporary_folder,
    )
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "no temporary folder can be made (" in said and "set TMPDIR" in said and "Traceback" not in said


def make_no_temporary_folder() -> None:
    import tempfile

    tempfile.tempdir = "/proc/none"
