"""N-gram limits against transformers' own processor, step by step and through generate."""

from collections import Counter

import pytest
import torch
from transformers import GenerationConfig, NoRepeatNGramLogitsProcessor

from minillm.common.errors import ConfigError
from minillm.data import PromptSet, Record
from minillm.evaluation.answers import answer_prompts
from minillm.models import LanguageModel
from minillm.rollout import decode
from minillm.rollout.repeats import Repeats
from tests.helpers import PROMPTS, prompt_batch
from tests.tiny import make_model, make_pair

SIZES = (1, 2, 3)
# One token, shorter than an n-gram; one that repeats itself; the pad token inside.
REPEATING = [*PROMPTS, [3], [6, 7, 6, 7, 6], [0, 0, 5, 0, 0]]
OPTIONS = dict(stop_ids=(999,), pad_id=0, max_new_tokens=12, batch_size=4)


def alone(network, ids: list[int], n: int, size: int) -> list[int]:
    """transformers' greedy answer of one row without padding."""
    config = GenerationConfig(do_sample=False, max_new_tokens=n, pad_token_id=0, no_repeat_ngram_size=size)
    network.generation_config = config
    row = torch.tensor([ids])
    return network.generate(row, attention_mask=torch.ones_like(row), generation_config=config)[0, len(ids) :].tolist()


def processed(network, ids: list[int], size: int, temperature: float = 1.0) -> torch.Tensor:
    """[V] log-probs of the next token, by a full pass and transformers' processor."""
    row = torch.tensor([ids])
    logits = network(row).logits[:, -1] / temperature
    return NoRepeatNGramLogitsProcessor(size)(row, logits).log_softmax(-1)[0]


@pytest.mark.some(3)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_greedy_answers_equal_generate(size, batch_size):
    network = make_model()
    expected = [alone(network, ids, 12, size) for ids in REPEATING]
    assert expected != [alone(network, ids, 12, 0) for ids in REPEATING]
    options = OPTIONS | {"batch_size": batch_size, "no_repeat_ngram_size": size}
    rollout = decode(LanguageModel(network), None, prompt_batch(REPEATING), seeds=None, **options)
    assert rollout.response_ids_BR.tolist() == expected


@pytest.mark.parametrize(("size", "n_vocab"), [(1, 30), (1, 7), (2, 5), (3, 3)])
def test_bans_equal_the_processor_on_random_sequences(size, n_vocab):
    """Few tokens, so that almost every step bans some; rows in another order at every step, as when rows leave."""
    torch.manual_seed(0)
    lengths, n_steps = [1, 2, 5, 9], 20
    rows = [torch.randint(n_vocab, (length,)).tolist() for length in lengths]
    ids_NP = torch.full((4, 9), 2)  # padding is a token of the vocabulary
    for row, ids in enumerate(rows):
        ids_NP[row, : len(ids)] = torch.tensor(ids)
    repeats, n_banned = Repeats(size, ids_NP, lengths, n_steps), 0
    for _ in range(n_steps):
        rows_B = torch.randperm(4)[: torch.randint(1, 5, ())]
        logits_VB = torch.randn(n_vocab, len(rows_B))
        banned_VB = repeats.ban(logits_VB, rows_B)
        for column, row in enumerate(rows_B.tolist()):
            expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([rows[row]]), logits_VB[:, column][None])[0]
            if expected.isinf().all():
                expected = logits_VB[:, column]
            assert torch.equal(banned_VB[:, column], expected)
            n_banned += int(expected.isinf().sum())
        ids_B = torch.randint(n_vocab, (len(rows_B),))
        repeats.note(rows_B, ids_B)
        for row, token in zip(rows_B.tolist(), ids_B.tolist(), strict=True):
            rows[row].append(token)
    assert n_banned > 15


@pytest.mark.some(3)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_sampled_answers_and_logprobs_follow_the_processor_in_any_batch(size, batch_size):
    """From a mixture: each model's log-probs are of its own distribution without the banned tokens."""
    pair, rows, temperature = make_pair(), REPEATING * 2, 1.5
    student, batch = LanguageModel(pair.student), prompt_batch(rows)
    options = OPTIONS | {"stop_ids": (4, 9, 20), "max_new_tokens": 16, "no_repeat_ngram_size": size}
    options |= {"seeds": list(range(len(rows))), "alpha": 0.3, "temperature": temperature}
    together = decode(student, pair.teacher, batch, **options | {"batch_size": len(rows)})
    apart = decode(student, pair.teacher, batch, **options | {"batch_size": batch_size})
    mask_BR = together.response_mask_BR
    lengths = mask_BR.sum(-1).tolist()
    assert min(lengths) < max(lengths)
    assert torch.equal(mask_BR, apart.response_mask_BR)
    assert torch.equal(together.response_ids_BR, apart.response_ids_BR)
    captured = {pair.student: apart.student_logprobs_BR, pair.teacher.network: apart.teacher_logprobs_BR}
    for row in range(0, len(rows), 3):
        ids = list(rows[row])
        for step, token in enumerate(apart.response_ids_BR[row, : lengths[row]].tolist()):
            for network, logprobs_BR in captured.items():
                expected = processed(network, ids, size, temperature)[token]
                torch.testing.assert_close(logprobs_BR[row, step], expected, rtol=0, atol=1e-9)
            ids.append(token)


