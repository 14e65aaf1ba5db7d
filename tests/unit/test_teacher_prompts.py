"""A teacher with a prompt of its own: what it sees, and that losses are made of its logits there."""

import json
from dataclasses import replace

import pytest
import torch

from minillm import divergences
from minillm.common.errors import ConfigError, DataError
from minillm.common.types import TrainBatch
from minillm.data import Record, Sources, read_records
from minillm.data.prompts import pad
from minillm.models import LanguageModel
from minillm.objectives import CrossEntropy, ForwardKL, MiniLLM, PretrainLoss, ReverseKL
from minillm.parallel import ALONE
from minillm.rollout import Sampler, decode, prepared, rollout_divergence
from minillm.rollout.micro_batch import micro_batches
from minillm.rollout.stored import Stored, joined
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.optim import Optim
from minillm.train.regime import OnPolicy
from minillm.train.start import SupervisedStart
from tests.helpers import PROMPTS, ROADS, prompt_batch
from tests.tiny import make_pair

OWN = [[3, 8, 2, 7, 9, 12], [6, 5], [1, 13, 14, 15, 16, 17, 18, 19, 2]]  # longer, shorter, longer than the student's


def batch(own=OWN):
    ids, mask = pad([*PROMPTS, *own], 0, left=True)
    whole, n = prompt_batch(), len(PROMPTS)
    return replace(whole, ids_BP=ids[:n], mask_BP=mask[:n], teacher_ids_BP=ids[n:], teacher_mask_BP=mask[n:])


def module_of(pair, objective=None, alpha=0.0, **sizes):
    sizes = dict(rollouts=3, minibatch_size=3, inner_epochs=1, max_steps=1) | sizes
    sampler = Sampler(alpha=alpha, max_new_tokens=7, batch_size=2)  # fewer places than rows: some come later
    groups = (objective or ReverseKL(), sampler, PretrainLoss(enabled=False), ROADS[1], Optim(), OnPolicy(**sizes))
    module = OnPolicyDistillation(pair, *groups, SupervisedStart(), seed=0)
    module.manual_backward = lambda loss: loss.backward()
    return module


def plain_logits(network, prompts, rollout):
    """[N, V] at the counted tokens: one row at a time, without padding or cache."""
    found = []
    for prompt, ids, mask in zip(prompts, rollout.response_ids_BR, rollout.response_mask_BR, strict=True):
        logits = network(input_ids=torch.tensor([[*prompt, *ids[mask].tolist()]])).logits[0]
        found.append(logits[len(prompt) - 1 : -1])
    return torch.cat(found)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("sizes", [dict(), dict(microbatch_size=1), dict(teacher_states="recompute")])
def test_the_loss_and_its_gradient_are_of_the_teachers_logits_on_its_own_prompt(alpha, sizes):
    pair = make_pair()
    module = module_of(pair, alpha=alpha, **sizes)
    rollout = module.rollout(TrainBatch(batch()))
    value = module._policy_gradients(prepared(rollout, module.objective))["train/loss"]
    ours = {name: each.grad.clone() for name, each in pair.student.named_parameters()}

    logp_NV = plain_logits(pair.teacher.network, OWN, rollout).detach().log_softmax(-1)
    pair.student.zero_grad()
    logq_NV = plain_logits(pair.student, PROMPTS, rollout).log_softmax(-1)
    loss = divergences.reverse_kl(logq_NV, logp_NV).mean()
    loss.backward()
    torch.testing.assert_close(value, loss.detach(), rtol=0, atol=1e-10)
    for name, each in pair.student.named_parameters():
        torch.testing.assert_close(ours[name], each.grad, rtol=0, atol=1e-10)
    mask = rollout.response_mask_BR
    chosen = logp_NV.gather(-1, rollout.response_ids_BR[mask].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rollout.teacher_logprobs_BR[mask], chosen, rtol=0, atol=1e-10)
    same = rollout_divergence(
        module.model, pair.teacher, rollout.for_teacher, ROADS[0], max_tokens=20
    ).reverse_kl_BR.sum()
    kl = rollout_divergence(module.model, pair.teacher, rollout, ROADS[0], max_tokens=20).reverse_kl_BR.sum()
    assert abs(kl / mask.sum() - loss) < 1e-10 and abs(kl - same) > 0.1


