"""Numbers that are not finite, injected: the update is not made, tensor, step and prompts are named, the batch kept."""

import json
import math

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from minillm.common.errors import NonFiniteError
from tests.integration.test_resume import rows, train


class Spoil(L.Callback):
    """`how` is called with the module before the given round; later than that, `mend`."""

    def __init__(self, round, how, mend=None):
        self.round, self.how, self.mend = round, how, mend
        self.before = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.round == self.round and self.before is None:
            self.before = {name: value.clone() for name, value in module.state_dict().items()}
            self.how(module)
        elif module.round > self.round and self.mend:
            self.mend(module)


def teacher_weight(value):
    def how(module):
        with torch.no_grad():
            module.pair.teacher.network.get_output_embeddings().weight[7].fill_(value)

    return how


def student_gradient(value, times=None):
    """A gradient that spoils itself on its way back through one weight."""

    def how(module):
        parameter = module.student.get_output_embeddings().weight
        left = [times]

        def hook(gradient):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    return gradient
            return torch.full_like(gradient, value)

        parameter.register_hook(hook)

    return how


def reward(module):
    """An overflow: finite log-probs, divided by next to nothing."""
    object.__setattr__(module.objective, "reward_scaling", 1e-40)


def loss(module):
    from minillm.objectives import MiniLLM, TokenLoss

    real = MiniLLM.token_loss

    def spoiled(self, *given):
        values_N, parts = real(self, *given)
        return TokenLoss(values_N + math.inf, parts)

    object.__setattr__(module.objective, "token_loss", spoiled.__get__(module.objective))


def corpus(module):
    object.__setattr__(module.regulariser, "coefficient", math.inf)


CASES = {
    "teacher": (teacher_weight(math.nan), "teacher_logprobs: "),
    "reward": (reward, "advantages: "),
    "loss": (loss, "train/loss is inf"),
    "gradient": (student_gradient(math.nan), "optim/grad_norm is nan; gradients of 1 weights (student.lm_head.weight)"),
    "infinite gradient": (student_gradient(-math.inf), "optim/grad_norm is inf; gradients of 1 weights"),
    "corpus": (corpus, "train/pretrain is inf"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_stops_before_the_update_and_says_where(tmp_path, overrides, world, case):
    how, text = CASES[case]
    spoil = Spoil(2, how)
    with pytest.raises(NonFiniteError) as caught:
        run = train(tmp_path, overrides, also=spoil)
        pytest.fail(f"step {run.module.step}")
    message = str(caught.value)
    assert message.startswith("not finite at rollout 2, step 4, rank 0: ") and text in message
    assert f"Prompts: {world}/train.jsonl:" in message and "optim.on_nonfinite=skip" in message
    (tensors,), (lines,) = ((tmp_path / "nonfinite").glob(f"step_4_rank_0.{kind}") for kind in ("safetensors", "jsonl"))
    batch = load_file(tensors)
    prompts = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(prompts) == len(batch["response_ids_BR"]) > 0 and "teacher_hidden_BRH" not in batch
    known = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in prompts:
        assert row["id"] in message and row["references"] == [known[int(row["id"].rsplit(":")[1]) - 1]["output"]]
    if case == "teacher":
        assert not batch["teacher_logprobs_BR"][batch["response_mask_BR"]].isfinite().all()


def test_the_weights_are_as_they_were(tmp_path, overrides):
    spoil, last = Spoil(2, student_gradient(math.nan)), {}

    class Look(L.Callback):
        def on_exception(self, trainer, module, exception):
            last.update(module.state_dict())

    spoil.on_exception = Look().on_exception
    with pytest.raises(NonFiniteError):
        train(tmp_path, overrides, also=spoil)
    assert all(torch.equal(last[name], value) for name, value in spoil.before.items())


def test_a_step_that_is_skipped_leaves_weights_and_moments_and_is_counted(tmp_path, overrides):
    """One of the two steps of round 2; the run equals one whose optimizer had rested there."""
    skip = [*overrides, "optim.on_nonfinite=skip"]
    run = train(tmp_path / "a", skip, also=Spoil(2, student_gradient(math.nan, times=2)))  # policy and corpus

    class Rest(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if module.round == 2:
                real = module.optim.step
                calls = []

                def step(optimizer, norm, rate):
                    calls.append(1)
                    if len(calls) > 1:
                        return real(optimizer, norm, rate)
                    optimizer.zero_grad()

                object.__setattr__(module.optim, "step", step)

    rested = train(tmp_path / "b", overrides, also=Rest())
    mine, theirs = run.module.state_dict(), rested.module.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items()) and run.module.step == 6
    skipped = [row["optim/skipped"] for row in rows(tmp_path / "a") if "optim/skipped" in row]
    assert skipped == ["1.0"] and all(math.isfinite(float(v)) for row in rows(tmp_path / "a") for v in row.values())


def test_too_many_in_a_row_end_the_run(tmp_path, overrides):
    options = [*overrides, "optim.on_nonfinite=skip", "optim.skip_limit=3"]
    with pytest.raises(NonFiniteError, match=r"step 6, rank 0.* 3 in a row: optim.skip_limit=3"):
        train(tmp_path, options, also=Spoil(2, teacher_weight(math.nan)))


@pytest.mark.parametrize("policy", ["abort", "skip"])
def test_the_supervised_regime(tmp_path, supervised, policy):
    options = [*supervised, f"optim.on_nonfinite={policy}"]
    states = {}

    class Watch(Spoil):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states[module.step] = {name: value.clone() for name, value in module.state_dict().items()}

    watch = Watch(2, student_gradient(math.nan, times=2))
    if policy == "abort":
        with pytest.raises(NonFiniteError, match="rollout 2, step 2, rank 0: optim/grad_norm is nan"):
            train(tmp_path, options, also=watch)
        assert len((tmp_path / "nonfinite" / "step_2_rank_0.jsonl").read_text().splitlines()) == 4
        return
    train(tmp_path, options, also=watch)
    assert all(torch.equal(states[3][name], value) for name, value in watch.before.items())
    assert any(not torch.equal(states[4][name], value) for name, value in states[3].items())
    assert [row["optim/skipped"] for row in rows(tmp_path) if "optim/skipped" in row] == ["1.0"]
