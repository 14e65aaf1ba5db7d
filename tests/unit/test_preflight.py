"""The facts of a run before its first step: against hand counts and full logits; what is warned of; the page."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minillm.common.numbers import millions
from minillm.common.seeding import row_uniforms, seed_for
from minillm.data import Corpus, Record, Sources, rows_at
from minillm.models import LanguageModel, Lora, ModelPair, pair_of, solo
from minillm.objectives import PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.planning import Memory
from minillm.rollout import Sampler
from minillm.train.optim import Optim
from minillm.train.preview.begin import agreement, first_answers
from minillm.train.preview.page import page_of, parameters_of
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.start import SupervisedStart
from tests.tiny import WORDS, make_model, make_tokenizer

RECORDS = [
    Record(f"r:{i}", f"{WORDS[i]} {WORDS[i + 3]}", references=(" ".join(WORDS[i : i + 1 + i % 6]),)) for i in range(12)
]
VALIDATION = [Record("v:1", "fish bird", references=("tree",))]
SAMPLER = Sampler(alpha=0.2, max_new_tokens=6, batch_size=3)
MEMORY = Memory({"student": 2e-5, "teacher": 3e-5, "caches": 1e-5}, {"student": 2e-5, "teacher": 3e-5})
START = SupervisedStart()
REGIME = OnPolicy(rollouts=4, minibatch_size=2, microbatch_tokens=64, inner_epochs=3, max_steps=15)


def gathered(pair, *, records=RECORDS, validation=VALIDATION, corpus=None, answered=False, monitor="rouge_l",
             regime=REGIME, start=START, warmup_steps=0, **sources):  # fmt: skip
    """The page of a run, and its training prompts."""
    sources = Sources(**dict(template="chat", max_prompt_tokens=30, max_response_tokens=5) | sources)
    prompts = sources.prompts(records, validation, pair, answered=answered)
    memory = MEMORY if pair.teacher else Memory({}, {"student": 2e-5, "activations": 1e-5})
    callbacks = {"record": SimpleNamespace(export="best"), "checkpoints": SimpleNamespace(monitor=monitor)}
    settings = SimpleNamespace(
        model=ModelPair("s", "t"), data=sources, sampler=SAMPLER, regulariser=PretrainLoss(batch_size=3), regime=regime,
        start=start, optim=Optim(warmup_steps=warmup_steps), linear_loss=LinearLoss(), callbacks=callbacks,
    )  # fmt: skip
    return page_of(settings, pair, *prompts, corpus, memory), prompts[0]


@pytest.fixture(scope="module")
def pair():
    """Heads of 40 and 36 rows; the teacher's tokenizer knows one more token, behind them."""
    known = tuple(f"t{i}" for i in range(5))
    student, teacher = make_model(vocabulary=40, seed=1, layers=1), make_model(vocabulary=36, seed=2)
    return pair_of(student, teacher, make_tokenizer(known), make_tokenizer((*known, "added")))


@pytest.fixture(scope="module")
def found(pair):
    return gathered(pair)[0]


def test_parameters_and_vocabulary_are_counted(pair, found):
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32  # q and o, k and v, feed-forward, norms
    sizes = 2 * 40 * 32 + layer + 32, 2 * 36 * 32 + 2 * layer + 32
    assert parameters_of(pair.student) == (sizes[0], sizes[0]) and parameters_of(pair.teacher.network) == (sizes[1], 0)
    assert found.sides["parameters"] == [f"{millions(sizes[0])}, all trained", f"{millions(sizes[1])}, frozen"]
    assert found.sides["model"] == ["llama, 1 layers, float64 on cpu", "llama, 2 layers, float64 on cpu"]
    assert found.sides["tokens"] == ["36 in 40 rows, 4 cut", "37 in 36 rows"]
    same = "36 rows, the same token in each; tokens beyond them that differ: 1; an answer stops at id 0"
    assert found.lines["vocabulary"] == same


