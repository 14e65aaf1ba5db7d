"""Numbers that are not finite are found before they reach the weights: the step is skipped, or the run stops.

The host looks once a rollout and once an optimizer step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from minillm.common.console import say
from minillm.common.errors import NonFiniteError
from minillm.common.types import Experience
from minillm.parallel import own_part

_SHOWN = 8  # prompts in a message


class Finite:
    """Checks of one module, by `optim.on_nonfinite` and `optim.skip_limit`. All processes agree on each verdict."""

    def __init__(self):
        self._skipped = self._in_a_row = 0

    def metrics(self) -> dict[str, float]:
        """Optimizer steps that were skipped in the round that ends; nothing where there were none."""
        skipped, self._skipped = self._skipped, 0
        return {"optim/skipped": float(skipped)} if skipped else {}

    def check_rollout(self, module, experience: Experience, records_B: Tensor) -> None:
        """Before anything is learned from it. With on_nonfinite=skip this is a warning; the steps that read a bad row
        are skipped one by one.

        Raises:
            NonFiniteError: log-probs, or constants of the objective, are not finite, with on_nonfinite=abort.
        """
        values = {name: getattr(experience, f"{name}_BR") for name in ("student_logprobs", "teacher_logprobs")}
        values |= experience.constants
        bad_XBR = torch.stack([~each.isfinite() & experience.response_mask_BR for each in values.values()])
        counts = bad_XBR.sum((1, 2)).tolist()
        if not _agreed(module, any(counts)):
            return
        size = experience.response_mask_BR.numel()
        found = [f"{name}: {n} of {size} values" for name, n in zip(values, counts, strict=True) if n]
        bad_B = bad_XBR.any(0).any(-1)
        message = _describe(module, found, records_B[bad_B.to(records_B.device)])
        if module.optim.on_nonfinite == "abort":
            raise NonFiniteError(message)
        say(f"WARNING: {message}")

    def norm(self, module, optimizer, losses: dict[str, Tensor], records_B: Tensor) -> Tensor | None:
        """The gradient norm (0-d) if it and the `losses` (0-d) are finite in all processes. Otherwise None, with the
        gradients cleared: the step is not made.

        Raises:
            NonFiniteError: with on_nonfinite=abort, or when skip_limit steps in a row were not finite.
        """
        norm = module.optim.norm(optimizer)
        values = {"optim/grad_norm": norm, **losses}
        if not _agreed(module, not all_finite(values.values())):
            self._in_a_row = 0
            return norm
        found = [f"{name} is {value.item()}" for name, value in values.items() if not value.isfinite()]
        gradients = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
        if names := [name for name, each in gradients.items() if not own_part(each).isfinite().all()]:
            found.append(f"gradients of {len(names)} weights ({', '.join(names[:3])})")
        message = _describe(module, found, records_B)
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        optimizer.zero_grad(set_to_none=True)
        if module.optim.on_nonfinite == "abort":
            raise NonFiniteError(message)
        if self._in_a_row >= module.optim.skip_limit:
            raise NonFiniteError(f"{message}. {self._in_a_row} in a row: optim.skip_limit={module.optim.skip_limit}")
        say(f"WARNING: {message}; skipped ({self._in_a_row} in a row)")
        return None


def all_finite(values: Iterable[Tensor]) -> Tensor:
    """Whether all 0-d values are finite. They may be on several devices: with strategy.cpu_offload the norm of the
    gradients is on the CPU and the loss on the GPU."""
    values = list(values)
    return torch.stack([each.to(values[0].device, torch.float64) for each in values]).isfinite().all()


def _agreed(module, bad: bool) -> bool:
    return module.trainer.strategy.reduce_boolean_decision(bool(bad), all=False)


def _describe(module, found: list[str], records_B: Tensor) -> str:
    ids = [module.trainer.datamodule.train_prompts.records[row].id for row in records_B.tolist()]
    prompts = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    return (
        f"not finite at rollout {module.round}, step {module.start_step + module.step}, rank {module.global_rank}: "
        f"{'; '.join(found) or 'numbers of another process'}. Prompts: {prompts or 'none of this process'}. "
        "The weights are as they were. Try a smaller optim.learning_rate, or leave such steps out: resume=auto "
        "optim.on_nonfinite=skip"
    )
