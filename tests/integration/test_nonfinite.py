"""Numbers that are not finite, injected: the update is not made; tensor, step and prompts are named."""

import math

import lightning as L
import pytest
import torch

from minillm.common.errors import NonFiniteError
from tests.integration.test_resume import rows, train


class Spoil(L.Callback):
    """`how` is called with the module before the given round; later than that, `mend`."""

    def __init__(self, round, how, mend=None):
        self.round, self.how, self.mend = round, how, mend
        self.before = self.last = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.round == self.round and self.before is None:
            self.before = {name: value.clone() for name, value in module.state_dict().items()}
            self.how(module)
        elif module.round > self.round and self.mend:
            self.mend(module)

    def on_exception(self, trainer, module, exception):
        self.last = module.state_dict()


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


@pytest.mark.quick
@pytest.mark.parametrize(
    "case",
    [
        each if each in ("teacher", "gradient", "corpus") else pytest.param(each, marks=pytest.mark.slow)
        for each in CASES
    ],
)
def test_the_run_stops_before_the_update_and_says_where(tmp_path, overrides, world, case):
    how, text = CASES[case]
    spoil = Spoil(2, how)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, overrides, also=spoil)
    message = str(caught.value)
    assert message.startswith("not finite at rollout 2, step 4, rank 0: ") and text in message
    assert f"Prompts: {world}/train.jsonl:" in message and "optim.on_nonfinite=skip" in message
    assert all(torch.equal(spoil.last[name], value) for name, value in spoil.before.items())


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
        return
    train(tmp_path, options, also=watch)
    assert all(torch.equal(states[3][name], value) for name, value in watch.before.items())
    assert any(not torch.equal(states[4][name], value) for name, value in states[3].items())
    assert [row["optim/skipped"] for row in rows(tmp_path) if "optim/skipped" in row] == ["1.0"]
