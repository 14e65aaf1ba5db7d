"""A teacher with tokens of its own: the objective's expectation over all answers of a toy is the gradient of what it
says."""

import itertools
from dataclasses import replace

import pytest
import torch

from minillm.common.types import Rollout
from minillm.models import LanguageModel, Pair
from minillm.objectives import SpanReverseKL
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import answer_logprobs, prepared, with_spans
from minillm.rollout.micro_batch import micro_batches
from minillm.train.figures import rollout_figures
from tests.tiny import make_model
from tests.tokenizers import byte_pairs

T = 3  # tokens of the longest answer
PROMPT, OTHER_PROMPT = [0, 1], [2, 1, 3]
LENGTHS = {"a": 1, "b": 1, "Ġ": 1, "ab": 2, "ba": 2, "Ġa": 2, "bĠ": 2}


STUDENT = byte_pairs(["Ġa"], ["<end>", "<stop>"])
TEACHERS = {
    "by word": byte_pairs(["ba", "ab"], ["<end>", "<fin>", "<out>"]),
    "not by word": byte_pairs(["bĠ", "ba"], ["<end>", "<fin>", "<out>"], by_word=False),
}
STOPS, TEACHER_STOPS = (4, 5), (5, 6, 7)


def pair_with(teacher: str) -> Pair:
    student = make_model("gpt2", vocabulary=6, seed=3, layers=1)
    other = LanguageModel(make_model(vocabulary=8, seed=4, layers=1)).frozen()
    own = dict(teacher_tokenizer=TEACHERS[teacher], teacher_stop_ids=TEACHER_STOPS)
    return Pair(student, other, STUDENT, 6, STOPS, **own)


def rollout_of(answers: list[tuple[int, ...]], pair: Pair) -> Rollout:
    """These answers after the student's prompt, with its log-probs; the teacher has another prompt."""
    n = len(answers)
    lengths = torch.tensor(list(map(len, answers)))
    rollout = Rollout(
        prompt_ids_BP=torch.tensor([[0, *PROMPT]] * n),
        prompt_mask_BP=torch.tensor([[False, True, True]] * n),
        response_ids_BR=torch.tensor([[*each, *[0] * (T + 1 - len(each))] for each in answers]),
        response_mask_BR=torch.arange(T + 1) < lengths.unsqueeze(-1),
        teacher_prompt_ids_BP=torch.tensor([OTHER_PROMPT] * n),
        teacher_prompt_mask_BP=torch.ones(n, 3, dtype=torch.bool),
        records_B=torch.arange(n),
    )
    model = LanguageModel(pair.student, pair.n_vocab)
    logprobs, _ = answer_logprobs(model, rollout, LinearLoss(), max_tokens=4096)
    return replace(rollout, student_logprobs_BR=logprobs, behaviour_logprobs_BR=logprobs)


def spans_of(answers, pair: Pair) -> Rollout:
    rollout = rollout_of(answers, pair)
    return with_spans(rollout, LanguageModel(pair.student, pair.n_vocab), pair, LinearLoss(), max_tokens=4096)


TEXTS = [text for n in range(T + 1) for text in itertools.product(range(4), repeat=n)]  # tokens without an end
ANSWERS = [(*text, stop) for text in TEXTS if len(text) < T for stop in STOPS] + [t for t in TEXTS if len(t) == T]


def logprob_tables(network, prompt: list[int], rows: list[list[int]]):
    """For each row [columns, V] log-probs after the prompt and each of its tokens, by the network's own forward pass;
    what follows a row's end is not used."""
    width = max(map(len, rows))
    ids = torch.tensor([[*prompt, *row, *[0] * (width - len(row))] for row in rows])
    return network(input_ids=ids).logits[:, len(prompt) - 1 :].log_softmax(-1)


