"""The time of a run: its pieces are counted by hand here, and measured by a clock of our own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minillm.data import Record, Sources
from minillm.models import LanguageModel
from minillm.objectives import PretrainLoss
from minillm.rollout import Sampler
from minillm.train.preview.begin import first_answers
from minillm.train.preview.time import Pace, mean_length, seconds_of, time_line
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.start import SupervisedStart
from tests.tiny import WORDS, make_pair

PAIR = make_pair()
STUDENT, TEACHER, UPDATE = Pace(read=1, step=100, token=10), Pace(read=2, step=200, token=20), 1000
RECORDS = [Record(f"r:{i}", f"{WORDS[i]} {WORDS[i + 1]}", references=("the of",)) for i in range(16)]
TRAIN, VALIDATION = Sources(template="chat", val_size=1).prompts(RECORDS[:10], RECORDS[10:14], PAIR)  # 5 and 3 tokens
REGIME = OnPolicy(rollouts=4, minibatch_size=2, inner_epochs=3, max_steps=13)  # 3 rollouts of 6 steps


def seconds(*, regime=REGIME, check=None, length=float, devices=1, **groups):
    settings = SimpleNamespace(
        regime=regime, callbacks={"validation": check}, data=Sources(block_size=7),
        strategy=SimpleNamespace(data_parallel_size=devices),
        **dict(sampler=Sampler(alpha=0.2, max_new_tokens=8, batch_size=2), start=SupervisedStart(),
               regulariser=PretrainLoss(enabled=False)) | groups,
    )  # fmt: skip
    return seconds_of(settings, STUDENT, TEACHER, UPDATE, TRAIN, VALIDATION, length)


def test_rollouts_read_prompts_and_make_steps_of_the_batch():
    assert len(TRAIN.prompt_ids[0]) == 5 and len(TRAIN.reference_ids[0]) == 3
    # A rollout: 4 prompts of 5 tokens, 4 answers of 8, two at a time: 16 steps.
    assert STUDENT.answers(4, 2, 5, 8, 8) == 4 * 5 + 4 * 8 * 10 + 16 * 100
    found = seconds()
    assert found == {"rollouts": 3 * (1 + 2) * (20 + 320 + 1600), "updates": 13 * 2 * (5 + 8) * 1000}
    alone = seconds(sampler=Sampler(alpha=0, max_new_tokens=8, batch_size=2))  # the teacher reads what was answered
    assert alone["rollouts"] == 3 * ((20 + 320 + 1600) + 4 * (5 + 8) * 2)
    assert seconds(devices=2) == {name: value / 2 for name, value in found.items()}


def test_the_last_answers_of_a_batch_are_longer_than_the_mean():
    assert STUDENT.answers(2, 2, 0, 4, 100) == pytest.approx(2 * 4 * 10 + 4 * 1.5 * 100, rel=0.02)
    assert STUDENT.answers(2, 2, 0, 4, 5) == 2 * 4 * 10 + 5 * 100


def test_start_corpus_validation_and_given_answers_count():
    start = SupervisedStart(steps=2, minibatch_size=4)
    more = seconds(start=start, regulariser=PretrainLoss(batch_size=3))
    assert more["rollouts"] == seconds()["rollouts"] + 2 * 2 * (20 + 320 + 1600)  # the teacher's answers alone
    assert more["updates"] == ((13 * 2 + 2 * 4) * (5 + 8) + 13 * 3 * 7) * 1000
    check = SimpleNamespace(every=6, max_new_tokens=8, batch_size=2, greedy=False)  # at the start, at 6, 12 and 13
    (prompts, answers, references) = 5 * 1, 8 * 10 + 8 * 100, 3
    scored = (5 + 8) * (1 + 2) + (5 + references) * 1
    once = seconds(check=check)["validation"]
    assert once == 4 * (prompts + answers + scored) + 2 * (prompts + answers)
    check.greedy = True
    assert seconds(check=check)["validation"] == once + 4 * (prompts + answers)
    supervised = Supervised(minibatch_size=4, microbatch_size=2, epochs=None, max_steps=3)
    assert seconds(regime=supervised) == {"updates": 3 * 4 * (5 + 3) * 1000}


def test_the_mean_length_is_that_of_answers_that_end_as_often():
    student = LanguageModel(PAIR.student, PAIR.n_vocab)
    answers = first_answers(student, PAIR, TRAIN, 0, 32)
    assert answers.records_B.tolist() == sorted({*answers.records_B.tolist()}, key=answers.records_B.tolist().index)
    mask = torch.ones(2, 5, dtype=torch.bool)
    ids = torch.full((2, 5), 1)
    given = replace(answers, response_ids_BR=ids, response_mask_BR=mask)
    assert mean_length(given, (0,), 64) == 64
    ids[0, 4] = 0  # one end in 10 tokens: 1 + 0.9 + 0.81
    assert mean_length(given, (0,), 3) == pytest.approx(2.71)


def test_a_pace_is_what_the_model_takes(monkeypatch):
    """By a clock of which reading takes 8 and 4 more for each prompt, and a step 10 and 2 more for each row."""
    clock, read, step = [0.0], LanguageModel.hidden, LanguageModel.next_hidden

    def reading(self, ids_BP, *rest):
        clock[0] += 8 + 4 * len(ids_BP)
        return read(self, ids_BP, *rest)

    def stepping(self, ids_B, *rest, **named):
        clock[0] += 10 + 2 * len(ids_B)
        return step(self, ids_B, *rest, **named)

    monkeypatch.setattr(LanguageModel, "hidden", reading)
    monkeypatch.setattr(LanguageModel, "next_hidden", stepping)
    monkeypatch.setattr("minillm.common.machine.Phases.now", lambda self: clock[0])
    student = LanguageModel(PAIR.student, PAIR.n_vocab)
    assert Pace.of(student, TRAIN, (0, 1, 2), 8) == Pace(read=20 / 15, step=10, token=2)
    assert Pace.of(student, TRAIN, (0,), 1) == Pace(read=12 / 5, step=12, token=0)


def test_the_line_gives_two_digits_and_the_longest_case_where_it_is_much_longer():
    likely = {"rollouts": 300.0, "updates": 100.0}
    assert time_line(likely, likely) == "about 6.7 min (rollouts 75%, updates 25%)"
    assert time_line(likely, {"rollouts": 5000.0}).endswith("; 1.4 h if no answer ends before its limit")
