"""A checkpoint that is cut or has a flipped bit is recognised and named; the one before it is taken."""

import errno
import os
import resource

import pytest
import torch

from minillm.common import saved
from minillm.common.errors import ModelError, StorageError
from minillm.common.saved import damage, differences, load_saved, newest_good
from minillm.train.directory import CheckpointFile


def content(step=3):
    torch.manual_seed(step)
    return {
        "state_dict": {"student.w": torch.randn(64, 32), "student.b": torch.randn(7)},
        "minillm": {"step": step},
        "callbacks": {"Checkpoints": {"best": None}},
    }


def write(file, step=3):
    CheckpointFile().save_checkpoint(content(step), file)
    return file


def equal(one, other):
    return one["minillm"] == other["minillm"] and all(
        torch.equal(one["state_dict"][name], value) for name, value in other["state_dict"].items()
    )


def test_a_whole_file_is_not_damaged_and_reads_as_it_was_written(tmp_path):
    file = write(tmp_path / "last.ckpt")
    assert damage(file) is None and equal(load_saved(file), content())
    assert equal(CheckpointFile().load_checkpoint(file), content())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_damaged(tmp_path, share):
    file = write(tmp_path / "last.ckpt")
    os.truncate(file, int(share * file.stat().st_size))
    assert damage(file) is not None


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """Every 29th byte, one bit each: what is not found lies in what fills the archive up."""
    file = write(tmp_path / "last.ckpt")
    whole, found, flipped = file.read_bytes(), 0, 0
    for place in range(0, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        flipped += 1
        if damage(file) is not None:
            found += 1
        else:
            assert equal(load_saved(file), content()), place
    assert found > 0.7 * flipped


def test_the_newest_good_one_is_taken_and_the_bad_one_named_and_put_away(tmp_path, capsys):
    assert newest_good(tmp_path) is None
    write(tmp_path / "last.ckpt", 4)
    write(tmp_path / "previous.ckpt", 2)
    assert newest_good(tmp_path) == tmp_path / "last.ckpt" and not capsys.readouterr().out
    os.truncate(tmp_path / "last.ckpt", 900)
    assert newest_good(tmp_path) == tmp_path / "previous.ckpt"
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING" in said and "last.ckpt is damaged" in said and "goes on from" in said
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt.damaged", "previous.ckpt"}
    assert newest_good(tmp_path) == tmp_path / "previous.ckpt"  # killed again before the next one was written
    assert "last.ckpt is gone" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("reader", ["zipfile.ZipFile", "torch.load"])
def test_a_file_that_cannot_be_read_now_is_not_put_away(tmp_path, monkeypatch, code, reader):
    """An older one, whole or not, is no reason to go on from it either."""
    write(tmp_path / "last.ckpt", 4)
    (tmp_path / "previous.ckpt").write_bytes(b"")

    def fails(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(f"minillm.common.saved.{reader}", fails)
        with pytest.raises(
            StorageError, match=rf"last.ckpt cannot be read \({os.strerror(code)}\).*nothing was changed"
        ):
            newest_good(tmp_path)
        if reader == "torch.load":
            with pytest.raises(StorageError, match="cannot be read"):
                load_saved(tmp_path / "last.ckpt")
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert newest_good(tmp_path) == tmp_path / "last.ckpt"


def test_memory_that_cannot_be_mapped_is_no_damage(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("unable to mmap 8192 bytes from file <last.ckpt>: Cannot allocate memory (12)")

    monkeypatch.setattr(saved.torch, "load", fails)
    with pytest.raises(StorageError, match="Cannot allocate memory"):
        damage(write(tmp_path / "last.ckpt"))


def test_all_damaged_is_an_error_that_names_each(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "previous.ckpt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(ModelError) as caught:
        newest_good(tmp_path)
    text = str(caught.value)
    assert "last.ckpt is empty" in text and "previous.ckpt is damaged" in text and "another run.name" in text
    assert (tmp_path / "last.ckpt").exists()


def test_no_code_runs_in_a_checkpoint(tmp_path):
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    torch.save(content() | {"extra": Bad()}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_saved(tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match="more than plain tensors"):  # also where Lightning is asked to run it
        CheckpointFile().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not ran.exists()


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    """A limit on file sizes, as a quota sets it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(tmp_path / "x.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_differences_in_names_and_shapes():
    mine = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert differences(mine, mine) == ""
    assert differences(mine, {"a": torch.zeros(3, 3), "c": torch.zeros(1)}) == (
        "1 weights missing (c), 1 weights unknown (b), 1 weights of another shape (a [2, 3] instead of [3, 3])"
    )


def test_code_in_a_checkpoint_is_refused_without_torchs_advice(tmp_path):
    class Own:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save(Own(), tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match="it holds more than plain tensors") as caught:
        load_saved(tmp_path / "last.ckpt")
    assert "weights_only" not in str(caught.value) and "weights_only" not in damage(tmp_path / "last.ckpt")
