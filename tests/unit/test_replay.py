"""Decoding steps that are made once for any column, against steps that are made for each."""

import pytest
import torch

from minillm.models import LanguageModel, replay
from minillm.models.replay import ReplayedSteps
from minillm.rollout import decode
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import FAMILIES, make_pair

N = 28
OPTIONS = dict(stop_ids=(4,), pad_id=0, max_new_tokens=[24, 9, 13, 24, 3, 24, 17] * 4, batch_size=4, alpha=0.3)
SAME = ("student_logprobs_BR", "teacher_logprobs_BR", "teacher_hidden_BRH")


def answers(pair, **more):
    batch = prompt_batch([PROMPTS[row % 3] for row in range(N)])
    return decode(LanguageModel(pair.student), pair.teacher, batch, seeds=list(range(N)), **OPTIONS | more)


def replayed(monkeypatch, pair, capture, **more):
    """The answers by steps that `capture` makes, on a machine without a GPU; and those steps."""
    made = []

    def steps(model, cache):
        made.append(ReplayedSteps(model, cache, lambda ids, starts: model.next_hidden(ids, starts, cache), capture))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "steps", steps)
        patch.setattr(replay, "COLUMNS", 4)
        return answers(pair, **more), made


def assert_same(one, other):
    assert torch.equal(one.response_ids_BR, other.response_ids_BR)
    for name in SAME:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-9)


@pytest.mark.some(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_for_any_column_give_the_answers_of_steps_for_one(family, monkeypatch, capsys):
    """Rows that end, rows that come in their place, columns that move to the front."""
    pair, fronts = make_pair(family), []
    move = replay.RollingCache._to_front
    monkeypatch.setattr(replay.RollingCache, "_to_front", lambda cache: fronts.append(cache.end) or move(cache))
    plain = answers(pair)
    assert fronts
    ours, made = replayed(monkeypatch, pair, lambda forward: forward)
    assert_same(ours, plain)
    for steps in made:
        windows = [window for window, again in steps.made.items() if again]
        assert len(windows) > 3 and len({window.rows for window in windows}) > 1 and steps.compared
    assert "without CUDA graphs" not in capsys.readouterr().out


def test_a_step_that_repeats_its_old_column_is_noticed(monkeypatch, capsys):
    def capture(forward):
        result = forward()
        return lambda: result

    pair = make_pair()
    ours, made = replayed(monkeypatch, pair, capture)
    assert_same(ours, answers(pair))
    assert not any(steps.model.replay or steps.made for steps in made)
    said = capsys.readouterr().out
    assert (
        said.count("llama: decoding without CUDA graphs from now on, which is slower. Cause: hidden states differ") == 2
    )


def test_where_nothing_can_be_captured_the_plain_steps_go_on(monkeypatch, capsys):
    def capture(forward):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    pair = make_pair()
    ours, _ = replayed(monkeypatch, pair, capture)
    assert_same(ours, answers(pair))
    assert "slower. Cause: operation not permitted when stream is capturing" in capsys.readouterr().out


def test_a_cpu_makes_plain_steps():
    model = LanguageModel(make_pair().student)
    assert not isinstance(model.steps(replay.RollingCache(2, 3, 4, refills=False)), ReplayedSteps)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_weights_under_autocast_keep_their_replayed_steps(family, monkeypatch, capsys):
    """Rotary families give float32 keys there; the cache is as wide as attention's products."""
    with torch.autocast("cpu", torch.bfloat16):
        pair = make_pair(family, dtype=torch.float32)
        ours, made = replayed(monkeypatch, pair, lambda forward: forward, max_new_tokens=8, batch_size=N)
    assert "without CUDA graphs" not in capsys.readouterr().out
    for steps in made:
        assert steps.compared and any(steps.made.values())
        assert {each.dtype for layer in steps.cache.layers for each in (layer.keys, layer.values)} == {torch.bfloat16}
    assert ours.student_logprobs_BR[ours.response_mask_BR].isfinite().all()


def test_rows_within_a_window_are_replayed_and_longer_ones_are_not():
    model = LanguageModel(make_pair("mistral").student)
    model.windows = [8]
    short, long = (replay.RollingCache(2, 3, n, refills=False) for n in (5, 6))
    assert model._plain_mask(short) and not model._plain_mask(long)


def test_memory_that_runs_out_is_no_lack_of_graphs(monkeypatch):
    def capture(forward):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        replayed(monkeypatch, make_pair(), capture)


def test_a_factor_on_replayed_steps_is_noticed_in_a_half_type(monkeypatch, capsys):
    pair = make_pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        replayed(monkeypatch, pair, lambda forward: lambda: forward() * 1.04, max_new_tokens=8, batch_size=N)
    assert "without CUDA graphs" in capsys.readouterr().out