def test_prompts_and_references_are_counted(pair):
    long = Record("l", " ".join(WORDS * 2), references=("the",))
    held_out = Record("h", "fish bird", references=("the",))
    found, _ = gathered(pair, records=[*RECORDS, long, held_out, Record("n", "the")])
    # Tokens of the longest: user, two words, </s>, assistant. Answers have 1 to 6 words and an end: those of 5 and 6
    # words exceed 5 tokens.
    assert found.lines["training"] == (
        "13 of 15 prompts, the longest 5 tokens; dropped: 1 also a validation prompt, 1 longer than 30 tokens; "
        "12 with a reference, 4 of them too long and cut"
    )
    assert found.lines["validation"].startswith("1 of 1 prompts")


def test_steps_rollouts_and_passes(pair):
    found, _ = gathered(pair, start=SupervisedStart(steps=5, minibatch_size=2))
    # 6 steps a rollout: 15 are in the third. 3 rollouts of 4 prompts; those of the start are not counted.
    assert found.lines["steps"].startswith("5 supervised, then 15 optimizer steps of 2 answers, in 3 rollouts of 4: 12")
    assert found.lines["steps"].endswith("; 1 passes over the prompts")


def by_hand(pair, prompts, seed, longest):
    """Row by row and token by token with the networks' own logits: mean reverse and forward KL, and tokens."""
    student, teacher = pair.student, pair.teacher.network
    sums, n_tokens = torch.zeros(2, dtype=torch.float64), 0
    for row in rows_at(seed_for(seed, "preflight prompts"), 0, 8, len(prompts)):
        ids = list(prompts.prompt_ids[row])
        for u in row_uniforms([seed_for(seed, "preflight", row)], longest)[0]:
            q, p = (each(torch.tensor([ids])).logits[0, -1, : pair.n_vocab].softmax(-1) for each in (student, teacher))
            sums += torch.stack([(q * (q / p).log()).sum(), (p * (p / q).log()).sum()])
            n_tokens += 1
            ids.append(int((q.cumsum(0) <= u).sum()))
            if ids[-1] in pair.stop_ids:
                break
    return (*(sums / n_tokens).tolist(), n_tokens)


def agreed(pair, prompts, *, seed, max_new_tokens, max_tokens):
    student = LanguageModel(pair.student, pair.n_vocab)
    answers = first_answers(student, pair, prompts, seed, max_new_tokens)
    return agreement(student, pair.teacher, answers, max_tokens=max_tokens)


@torch.no_grad()
def test_the_agreement_is_exact_kl_on_the_students_own_samples(pair):
    _, prompts = gathered(pair)
    for seed, limit in ((0, 6), (3, 100)):
        found = agreed(pair, prompts, seed=seed, max_new_tokens=limit, max_tokens=64)
        reverse, forward, n_tokens = by_hand(pair, prompts, seed, min(limit, 32))
        assert found == (pytest.approx(reverse, rel=1e-9), pytest.approx(forward, rel=1e-9), 8, n_tokens)
        assert abs(reverse - forward) > 0.01


def test_the_agreement_with_itself_is_perfect_and_leaves_random_states_alone():
    same = pair_of(make_model(), make_model(), make_tokenizer(), make_tokenizer())
    _, prompts = gathered(same)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    modes = same.student.training, [each.requires_grad for each in same.student.parameters()]
    found = agreed(same, prompts, seed=0, max_new_tokens=6, max_tokens=64)
    assert found[0] == pytest.approx(0, abs=1e-12) == found[1]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    assert modes == (same.student.training, [each.requires_grad for each in same.student.parameters()])


def test_a_pair_that_does_not_agree_is_named(pair):
    def warned(reverse_kl, forward_kl):
        page, _ = gathered(pair)
        page.add_agreement(reverse_kl, forward_kl, 8, 40, n_vocab=36)
        return page.warnings

    limit = math.log(36)
    assert not warned(limit, 0.1)
    (high,) = warned(limit + 0.1, 0.1)
    assert "reverse KL is 3.68 nats a token, wanted at most log(vocabulary) = 3.58" in high and "wrong template" in high
    (broken,) = warned(0.1, math.nan)
    assert broken.startswith("forward KL is nan nats a token") and "model.dtype" in broken


