"""Written whole or not at all, and what was there before stays."""

import os
import resource

import pytest

from minillm.common.files import keep_as, write_whole


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