def exact_pieces(pair: Pair):
    """For each text and each way to go on from it (an end, or the limit): log q of its tokens [n], with a gradient, and
    log p of the teacher's tokens, which its tokenizer makes of the text."""
    words = ["".join(STUDENT.convert_ids_to_tokens(list(text))).replace("Ġ", " ") for text in TEXTS]
    theirs = pair.teacher_tokenizer(words, add_special_tokens=False)["input_ids"]
    tables = logprob_tables(pair.student, PROMPT, TEXTS), logprob_tables(pair.teacher.network, OTHER_PROMPT, theirs)
    for text, ids, own, other in zip(TEXTS, theirs, *tables, strict=True):
        logq, logp = own[range(len(text)), list(text)], other[range(len(ids)), ids]
        if len(text) == T:
            yield text, ids, logq, logp
        else:
            ends = [each[n, list(stops)].logsumexp(0, keepdim=True) for each, n, stops in (
                (own, len(text), STOPS), (other, len(ids), TEACHER_STOPS))]  # fmt: skip
            yield text, ids, torch.cat([logq, ends[0]]), torch.cat([logp, ends[1]])


def gradient(loss, pair: Pair):
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(pair.student.parameters()))])


def expected_gradient(rollout: Rollout, objective, pair: Pair):
    """Of the objective's loss, summed over tokens, over all answers with their chances."""
    experience = prepared(rollout, objective)
    chance = (rollout.student_logprobs_BR * rollout.response_mask_BR).sum(-1).exp()
    weighted = experience.constants | {"advantages": experience.constants["advantages"] * chance.unsqueeze(-1)}
    experience, model = replace(experience, constants=weighted), LanguageModel(pair.student, pair.n_vocab)
    loss = sum(micro.loss(LinearLoss(), objective, model, None, 1).loss for micro in micro_batches(experience, 4096))
    return gradient(loss, pair)


def exact_gradient(pair: Pair):
    """Of sum_y q(y) [log q(y) - log p(the teacher's canonical tokens of text(y))]."""
    kl = sum(logq.sum().exp() * (logq.sum() - logp.sum().detach()) for _, _, logq, logp in exact_pieces(pair))
    return gradient(kl, pair)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_long_form_is_the_gradient_of_the_sequence_kl(teacher):
    pair = pair_with(teacher)
    rollout = spans_of(ANSWERS, pair)
    assert rollout.response_mask_BR.any(-1).all()
    chance = rollout.student_logprobs_BR.sum(-1).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-12)  # all answers are there
    exact = exact_gradient(pair)
    assert exact.abs().max() > 0.1
    got = expected_gradient(rollout, SpanReverseKL(long_part=True, baseline=False), pair)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-9)
    first, last = rollout.spans_BR2[..., 1], rollout.spans_BR2[..., 0]
    assert bool(first.any()) == (teacher == "by word")  # rewards of earlier words are left out where they are settled
    # Its own and the later spans alone: an earlier one may be what it is because of this token.
    ahead = torch.where(last[:, 1:] != last[:, :-1], torch.arange(1, T + 1), 0)
    start = torch.nn.functional.pad(ahead.cummax(-1).values, (1, 0))
    faulty = replace(rollout, spans_BR2=torch.stack([last, start], dim=-1))
    wrong = expected_gradient(faulty, SpanReverseKL(long_part=True, baseline=False), pair)
    assert (wrong - exact).abs().max() > 1e-3


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_short_form_gives_each_token_the_reward_of_its_own_span(teacher):
    pair, total, n_shared = pair_with(teacher), 0.0, 0
    for text, ids, logq, logp in exact_pieces(pair):
        names = (STUDENT.convert_ids_to_tokens(list(text)), pair.teacher_tokenizer.convert_ids_to_tokens(ids))
        own, other = (list(itertools.accumulate((LENGTHS[name] for name in each), initial=0)) for each in names)
        cuts = [end for end in own if end in other]
        spans = [((own.index(a), own.index(b)), (other.index(a), other.index(b))) for a, b in itertools.pairwise(cuts)]
        spans += [((len(text), len(logq)), (len(ids), len(logp)))]  # the end
        rewards = [(logp[slice(*t)].sum() - logq[slice(*s)].sum()).detach() for s, t in spans]
        each = sum(reward * logq[slice(*s)].sum() for reward, (s, _) in zip(rewards, spans, strict=True))
        total = total - logq.detach().sum().exp() * each
        n_shared += sum(s[1] - s[0] > 1 for s, _ in spans)
    assert n_shared > 20  # spans of several tokens
    got = expected_gradient(spans_of(ANSWERS, pair), SpanReverseKL(baseline=False), pair)
    torch.testing.assert_close(got, gradient(total, pair), rtol=0, atol=1e-9)