@pytest.mark.parametrize("objective", [MiniLLM(), ForwardKL(long_part=True)])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_with_the_same_prompt_all_numbers_are_those_of_a_run_without_it(objective, alpha):
    found = []
    for prompts in (prompt_batch(), batch(own=PROMPTS)):
        pair = make_pair()
        module = module_of(pair, objective, alpha)
        rollout = module.rollout(TrainBatch(prompts))
        values = module._policy_gradients(prepared(rollout, objective))
        found.append(([*values.values()], [each.grad for each in pair.student.parameters()], rollout))
    (one, one_grads, before), (two, two_grads, after) = found
    assert all(map(torch.equal, one + one_grads, two + two_grads))
    assert torch.equal(before.teacher_hidden_BRH, after.teacher_hidden_BRH)


def test_a_teacher_that_answers_alone_reads_its_own_prompt():
    pair = make_pair()
    options = dict(seeds=[1, 2, 3], batch_size=2, max_new_tokens=6, stop_ids=(0, 4, 9, 20, 25), pad_id=0)
    ours = decode(None, pair.teacher, batch(), alpha=1.0, **options)
    own = decode(None, pair.teacher, batch().for_teacher, alpha=1.0, **options)
    assert torch.equal(ours.response_ids_BR, own.response_ids_BR)
    assert torch.equal(ours.teacher_logprobs_BR, own.teacher_logprobs_BR)
    assert ours.prompt_mask_BP.sum(-1).tolist() == list(map(len, PROMPTS))


