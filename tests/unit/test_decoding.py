"""Decoding against transformers' generate, a full forward pass, and exact probabilities."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm.common.errors import ConfigError
from minillm.losses import token_logprobs
from minillm.models import Head, LanguageModel
from minillm.rollout import Sampler, decode
from tests.helpers import PROMPTS, own_logits, prompt_batch
from tests.tiny import FAMILIES, make_model, make_pair

OPTIONS = dict(stop_ids=(0,), pad_id=0, max_new_tokens=12, batch_size=8)


def generate_greedily(network, batch, stop_ids, n):
    """transformers' own greedy decoding with every default of a generation config neutralised."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False, max_new_tokens=n, eos_token_id=list(stop_ids), pad_token_id=0, repetition_penalty=1.0
    )
    network.generation_config = config
    ids = network.generate(batch.ids_BP, attention_mask=batch.mask_BP.long(), generation_config=config)
    return ids[:, batch.ids_BP.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_equals_generate_on_padded_prompts(family):
    network, batch = make_model(family), prompt_batch()
    # Stop at what the first row says third, so that rows end at different times.
    free = generate_greedily(network, batch, [10**6], 12)
    stop_ids = (int(free[0, 2]),)
    expected = generate_greedily(network, batch, stop_ids, 12)
    rollout = decode(LanguageModel(network), None, batch, seeds=None, **OPTIONS | {"stop_ids": stop_ids})
    for row in range(len(batch)):
        tokens = rollout.response_ids_BR[row][rollout.response_mask_BR[row]].tolist()
        assert tokens == expected[row, : len(tokens)].tolist()
        assert tokens[-1] in stop_ids or len(tokens) == 12
    assert rollout.response_mask_BR[0].sum() == free[0].tolist().index(stop_ids[0]) + 1


@pytest.mark.parametrize("batch_size", [2, 4, 9])
def test_a_prompt_with_several_seeds_is_read_once(batch_size, monkeypatch):
    pair, records, read = make_pair(), [0, 1, 1, 2, 0, 2, 0], []
    batch = prompt_batch([PROMPTS[record] for record in records])
    options = OPTIONS | {"seeds": list(range(7)), "batch_size": batch_size, "alpha": 0.3}
    apart = decode(LanguageModel(pair.student), pair.teacher, batch, **options)
    real = LanguageModel.hidden
    monkeypatch.setattr(
        LanguageModel, "hidden", lambda self, ids, *rest: read.append(len(ids)) or real(self, ids, *rest)
    )
    together = decode(
        LanguageModel(pair.student), pair.teacher, replace(batch, records=torch.tensor(records)), **options
    )
    assert torch.equal(together.response_ids_BR, apart.response_ids_BR)
    for name in ("student_logprobs_BR", "teacher_logprobs_BR", "teacher_hidden_BRH"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), rtol=0, atol=1e-9)
    assert read[0] < batch_size if batch_size > 2 else sum(read) < 14
    assert batch_size < 9 or read == [3, 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_captured_logprobs_equal_a_full_forward_pass(family, temperature):
    pair = make_pair(family)
    student, seeds = LanguageModel(pair.student), [1, 2, 3]
    rollout = decode(student, pair.teacher, prompt_batch(), seeds=seeds, alpha=0.3, temperature=temperature, **OPTIONS)
    mask = rollout.response_mask_BR
    for model, captured in ((student, rollout.student_logprobs_BR), (pair.teacher, rollout.teacher_logprobs_BR)):
        logits = own_logits(model.network, rollout) / temperature
        expected = token_logprobs(logits, rollout.response_ids_BR[mask])
        torch.testing.assert_close(captured[mask], expected, rtol=0, atol=1e-9)
    kept = pair.teacher.head()(rollout.teacher_hidden_BRH[mask])
    torch.testing.assert_close(kept, own_logits(pair.teacher.network, rollout), rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_frequencies_of_two_tokens_follow_the_exact_mixture(alpha):
    """Joint frequencies, so that draws that are not independent from token to token are seen too."""
    pair, n, v = make_pair(vocabulary=5), 6000, 5
    student = LanguageModel(pair.student)
    models = (student if alpha < 1 else None, pair.teacher if alpha > 0 else None)
    prompt = prompt_batch([[3, 2, 4]])
    options = OPTIONS | {"max_new_tokens": 2, "stop_ids": (v + 1,), "batch_size": n}
    rollout = decode(*models, prompt.rows([0] * n), seeds=list(range(n)), alpha=alpha, **options)
    ids_N2 = rollout.response_ids_BR
    counts = torch.bincount(ids_N2[:, 0] * v + ids_N2[:, 1], minlength=v * v).view(v, v) / n

    def probs(model, ids_BS):
        return model.network(ids_BS).logits[:, -1].softmax(-1)

    def mixed(ids_BS):
        return alpha * probs(pair.teacher, ids_BS) + (1 - alpha) * probs(student, ids_BS)

    longer = torch.cat([prompt.ids_BP.repeat(v, 1), torch.arange(v)[:, None]], dim=1)
    exact = mixed(prompt.ids_BP)[0][:, None] * mixed(longer)
    assert (counts - exact).abs().max() < 4 * math.sqrt(0.25 / n)
    assert (counts - exact.T).abs().max() > 4 * math.sqrt(0.25 / n)


def same_answers(one, other):
    width = min(one.response_ids_BR.shape[1], other.response_ids_BR.shape[1])
    assert not one.response_mask_BR[:, width:].any() and not other.response_mask_BR[:, width:].any()
    assert torch.equal(one.response_mask_BR[:, :width], other.response_mask_BR[:, :width])
    assert torch.equal(one.response_ids_BR[:, :width], other.response_ids_BR[:, :width])


@pytest.mark.slow
def test_the_tokens_of_prompts_that_are_read_at_a_time_have_a_limit(monkeypatch):
    """Whatever the batch; the answers are those of a smaller batch, whose prompts need no limit."""
    pair, read = make_pair(), []
    batch = prompt_batch([[7, 9, 12, 5, 30] * (180 + row) for row in range(20)])
    options = OPTIONS | {"seeds": list(range(20)), "alpha": 0.3, "max_new_tokens": 3, "stop_ids": (99,)}
    few = decode(LanguageModel(pair.student), pair.teacher, batch, **options | {"batch_size": 4})
    real = LanguageModel.hidden
    monkeypatch.setattr(
        LanguageModel, "hidden", lambda self, ids, *rest: read.append(ids.shape) or real(self, ids, *rest)
    )
    many = decode(LanguageModel(pair.student), pair.teacher, batch, **options | {"batch_size": 20})
    assert torch.equal(many.response_ids_BR, few.response_ids_BR)
    assert torch.allclose(many.student_logprobs_BR, few.student_logprobs_BR)
    assert sum(rows for rows, _ in read) == 2 * 20 and len(read) == 4  # two passes of each model
    assert all(rows * columns <= 2**14 for rows, columns in read)


@pytest.mark.some(8)
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_row_draws_the_same_answer_in_any_batch(family, batch_size):
    """Fewer places than prompts: rows leave, others take their places, columns move to the front."""
    student, teacher = (LanguageModel(make_model(family, seed=seed)) for seed in (1, 2))
    batch, seeds = prompt_batch(PROMPTS * 4), list(range(11, 23))
    options = OPTIONS | {"max_new_tokens": 20, "stop_ids": (0, 4, 9, 20, 25)}
    together = decode(student, teacher, batch, seeds=seeds, alpha=0.2, **options | {"batch_size": 12})
    apart = decode(student, teacher, batch, seeds=seeds, alpha=0.2, **options | {"batch_size": batch_size})
    lengths = together.response_mask_BR.sum(-1)
    assert lengths.min() < lengths.max() and len({tuple(row) for row in together.response_ids_BR.tolist()}) > 6
    same_answers(together, apart)
    for name in ("student_logprobs_BR", "teacher_logprobs_BR"):
        mask, close = together.response_mask_BR, 1e-5 if family == "gemma2" else 1e-9  # its norms are float32 always
        torch.testing.assert_close(getattr(together, name)[mask], getattr(apart, name)[mask], rtol=0, atol=close)


@pytest.mark.slow
def test_in_float32_only_a_draw_at_an_edge_may_differ(monkeypatch):
    """Between batches, and from logits that are a little wrong, as if rounded worse: cumulative probabilities move by
    at most 5e-6. A flat distribution over many tokens, so that edges are near; the draws that differ are counted."""
    network = make_model(vocabulary=4000, dtype=torch.float32)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(0.02)
    model, n = LanguageModel(network), 400
    batch = prompt_batch((PROMPTS * n)[:n])
    options = OPTIONS | {"stop_ids": (4001,), "seeds": list(range(n))}
    one, other = (decode(model, None, batch, **options | {"batch_size": size}) for size in (n, 7))
    columns, wrong = Head.columns, torch.full((4000, 1), 2e-5)
    wrong[2000:] = 0
    monkeypatch.setattr(Head, "columns", lambda self, hidden_BH: columns(self, hidden_BH) + wrong)
    rounded = decode(model, None, batch, **options | {"batch_size": n})
    share = one.near_edge_BR.double().mean().item()
    assert 1e-3 < share < 0.2
    counts = []
    for rollout in (other, rounded):
        differ_BR = one.response_ids_BR != rollout.response_ids_BR
        rows = differ_BR.any(-1).nonzero().squeeze(-1)
        assert one.near_edge_BR[rows, differ_BR.int().argmax(-1)[rows]].all()
        counts.append(len(rows))
    assert counts[1] > 10 and max(counts) < share * one.near_edge_BR.numel()


def test_the_places_of_ended_rows_are_used_and_prompts_wait_their_turn():
    """Passes of the model are counted: 12 answers of 2 tokens in 4 places take 3 prefills and 3 steps."""
    model, passes = LanguageModel(make_model()), []
    model.network.base_model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    batch = prompt_batch([[7, 9, 12]] * 12)
    options = OPTIONS | {"stop_ids": (99,), "max_new_tokens": 2, "batch_size": 4}
    decode(model, None, batch, seeds=list(range(12)), **options)
    assert passes == [(4, 3), (4, 1)] * 3


def test_under_autocast_a_weight_is_cast_once_for_all_tokens():
    """trainer.precision=bf16-mixed: Lightning turns autocast's cache off, as weights change between its uses."""

    class Casts(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
                self.n += args[0].dim() == 2 and args[0].requires_grad
            return function(*args, **kwargs or {})

    counts = []
    for n_tokens in (2, 9):
        model = LanguageModel(make_model(dtype=torch.float32))
        options = OPTIONS | {"stop_ids": (99,), "max_new_tokens": n_tokens, "seeds": [1, 2, 3]}
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Casts() as casts:
            decode(model, None, prompt_batch(), **options)
        counts.append(casts.n)
    assert counts[0] == counts[1] and counts[0] < 20


def test_limits_below_one_token_are_refused():
    with pytest.raises(ConfigError, match="wanted a positive number of tokens"):
        decode(LanguageModel(make_model()), None, prompt_batch(), seeds=None, **OPTIONS | {"max_new_tokens": [3, 0, 2]})


def test_every_row_may_have_a_limit_of_its_own():
    limits = [3, 1, 7, 2, 5, 4]
    model = LanguageModel(make_model())
    options = OPTIONS | {"stop_ids": (99,), "max_new_tokens": limits, "batch_size": 2}
    rollout = decode(model, None, prompt_batch(PROMPTS * 2), seeds=list(range(6)), **options)
    assert rollout.response_mask_BR.sum(-1).tolist() == limits


def test_looking_less_often_for_ended_rows_changes_no_answer(monkeypatch):
    """What a GPU does: rows that have ended stay a few tokens longer, and nothing of it is seen."""
    pair, student = make_pair(), LanguageModel(make_model(seed=1))
    options = OPTIONS | {"stop_ids": (0, 4, 9, 20, 25), "batch_size": 3, "seeds": list(range(12)), "alpha": 0.2}
    usual = decode(student, pair.teacher, prompt_batch(PROMPTS * 4), **options)
    monkeypatch.setattr("minillm.rollout.decoding._look_every", lambda device: 8)
    rare = decode(student, pair.teacher, prompt_batch(PROMPTS * 4), **options)
    same_answers(usual, rare)
    mask = usual.response_mask_BR
    torch.testing.assert_close(usual.teacher_hidden_BRH[mask], rare.teacher_hidden_BRH[mask], rtol=0, atol=1e-9)


def test_a_sliding_window_narrower_than_the_answer_is_respected():
    network = make_model("mistral")
    network.config.sliding_window = 4
    batch = prompt_batch(PROMPTS)
    expected = generate_greedily(network, batch, [99], 12)
    rollout = decode(LanguageModel(network), None, batch, seeds=None, **OPTIONS | {"stop_ids": (99,), "batch_size": 2})
    assert rollout.response_ids_BR.tolist() == expected.tolist()
    network.config.sliding_window = None
    assert generate_greedily(network, batch, [99], 12).tolist() != expected.tolist()


def test_more_padding_changes_no_number():
    pair = make_pair()
    student = LanguageModel(pair.student)
    plain, padded = (
        decode(student, pair.teacher, prompt_batch(extra=extra), seeds=[1, 2, 3], alpha=0.2, **OPTIONS)
        for extra in (0, 9)
    )
    assert torch.equal(plain.response_ids_BR, padded.response_ids_BR)
    torch.testing.assert_close(plain.student_logprobs_BR, padded.student_logprobs_BR, rtol=0, atol=1e-10)


def test_an_eos_inside_a_prompt_stays_visible():
    """pad = eos: a mask rebuilt from `ids != pad` would hide it and change the answer's probabilities."""
    network = make_model()
    rollout = decode(LanguageModel(network), None, prompt_batch(), seeds=[1, 2, 3], **OPTIONS)
    alone = torch.tensor([PROMPTS[1]])
    seen = network(alone).logits[0, -1].log_softmax(-1)
    hidden = network(alone, attention_mask=(alone != 0).long()).logits[0, -1].log_softmax(-1)
    first = rollout.response_ids_BR[1, 0]
    assert abs(seen[first] - hidden[first]) > 1e-3
    torch.testing.assert_close(rollout.student_logprobs_BR[1, 0], seen[first], atol=1e-9, rtol=0)


def test_the_first_stop_counts_and_nothing_after_it():
    network = make_model(vocabulary=9)
    rollout = decode(
        LanguageModel(network),
        None,
        prompt_batch([[3, 4]] * 40),
        seeds=list(range(40)),
        **OPTIONS | {"stop_ids": (0, 5)},
    )
    ended = 0
    for ids, mask in zip(rollout.response_ids_BR.tolist(), rollout.response_mask_BR.tolist(), strict=True):
        n = sum(mask)
        assert mask == [True] * n + [False] * (12 - n)
        assert not {0, 5} & set(ids[: n - 1])
        if n < 12:
            assert ids[n - 1] in (0, 5)
            ended += 1
    assert {0, 5} <= {
        row[sum(m) - 1]
        for row, m in zip(rollout.response_ids_BR.tolist(), rollout.response_mask_BR.tolist(), strict=True)
    }
    assert ended > 5


def test_the_sampler_says_all_that_is_wrong_with_it():
    with pytest.raises(ValueError) as caught:
        Sampler(alpha=1.0, temperature=0.0, max_new_tokens=0, batch_size=0)
    assert all(
        name in str(caught.value) for name in ("alpha=1.0", "temperature=0.0", "max_new_tokens=0", "batch_size=0")
    )