def corpus(blocks):
    return Corpus(np.zeros((blocks, 8), dtype=np.int32))


def test_nothing_is_warned_of_without_cause(pair, found):
    assert found.warnings == [] == gathered(pair, corpus=corpus(4))[0].warnings


NO_ANSWERS = [replace(record, references=()) for record in RECORDS]
LONG = [Record(f"l:{i}", " ".join(WORDS * 2)) for i in range(4)]
SUPERVISED = Supervised(minibatch_size=4, microbatch_size=2, max_steps=9, epochs=None)
LEARNS = SupervisedStart(steps=1, minibatch_size=2, responses="reference")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"records": [*RECORDS, *LONG]}, "4 of 16 prompts are dropped: change data.max_prompt_tokens."),
        ({"start": LEARNS}, "4 of 12 training references are cut at data.max_response_tokens or max_tokens"),
        ({"records": RECORDS[:3]}, "3 training prompts for rounds of 4: some come several times in each"),
        ({"records": RECORDS[:3]}, "more prompts or a smaller regime.rollouts"),
        (
            {"records": [*RECORDS, *NO_ANSWERS[:4]], "regime": SUPERVISED, "answered": True, "max_response_tokens": 9},
            "4 of 16 prompts are dropped: change the file: its rows need an answer (key output",
        ),
        ({"records": RECORDS[:3], "regime": SUPERVISED}, "3 training prompts for optimizer steps of 4"),
        ({"records": RECORDS[:3], "regime": SUPERVISED}, "more prompts or a smaller regime.minibatch_size"),
        ({"warmup_steps": 15}, "optim.warmup_steps=15: the run has 15 optimizer steps, so that the learning rate"),
        ({"corpus": corpus(3)}, "The corpus has 3 blocks for optimizer steps of 3: each reads all of it"),
    ],
)
def test_what_deserves_a_second_look(pair, options, text):
    found, _ = gathered(pair, **options)
    assert [text in each for each in found.warnings] == [True]


def test_too_little_memory_is_told_with_what_to_lower(pair, monkeypatch):
    monkeypatch.setattr("minillm.train.preview.page.usable_memory", lambda device: 1e-6)
    (text,) = gathered(pair)[0].warnings
    assert "GB are needed and 0.0 are there: lower regime.microbatch_tokens" in text
    (text,) = gathered(pair, regime=SUPERVISED, max_response_tokens=9)[0].warnings
    assert "lower regime.microbatch_size" in text
    assert not any(key in text for key in ("rollouts", "sampler", "microbatch_tokens", "teacher"))


def test_a_teacher_smaller_than_its_student_is_told():
    """Adapters of the student do not count: a model may teach itself."""
    large, small = make_model(layers=2), make_model(layers=1)
    tokenizers = make_tokenizer(), make_tokenizer()
    (text,) = gathered(pair_of(large, small, *tokenizers))[0].warnings
    sizes = [sum(each.numel() for each in model.parameters()) for model in (small, large)]
    assert f"The teacher has {sizes[0]:,} parameters, the student {sizes[1]:,}: " in text and "wrong way round" in text
    assert gathered(pair_of(make_model(), make_model(), *tokenizers))[0].warnings == []
    adapted = make_model()
    Lora(rank=4).onto(adapted, base="none")
    assert gathered(pair_of(adapted, make_model(), *tokenizers))[0].warnings == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (16, "1 optimizer steps of 32 answers; 2 passes over the prompts |"),
        (64, "2 optimizer steps of 32 answers; 1 passes over the prompts |"),
    ],
)
def test_passes_are_those_that_are_made(tmp_path, prompts, said):
    """16 prompts fill a step of 32 answers twice."""
    regime = Supervised(minibatch_size=32, epochs=1)
    records = [Record(f"r:{i}", WORDS[i % 9 + 1], references=("the",)) for i in range(prompts)]
    gathered(solo(make_model(), make_tokenizer()), regime=regime, records=records, monitor=None)[0].write(tmp_path)
    assert said in (tmp_path / "preflight.md").read_text()


