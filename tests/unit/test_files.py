"""Written whole or not at all, and what was there before stays."""

import fcntl
import os
import resource
import subprocess
import sys

import pytest

from minillm.common.errors import ConfigError
from minillm.common.files import keep_as, locked, whole_directory, write_whole


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "x.txt"
    write_whole(file, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(file, "new" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_keeping_a_file_under_a_second_name(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    keep_as(one, two)
    assert one.read_text() == two.read_text() == "a"

    def no_links(*args):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)  # as on FAT and some network disks
    one.unlink()
    one.write_text("c")
    keep_as(one, two)
    assert two.read_text() == "c" and not one.exists() and list(tmp_path.iterdir()) == [two]


def test_no_symbolic_link_leads_to_another_file(tmp_path):
    """A file, its temporary file, a lock and a temporary directory: what the links point to stays as it is."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "precious").touch()
    for name in ("a", f".b.{os.getpid()}", ".lock"):
        (tmp_path / name).symlink_to(victim)
    (tmp_path / ".out.new").symlink_to(folder)
    write_whole(tmp_path / "a", "new")
    write_whole(tmp_path / "b", "new")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"] and not (tmp_path / "a").is_symlink()
    with pytest.raises(ConfigError, match=r"\.lock: is a symbolic link"), locked(tmp_path / ".lock", print):
        pass
    with pytest.raises(FileExistsError), whole_directory(tmp_path / "out"):
        pass
    assert victim.read_text() == "precious" and [each.name for each in folder.iterdir()] == ["precious"]


def test_a_lock_is_held_until_its_process_dies(tmp_path):
    file, notes = tmp_path / ".lock", []
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    code = hold + "print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code, file], stdout=subprocess.PIPE)
    process.stdout.readline()

    def busy(note):
        notes.append(note)
        process.kill()

    with locked(file, busy) as lock, open(file) as other:
        assert notes == [file] and not os.get_inheritable(lock)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.wait()
    process.stdout.close()