def test_the_baseline_is_of_the_other_answers_alone():
    pair = pair_with("by word")
    rollout = spans_of([(0, 1, 4), (1, 3, 0, 5), (3, 4), (2, 2, 2)], pair)
    for long_part in (True, False):
        plain, less = (
            SpanReverseKL(long_part=long_part, baseline=baseline).prepare(rollout)["advantages"]
            for baseline in (False, True)
        )
        mask = rollout.response_mask_BR
        for row, column in mask.nonzero().tolist():
            others = [plain[at, column] for at in range(4) if at != row and mask[at, column]]
            assert less[row, column] == pytest.approx(float(plain[row, column] - sum(others) / max(1, len(others))))
        assert not less[~mask].any()


def test_with_the_same_tokens_each_token_is_a_span():
    pair = pair_with("by word")
    pair = replace(pair, teacher=LanguageModel(make_model(vocabulary=6, seed=8, layers=1)).frozen())
    pair = replace(pair, teacher_tokenizer=STUDENT, teacher_stop_ids=(4,), stop_ids=(4,))
    rollout = rollout_of([(0, 3, 0, 4), (1, 4), (0, 0, 0)], pair)
    found = with_spans(rollout, LanguageModel(pair.student), pair, LinearLoss(), max_tokens=64)
    wanted, _ = answer_logprobs(pair.teacher, rollout.for_teacher, LinearLoss(), max_tokens=64)
    mask = rollout.response_mask_BR
    torch.testing.assert_close(found.teacher_logprobs_BR[mask], wanted[mask], rtol=0, atol=1e-12)
    assert (found.spans_BR2[..., 0][mask] == torch.arange(T + 1).expand(mask.shape)[mask]).all()


def test_an_answer_that_is_dropped_teaches_nothing_and_is_counted():
    pair = pair_with("by word")
    few = byte_pairs(["ba"], ["<end>"], letters="ab")  # knows no space
    pair = replace(pair, teacher_tokenizer=few, teacher_stop_ids=(3,))
    rollout = spans_of([(0, 1, 4), (0, 2, 0, 4), (2, 5), (1, 0, 5)], pair)
    assert rollout.response_mask_BR.any(-1).tolist() == [True, False, False, True]
    assert [row for micro in micro_batches(rollout, 64) for row in micro.rows_B.tolist()] == [0, 3]
    advantages = SpanReverseKL().prepare(rollout)["advantages"]
    assert advantages[[0, 3]].any(-1).all() and not advantages[[1, 2]].any()
    figures = rollout_figures(replace(rollout, near_edge_BR=rollout.response_mask_BR), STOPS, 1.0)
    assert figures["rollout/dropped"] == 0.5 and figures["rollout/length"] == 3
    assert rollout_figures(replace(rollout.rows([1, 2]), near_edge_BR=None), STOPS, 1.0) == {"rollout/dropped": 1.0}


def test_an_answer_too_long_for_the_teacher_is_dropped():
    pair = pair_with("by word")
    pair.teacher.network.config.max_position_embeddings = len(OTHER_PROMPT) + 4
    rollout = spans_of([(0, 0, 0, 4), (3, 0, 0, 4), (3, 0), (1, 0, 1, 4)], pair)  # " aa" is three tokens to the teacher
    assert rollout.response_mask_BR.any(-1).tolist() == [True, False, True, True]
