"""A teacher with tokens of its own: how texts are aligned, and that the objective's expectation over all answers of a
toy is the gradient of what it says."""

import itertools
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.common.errors import ConfigError, ModelError
from minillm.common.types import Rollout
from minillm.data import Record, Sources
from minillm.models import LanguageModel, Pair, pair_of
from minillm.objectives import SpanReverseKL
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout import answer_logprobs, prepared, with_spans
from minillm.rollout.micro_batch import micro_batches
from minillm.rollout.spans import aligned, token_ends
from minillm.train.figures import rollout_figures
from tests.tiny import make_model
from tests.tokenizers import byte_level, byte_pairs, slow

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


ENGLISH = byte_pairs(["ab"], ["<end>"], letters=sorted(pre_tokenizers.ByteLevel.alphabet()))
BYTES = byte_level()


def halves():
    """Bytes, and a token for the first two bytes of most emoji."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, second = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("😀")[0][0][:2]
    return byte_pairs([first + second], ["<end>"], letters=alphabet)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", [(0, 0)]),
        ("ab", [(0, 0), (2, 1)]),
        ("cab", [(0, 0), (1, 1), (3, 2)]),
        ("a b", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("a  \n", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ("é", [(0, 0), (2, 2)]),  # whole characters only
        ("é😀ab", [(0, 0), (2, 2), (6, 6), (8, 7)]),
    ],
)
def test_units_begin_and_end_together(text, units):
    (found,) = aligned([ids(BYTES, text)], BYTES, ENGLISH)
    assert found.units == units and found.theirs == ids(ENGLISH, text)
    assert len(found.settled) == len(text.encode()) + 1


def test_a_character_cut_by_either_side_is_one_unit():
    split, text = halves(), "a😀b"
    assert len(ids(split, text)) == 5
    (found,) = aligned([ids(split, text)], split, BYTES)
    assert found.units == [(0, 0), (1, 1), (4, 5), (5, 6)]


def test_words_are_settled_once_the_next_one_has_begun():
    (found,) = aligned([ids(BYTES, "ab cd e")], BYTES, ENGLISH)
    # Units: ab, space, c, d, space, e. "ab" is settled for what follows the c, "ab cd" for what follows the e.
    assert found.settled == [0, 0, 0, 0, 1, 1, 1, 4]
    joined = byte_pairs(["bĠ"], ["<end>"], letters=sorted(pre_tokenizers.ByteLevel.alphabet()), by_word=False)
    (found,) = aligned([ids(BYTES, "ab cd e")], BYTES, joined)
    assert found.settled == [0] * 8


def test_answers_that_are_no_text_are_not_aligned():
    emoji, n = ids(BYTES, "a😀"), None
    cut, lone, whole = emoji[:3], emoji[2:], emoji
    assert [each is not n for each in aligned([cut, lone, whole, []], BYTES, ENGLISH)] == [False, False, True, True]
    assert token_ends(BYTES, cut) is None
    # A teacher that does not know a character writes another text.
    few = byte_pairs(["ab"], ["<end>"])
    assert [each is not n for each in aligned([ids(BYTES, "abc"), ids(BYTES, "ab a")], BYTES, few)] == [False, True]


def test_tokens_of_a_sentencepiece_tokenizer_write_texts_too():
    names = ["<unk>", "▁", *"abc", "ab", "▁c", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("a", "b"), ("▁", "c")]
    vocabulary = {name: n for n, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    llama, text = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), "ab cé"
    assert llama.convert_ids_to_tokens(ids(llama, text)) == ["▁", "ab", "▁c", "<0xC3>", "<0xA9>"]
    (found,) = aligned([ids(llama, text)], llama, BYTES)
    assert found.units == [(0, 0), (2, 2), (3, 4), (5, 6)]  # the space in front writes nothing
    (found,) = aligned([ids(BYTES, text)], BYTES, llama)
    assert found.units == [(0, 0), (2, 2), (4, 3), (6, 5)]
    assert aligned([ids(llama, text)[:-1]], llama, BYTES) == [None]


def test_control_tokens_are_text_to_the_other_model():
    start = BYTES.convert_tokens_to_ids("<|im_start|>")
    (found,) = aligned([[*ids(BYTES, "a"), start, *ids(BYTES, "b")]], BYTES, ENGLISH)
    assert ENGLISH.decode(found.theirs) == "a<|im_start|>b" and found.units == [(0, 0), (1, 1), (2, 13), (3, 14)]
    (found,) = aligned([ids(BYTES, "<end>")], BYTES, ENGLISH)  # letters that spell the teacher's end
    assert len(found.theirs) == 5 and ENGLISH.eos_token_id not in found.theirs
    # A teacher without letters for it could read it as a control token only.
    (found,) = aligned([ids(BYTES, "a<end>")], BYTES, byte_pairs([], ["<end>"], letters="ab"))
    assert found is None


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


def test_separate_tokenizers_are_checked_and_rows_without_a_token_are_cut():
    networks = make_model(vocabulary=40), make_model(vocabulary=270)
    pair = pair_of(*networks, STUDENT, BYTES, separate=True)
    assert pair.n_vocab == len(STUDENT) and pair.teacher.n_vocab == len(BYTES) and pair.pad_id < pair.n_vocab
    assert pair.stop_ids == (STUDENT.eos_token_id,) and pair.teacher_stop_ids == (BYTES.eos_token_id,)
    assert pair.tokens_of(pair.teacher) == (BYTES, (BYTES.eos_token_id,))
    with pytest.raises(ModelError, match=r"the tokenizer of the teacher has no tokenizer.json.*use another"):
        pair_of(*networks, STUDENT, slow(), separate=True)
    with pytest.raises(ModelError, match=r"do not share a vocabulary.*objective=spans with model.tokenizers=separate"):
        pair_of(*networks, STUDENT, BYTES)


def test_the_teacher_sees_its_own_tokens_and_template(tmp_path):
    pair = pair_of(
        make_model(vocabulary=len(ENGLISH)), make_model(vocabulary=len(BYTES)), ENGLISH, BYTES, separate=True
    )
    records = [Record(id="1", instruction="cab", input="", references=("ab",))]
    with pytest.raises(ConfigError, match="this tokenizer has no chat template"):
        Sources(template="chat").evaluation_prompts(records, pair, "prompts", teacher=True)
    seen = Sources(template="paper").evaluation_prompts(records, pair, "prompts", teacher=True)
    assert BYTES.decode(seen.teacher_ids[0]) == ENGLISH.decode(seen.prompt_ids[0])
    assert len(seen.teacher_ids[0]) > len(seen.prompt_ids[0])
    own = replace(pair, tokenizer=BYTES, teacher_tokenizer=ENGLISH)
    with pytest.raises(ConfigError, match="of the teacher's own tokenizer: data.template=chat"):
        Sources(template="chat").evaluation_prompts(records, own, "prompts", teacher=True)
    turns = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    chat = replace(pair, tokenizer=byte_pairs(["ab"], ["<end>"], letters=letters, template=turns))
    seen = Sources(template="chat").evaluation_prompts(records, chat, "prompts", teacher=True)
    assert BYTES.decode(seen.teacher_ids[0]).endswith("<|im_start|>assistant\n") and len(seen.prompt_ids[0]) == 2