def test_rows_beyond_val_size_are_told(pair):
    rows = [Record(f"v:{i}", f"fish bird {word}", references=("tree",)) for i, word in enumerate(WORDS[:9])]
    found, _ = gathered(pair, validation=rows, val_size=4)
    assert found.warnings == []
    assert found.lines["validation"].startswith(
        "4 of 9 prompts, the longest 6 tokens; dropped: 5 beyond data.val_size; "
    )


def test_rouge_l_without_references_is_told(pair):
    bare = [Record("v:1", "fish bird")]
    with_teacher, alone = (
        gathered(each, validation=bare, monitor="rouge_l")[0].warnings
        for each in (pair, solo(make_model(), make_tokenizer()))
    )
    assert "Rouge-L is against the teacher's greedy answers; name a data.val_file" in with_teacher[0]
    assert "there is no Rouge-L; name a data.val_file" in alone[0]
    assert gathered(pair, validation=bare, monitor="reverse_kl")[0].warnings == []


def test_prompts_held_out_on_purpose_are_no_loss(pair):
    found, _ = gathered(pair, records=[*RECORDS, *[Record("h", "fish bird")] * 9])
    assert "9 also a validation prompt" in found.lines["training"] and found.warnings == []


def test_templates_of_the_two_are_compared():
    other = make_tokenizer()
    pairs = {}
    for template in (None, "{{ 1 }}"):
        other.chat_template = template
        pairs[template] = pair_of(make_model(), make_model(), make_tokenizer(), other)
    for template, what in ((None, "no chat template"), ("{{ 1 }}", "another chat template")):
        found, _ = gathered(pairs[template])
        assert [what in each for each in found.warnings] == [True]
        assert gathered(pairs[template], template="paper", max_prompt_tokens=90)[0].warnings == []


def test_a_model_alone_has_a_page_without_what_is_not_there(tmp_path, capsys):
    """As of fine-tuning: no teacher, no sampler, no rollouts."""
    alone = solo(make_model(), make_tokenizer())
    regime = Supervised(minibatch_size=4, microbatch_size=2, max_steps=30, epochs=None)
    found, _ = gathered(alone, regime=regime, monitor=None)
    assert found.columns == ("student",) and not found.lines["rollout"]
    found.show()
    found.write(tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / "preflight.md").read_text()):
        assert "30 optimizer steps of 4 answers; 10 passes over the prompts" in " ".join(text.split())
        assert "31 rows; an answer stops at id 0" in text
        assert not any(word in text for word in ("teacher", "rollout", "agreement"))


def test_the_page_is_short_and_says_it_all(pair, tmp_path, capsys):
    found, prompts = gathered(pair)
    kl = agreed(pair, prompts, seed=0, max_new_tokens=6, max_tokens=64)
    found.add_agreement(*kl, n_vocab=36)
    found.warnings = ["first [bold]thing", "second"]
    found.show()
    screen = capsys.readouterr().out
    found.write(tmp_path)
    page = (tmp_path / "preflight.md").read_text()
    assert len(screen.splitlines()) <= 27 and max(map(len, screen.splitlines())) <= 100
    for text in (screen, page):
        flat = " ".join(text.split())
        for part in (
            "36 in 40 rows, 4 cut", "37 in 36 rows",
            "36 rows, the same token in each; tokens beyond them that differ: 1",
            "an answer stops at id 0",
            "the student's own chat template",
            "12 of 12 prompts, the longest 5 tokens; 12 with a reference, 4 of them too long and cut",
            f"reverse KL {kl[0]:.3g}, forward KL", "on 8 answers of the student",
            "15 optimizer steps of 2 answers, in 3 rollouts of 4: 12 samples of at most 6 tokens",
            "first [bold]thing", "llama, 1 layers, float64 on cpu",
        ):  # fmt: skip
            assert part in flat, part
    assert "| end | &lt;/s> (id 0) |" in page and page.startswith("# Preflight\n")
