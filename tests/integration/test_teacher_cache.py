"""KD with the teacher's hidden states kept on disk: the same run, and the teacher runs once for each answer."""

import pytest
import torch

from minillm.common.errors import ConfigError, DataError
from minillm.models import LanguageModel
from minillm.models.cached import CachedTeacher
from minillm.train.settings import check_config
from tests.conf.test_compose import composed
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 2, 2], [3, 4, 5, 6, 9]])
STATES = torch.tensor([1, 2, 6, 7, 10, 11, 12, 13])  # of rows 0, 1 and 2


def test_states_are_those_of_the_teacher_whatever_is_there(tmp_path, monkeypatch):
    teacher = LanguageModel(make_model())
    wanted, asked, real = teacher.states(IDS, STATES), [], teacher.states
    monkeypatch.setattr(teacher, "states", lambda *given: asked.append(given) or real(*given))
    first = CachedTeacher(teacher, tmp_path)
    torch.testing.assert_close(first.states(IDS[:2], STATES[:4]), wanted[:4])
    torch.testing.assert_close(first.states(IDS, STATES), wanted)  # a row that is new among those that are there
    assert first.made == 3 and len(asked) == 2
    assert torch.equal(CachedTeacher(teacher, tmp_path).states(IDS, STATES), first.states(IDS, STATES))
    assert len(asked) == 2
    # What stands behind a row's last place is another matter; the places themselves are not.
    padded = IDS.clone()
    padded[0, 3:] = 1
    assert torch.equal(first.states(padded, STATES), first.states(IDS, STATES)) and len(asked) == 2
    file = next(each for each in tmp_path.rglob("*") if each.is_file())
    file.write_bytes(file.read_bytes()[:-3])
    torch.testing.assert_close(first.states(IDS, STATES), wanted)
    assert first.made == 4
    # Another teacher finds nothing there.
    other = LanguageModel(make_model(seed=5))
    torch.testing.assert_close(CachedTeacher(other, tmp_path).states(IDS, STATES), other.states(IDS, STATES))


def test_a_run_reads_them_in_its_later_epochs_and_goes_on_bit_for_bit(tmp_path, supervised):
    options = [*supervised, "objective=kd", "regime.max_steps=8", "model.dtype=float64"]
    cached = [*options, f"data.teacher_cache={tmp_path}/cache"]
    plain, whole = train(tmp_path / "plain", options), train(tmp_path / "whole", cached)
    assert whole.module.teacher.made == 12  # each prompt once, in 8 steps of 4
    for name, weight in plain.module.state_dict().items():
        torch.testing.assert_close(whole.module.state_dict()[name], weight, rtol=0, atol=1e-12)
    with pytest.raises(Killed):
        train(tmp_path / "cut", cached, kill_after=5)
    train(tmp_path / "cut", cached, resume="auto")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_what_cannot_be(tmp_path, supervised):
    with pytest.raises(ConfigError, match=r"data.teacher_cache=x: .* wanted null, or regime=supervised"):
        check_config(composed("data.teacher_cache=x", "model.student=a/b", "model.teacher=c/d"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="data.teacher_cache: .* cannot be written"):
        train(tmp_path / "run", [*supervised, "objective=kd", f"data.teacher_cache={tmp_path}/file"])