def test_kd_on_given_answers_takes_the_own_prompt():
    pair = make_pair()
    rollout = batch().answered(*pad([[5, 6, 0], [7, 0], [8, 9, 10, 0]], 0, left=False))
    (micro,) = micro_batches(rollout, rollout.ids_BS.numel())
    loss = micro.loss(ROADS[1], CrossEntropy(1.0), LanguageModel(pair.student), pair.teacher, 9).loss
    logq_NV = plain_logits(pair.student, PROMPTS, rollout).log_softmax(-1)
    logp_NV = plain_logits(pair.teacher.network, OWN, rollout).log_softmax(-1)
    torch.testing.assert_close(loss, divergences.cross_entropy(logq_NV, logp_NV).mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_stored_answers_keep_the_teachers_prompt(alpha):
    """Given ones and those of an earlier rollout."""
    pair = make_pair()
    module = module_of(pair, alpha=alpha)
    ids, mask = pad([[5, 6, 0], [7, 0], [8, 9, 10, 0]], 0, left=False)
    prompts = replace(batch(), reference_ids_BR=ids, reference_mask_BR=mask)
    module.stored = Stored(on_policy=0.7, replay=0.3, seed=3)
    module.stored.keep(module.rollout(TrainBatch(prompts)))
    rollout = module.rollout(TrainBatch(replace(prompts, index=1)))
    assert len(module.stored.rows) > rollout.given_B.sum() == 1
    order = rollout.records_B.tolist()
    logp_NV = plain_logits(pair.teacher.network, [OWN[at] for at in order], rollout).detach().log_softmax(-1)
    counted = rollout.response_mask_BR
    chosen = logp_NV.gather(-1, rollout.response_ids_BR[counted].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rollout.teacher_logprobs_BR[counted], chosen, rtol=0, atol=1e-10)


def test_two_processes_put_the_prompts_together():
    prompts = batch()

    class Second(type(ALONE)):
        def largest(self, n):
            return n

        def join_rows(self, rows):
            return torch.cat([rows, rows])[:3]

    mine = module_of(make_pair()).rollout(TrainBatch(prompts.rows([0, 1])))
    whole = joined(mine, Second(1, 2))
    lengths = [whole.prompt_mask_BP.sum(-1).tolist(), whole.for_teacher.prompt_mask_BP.sum(-1).tolist()]
    assert lengths == [[len(rows[at]) for at in (0, 1, 0)] for rows in (PROMPTS, OWN)]


def test_a_sampler_that_loses_the_teachers_prompts_is_refused():
    class Forgets(Sampler):
        def rollout(self, *args, **options):
            return replace(super().rollout(*args, **options), teacher_prompt_ids_BP=None)

    module = module_of(make_pair())
    module.sampler = Forgets(alpha=0.0, max_new_tokens=3)
    with pytest.raises(ConfigError, match="sampler Forgets: loses the teacher's prompts"):
        module.rollout(TrainBatch(batch()))


RECORD = Record("a", "name cat", "red", references=("big dog",))


def texts(record, **settings):
    """The prompt of each side."""
    pair = make_pair()
    pair.tokenizer.chat_template = "{{ 'one ' if think else '' }}" + pair.tokenizer.chat_template
    made = Sources(**{"template": "chat"} | settings).evaluation_prompts([record], pair, "x", teacher=True)
    return tuple(pair.tokenizer.decode(each.prompt_ids[0]) for each in (made, made.for_teacher))


@pytest.mark.parametrize(
    ("own", "settings", "student", "teacher"),
    [
        ({}, {}, "user", "user"),
        (dict(teacher_system="a"), {}, "user", "system a </s> user"),
        (dict(teacher_context="tree"), {}, "user", "user tree"),
        ({}, dict(teacher_system="one"), "user", "system one </s> user"),
        (dict(teacher_system="two"), dict(teacher_system="one", system="big"), "system big </s> user",
         "system two </s> user"),
        (dict(history=(("system", "big"),)), dict(teacher_system="two"), "system big </s> user",
         "system two </s> user"),
        ({}, dict(teacher_context="why {reference}"), "user", "user why big dog"),
        ({}, dict(teacher_template_arguments={"think": True}), "user", "one user"),
    ],
)  # fmt: skip
def test_what_each_side_sees(own, settings, student, teacher):
    found = texts(replace(RECORD, **own), **settings)
    assert found == tuple(f"{each} name cat red </s> assistant" for each in (student, teacher))


def test_the_papers_template_has_both_before_the_question():
    record = replace(RECORD, teacher_system="one two", teacher_context="big")
    student, teacher = texts(record, template="paper")
    assert teacher == student.replace("name cat", "one two big name cat") != student


def test_a_file_holds_the_text_and_a_missing_one_is_refused(tmp_path):
    (tmp_path / "system.txt").write_text("one two\n")
    assert "system one two </s>" in texts(RECORD, teacher_system=str(tmp_path / "system.txt"))[1]
    with pytest.raises(
        ConfigError, match=r"teacher_context=no\.md: wanted a text, or a \.txt or \.md file that is there"
    ):
        Sources(teacher_context="no.md")


def test_the_longer_prompt_counts_and_records_without_a_reference_are_dropped():
    pair, rows = make_pair(), [RECORD, replace(RECORD, references=()), replace(RECORD, references=("big " * 60,))]
    sources = Sources(template="chat", teacher_context="why {reference}", max_prompt_tokens=30, max_tokens=31)
    made = sources.evaluation_prompts(rows, pair, "x", teacher=True)
    assert len(made) == 1 and made.dropped["longer than 30 tokens"] == 1 and made.dropped.total() == 2
    assert made.longest == len(made.teacher_ids[0]) > len(made.prompt_ids[0])
    plain = sources.evaluation_prompts(rows, pair, "x")
    assert plain.teacher_ids is None and len(plain) == 3 and plain.digest() != made.digest()


@pytest.mark.parametrize("key", ["teacher_system", "teacher_context"])
def test_a_key_of_a_wrong_type_is_named_with_its_line(tmp_path, key):
    file, chat = tmp_path / "data.jsonl", {"messages": [{"role": "user", "content": "a"}]}
    rows = [chat | {key: "ours"}, chat | {key: None}, chat | {key: 3}, {"instruction": "a", key: ["b"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert [getattr(record, key) for record in read_records(str(file))] == ["ours", None]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"(?s):3: key {key}: wanted text, got int.*:4: key {key}: wanted"):
        read_records(str(file))
