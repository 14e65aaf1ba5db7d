"""Directories are there whole or as before: after failures, after a kill, where they are mount points or links."""

from pathlib import Path

import pytest

from minillm.common.files import vacant, whole_directory


def fill(directory, text="new"):
    with whole_directory(directory) as folder:
        (folder / "a").write_text(text)
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text(text)


def names(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.mark.parametrize("there", ["nothing", "empty", "full", "link"])
def test_a_directory_is_made_anew(tmp_path, there):
    target = tmp_path / "below" / "out"
    if there == "link":
        (tmp_path / "elsewhere").mkdir()
        target.parent.mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    elif there != "nothing":
        target.mkdir(parents=True)
    if there == "full":
        (target / "old").touch()
    assert vacant(target) == (there != "full")
    fill(target)
    assert names(target) == ["a", "b", "b/c"] and target.is_symlink() == (there == "link")
    assert [each.name for each in target.parent.iterdir()] == ["out"]


def test_an_empty_directory_stays_the_same_one(tmp_path):
    """A mount point cannot be renamed over, and nothing may be writable beside it."""
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_ino
    fill(tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == before


@pytest.mark.parametrize("there", ["nothing", "empty", "full"])
def test_a_failure_leaves_what_was_there(tmp_path, there):
    target = tmp_path / "out"
    if there != "nothing":
        target.mkdir()
    if there == "full":
        (target / "old").touch()
    before = names(tmp_path)
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), whole_directory(target) as folder:
            (folder / "a").touch()
            raise error
        assert names(tmp_path) == before


@pytest.mark.parametrize("there", ["nothing", "empty"])
def test_what_a_kill_left_is_removed_by_the_next(tmp_path, there):
    target = tmp_path / "out"
    if there == "empty":
        target.mkdir()
    manager = whole_directory(target)
    folder: Path = manager.__enter__()
    (folder / "half").touch()
    assert vacant(target)
    fill(target)
    assert names(tmp_path) == ["out", "out/a", "out/b", "out/b/c"]