def test_frequencies_follow_the_distribution_without_the_banned_tokens():
    network, ids, n = make_model(vocabulary=5), [3, 2, 4, 3], 6000
    options = OPTIONS | {"max_new_tokens": 1, "batch_size": n, "no_repeat_ngram_size": 2}
    rollout = decode(LanguageModel(network), None, prompt_batch([ids] * n), seeds=list(range(n)), **options)
    shares_V = torch.bincount(rollout.response_ids_BR[:, 0], minlength=5) / n
    exact_V = processed(network, ids, 2).exp()
    assert shares_V[2] == exact_V[2] == 0
    assert (shares_V - exact_V).abs().max() < 4 * (0.25 / n) ** 0.5
    assert (shares_V - network(torch.tensor([ids])).logits[0, -1].softmax(-1)).abs().max() > 4 * (0.25 / n) ** 0.5


@pytest.mark.parametrize("seeds", [None, [1, 2, 3]])
def test_a_row_that_may_say_nothing_may_say_everything(seeds):
    """Five tokens, none of them twice: after the fifth the limit would leave nothing to draw."""
    network = make_model(vocabulary=5)
    batch, options = prompt_batch([[3, 2], [1, 0, 4], [2, 2, 2]]), OPTIONS | {"no_repeat_ngram_size": 1}
    rollout = decode(LanguageModel(network), None, batch, seeds=seeds, **options)
    assert rollout.student_logprobs_BR.isfinite().all()
    assert (rollout.student_logprobs_BR < 0).sum() > 3 * 7
    for prompt, answer in zip([[3, 2], [1, 0, 4], [2]], rollout.response_ids_BR.tolist(), strict=True):
        n_new = 5 - len(prompt)
        assert sorted(prompt + answer[:n_new]) == [0, 1, 2, 3, 4]
    free = processed(network, [1, 0, 4, *rollout.response_ids_BR[1, :2].tolist()], 9)[rollout.response_ids_BR[1, 2]]
    torch.testing.assert_close(rollout.student_logprobs_BR[1, 2], free, rtol=0, atol=1e-9)


def test_answers_are_drawn_under_the_limit_and_measured_without_it():
    pair, tokens = make_pair(), [(7, 9, 7, 9), (5, 5, 5)]
    prompts = PromptSet(tuple(Record(str(row), "x") for row in range(2)), tuple(tokens), ((), ()), 0, Counter())
    options = dict(seeds=None, max_new_tokens=12, batch_size=2, stop_ids=(999,), teacher=pair.teacher)
    answers = answer_prompts(
        LanguageModel(pair.student), prompts, pair.tokenizer, no_repeat_ngram_size=2, temperature=0.5, **options
    )
    for answer, ids in zip(answers, tokens, strict=True):
        assert list(answer.tokens) == alone(pair.student, ids, 12, 2)
        row = torch.tensor([[*ids, *answer.tokens]])
        log_q, log_p = (
            network(row).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            for network in (pair.student, pair.teacher.network)
        )
        assert answer.reverse_kl == pytest.approx((log_q.exp() * (log_q - log_p)).sum().item(), abs=1e-9)


def test_no_limit_is_the_default_and_computes_nothing(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "masked_fill", None)
    logits_VB = torch.randn(5, 2)
    repeats = Repeats(0, torch.zeros(2, 3, dtype=torch.long), [3, 2], 4)
    repeats.note(torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert repeats.ban(logits_VB, torch.tensor([0, 1])) is logits_VB
    decode(LanguageModel(make_model()), None, prompt_batch(), seeds=None, **OPTIONS)


def test_a_limit_longer_than_prompt_and_answer_changes_nothing():
    student, batch = LanguageModel(make_model()), prompt_batch(REPEATING)
    width = batch.ids_BP.shape[1] + OPTIONS["max_new_tokens"]
    free = decode(student, None, batch, seeds=None, **OPTIONS)
    for size in (width - 1, width, width + 1, 10**12):
        limited = decode(student, None, batch, seeds=None, no_repeat_ngram_size=size, **OPTIONS)
        assert torch.equal(limited.response_ids_BR, free.response_ids_BR)


def test_a_negative_size_is_refused():
    with pytest.raises(ConfigError, match="no_repeat_ngram_size=-1: wanted a number of tokens, or 0"):
        decode(LanguageModel(make_model()), None, prompt_batch(), seeds=None, **OPTIONS | {"no_repeat_ngram_size": -1})
