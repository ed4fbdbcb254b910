"""A folder in the user's cache: what is written is read again, what somebody else can write is not, and its size is bounded."""

import os
from pathlib import Path

import pytest

from batchverify.io.private_folder import private_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchverify" / "things"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_written_is_read_by_this_user_alone(home):
    with private_folder("things", 100) as folder:
        assert folder.read("one") is None
        assert folder.write("one", b"1" * 10) and folder.write("one", b"2" * 20)
        assert folder.read("one") == b"2" * 20
    assert {path.stat().st_mode & 0o777 for path in (home, home.parent)} == {0o700}
    assert (home / "one").stat().st_mode & 0o777 == 0o600 and names(home) == {"one"}


def test_files_that_were_not_used_for_longest_make_room(home):
    with private_folder("things", 100) as folder:
        for age, name in enumerate(["new", "used", "old"]):
            folder.write(name, b"x" * 30)
            os.utime(home / name, (1e9 - age, 1e9 - age))
        os.utime(home / "used", (1, 1))
        folder.read("used")
        folder.write("next", b"x" * 60)
        assert names(home) == {"used", "next"}
        assert not folder.write("too large", b"x" * 101) and names(home) == {"used", "next"}


@pytest.mark.parametrize("path", ["", "things"])
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_is_open_to_others_is_not_used(home, path, mode):
    home.mkdir(parents=True, mode=0o700)
    home.parent.chmod(0o700)
    (home.parent / path).chmod(mode)
    with pytest.raises(PermissionError, match="open to other users"), private_folder("things", 100):
        pass


def test_a_link_is_no_folder(home, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    home.parent.mkdir(parents=True, mode=0o700)
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), private_folder("things", 100):
        pass


def test_a_file_that_others_can_write_and_a_link_are_not_read(home, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    with private_folder("things", 100) as folder:
        folder.write("open", b"x")
        (home / "open").chmod(0o666)
        (home / "link").symlink_to(tmp_path / "secret")
        os.mkfifo(home / "pipe", 0o600)
        for name in ("open", "link", "pipe"):
            with pytest.raises(OSError):
                folder.read(name)


@pytest.mark.parametrize("home_folder", ["relative", ""])
def test_without_an_absolute_path_the_cache_is_in_the_home_folder(home_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", home_folder)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    with private_folder("things", 100):
        assert (tmp_path / "me" / ".cache" / "batchverify" / "things").is_dir()
