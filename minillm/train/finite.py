"""Numbers that are not finite: found before they reach the weights, named, saved for study, skipped or fatal.

The normal path costs one look of the host at a rollout and one at an optimizer step; all else is done when that look
finds something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillm.common.console import say
from minillm.common.errors import NonFiniteError
from minillm.common.types import Experience, Rollout
from minillm.parallel import own_part

_SHOWN, _SAVED = 8, 20  # prompts in a message; batches that one process writes


@dataclass(frozen=True)
class Concerned:
    """What a step was made of: the rows of the training prompts, and tensors by name."""

    records: Tensor
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, rollout: Rollout, records: Tensor) -> Concerned:
        """Without the teacher's hidden states, which are large and can be computed again."""
        values = {each.name: getattr(rollout, each.name) for each in fields(rollout)}
        values |= values.pop("constants", {})
        return cls(
            records, {name: v for name, v in values.items() if isinstance(v, Tensor) and not name.endswith("_BRH")}
        )


class Finite:
    """Of one module; the settings are optim.on_nonfinite and optim.skip_limit. Processes agree on each verdict."""

    def __init__(self):
        self.skipped = 0  # optimizer steps in this round
        self._in_a_row = self._saved = 0
        self._zero = False  # gradients were, which is said once

    def metrics(self) -> dict[str, float]:
        """Of the round that ends; nothing where nothing was skipped."""
        skipped, self.skipped = self.skipped, 0
        return {"optim/skipped": float(skipped)} if skipped else {}

    def look(self, module, experience: Experience, records: Tensor) -> None:
        """At a rollout, before anything is learned from it. With on_nonfinite=skip it is said, and the steps that read
        a bad row are skipped one by one.

        Raises:
            NonFiniteError: log-probs, or constants of the objective, are not finite, with on_nonfinite=abort.
        """
        studied = {name: getattr(experience, f"{name}_BR") for name in ("student_logprobs", "teacher_logprobs")}
        counted = {name: _counted(experience, each) for name, each in (studied | experience.constants).items()}
        good = torch.stack([values.sum(dtype=torch.float64) for values in counted.values()]).isfinite().all()
        if not _agreed(module, not good):
            return
        bad_BR = torch.stack([~values.isfinite() for values in counted.values()]).any(0)
        found = [_count(name, values) for name, values in counted.items() if not values.isfinite().all()]
        rows = bad_BR.any(-1).nonzero().squeeze(-1)
        message = self._tell(
            module, found, lambda: Concerned.of(experience.rows(rows), records[rows.to(records.device)])
        )
        if module.optim.on_nonfinite == "abort":
            raise NonFiniteError(message)
        say(f"WARNING: {message}")

    def norm(self, module, optimizer, values: dict[str, Tensor], concerned: Callable[[], Concerned]) -> Tensor | None:
        """The gradient norm (0-d) if it and `values` (0-d, of the loss) are finite in all processes; else None, the
        gradients cleared: the step is not to be made.

        Raises:
            NonFiniteError: with on_nonfinite=abort, or when skip_limit steps in a row were not finite.
        """
        norm = module.optim.norm(optimizer)
        looked_at = {"optim/grad_norm": norm, **values}
        bad, zero = torch.stack([~all_finite(looked_at.values()), norm == 0]).tolist()
        if not _agreed(module, bad):
            self._in_a_row = 0
            if zero and not self._zero:
                self._zero = True
                self._warn_zero(module)
            return norm
        found = [f"{name} is {value.item()}" for name, value in looked_at.items() if not value.isfinite()]
        gradients = [
            name
            for name, each in module.named_parameters()
            if each.grad is not None and not own_part(each.grad).isfinite().all()
        ]
        if gradients:
            found.append(f"gradients of {len(gradients)} weights ({', '.join(gradients[:3])})")
        message = self._tell(module, found, concerned)
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        optimizer.zero_grad(set_to_none=True)
        if module.optim.on_nonfinite == "abort":
            raise NonFiniteError(message)
        if self._in_a_row >= module.optim.skip_limit:
            raise NonFiniteError(f"{message}. {self._in_a_row} in a row: optim.skip_limit={module.optim.skip_limit}")
        say(f"WARNING: {message}; skipped ({self._in_a_row} in a row)")
        return None

    @staticmethod
    def _warn_zero(module) -> None:
        step, key = module.start_step + module.step, "start.learning_rate" if module.in_start else "optim.learning_rate"
        say(
            f"WARNING: all gradients are 0 at step {step}, so that nothing is learned from it. Likely causes: {key} is "
            "so large that the student gives all tokens the same probability, or one token all of it; or the student "
            "equals the teacher"
        )

    def _tell(self, module, found: list[str], concerned: Callable[[], Concerned]) -> str:
        """One sentence, and the batch in files."""
        rank, step = module.global_rank, module.start_step + module.step
        batch = concerned()
        records = [module.trainer.datamodule.train_prompts.records[row] for row in batch.records.tolist()]
        shown = ", ".join(record.id for record in records[:_SHOWN])
        more = f" and {len(records) - _SHOWN} more" if len(records) > _SHOWN else ""
        text = f"not finite at rollout {module.round}, step {step}, rank {rank}: "
        text += (
            f"{'; '.join(found) or 'numbers of another process'}. Prompts: {shown or 'none of this process'}{more}. "
        )
        text += "The weights are as they were"
        if self._saved < _SAVED:
            self._saved += 1
            folder = Path(module.trainer.default_root_dir) / "nonfinite"
            text += f"; the batch is in {_save(module, batch, records, folder / f'step_{step}_rank_{rank}')}"
        if module.optim.on_nonfinite == "abort":
            text += ". Try a smaller optim.learning_rate, or leave such steps out: resume=auto optim.on_nonfinite=skip"
        return text


def all_finite(values: Iterable[Tensor]) -> Tensor:
    """Of 0-d values, as one. They may be on several devices: with strategy.cpu_offload the norm of gradients is on the
    CPU, where those wait, and the loss is on the GPU."""
    values = list(values)
    return torch.stack([each.to(values[0].device, torch.float64) for each in values]).isfinite().all()


def _agreed(module, bad) -> bool:
    return module.trainer.strategy.reduce_boolean_decision(bool(bad), all=False)


def _counted(rollout: Rollout, values_BR: Tensor) -> Tensor:
    """0 where the mask does not count."""
    return torch.where(rollout.response_mask_BR, values_BR, 0.0)


def _count(name: str, values: Tensor) -> str:
    return f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values"


def _save(module, batch: Concerned, records: list, stem: Path) -> str:
    """STEM.safetensors with the tensors, STEM.jsonl with the prompts; or why not."""
    tokenizer, answers = module.pair.tokenizer, batch.tensors.get("response_ids_BR")
    rows = [{"id": record.id, "prompt": record.conversation, "references": record.references} for record in records]
    if answers is not None:
        for row, ids, mask in zip(rows, answers, batch.tensors["response_mask_BR"], strict=True):
            row["answer"] = tokenizer.decode(ids[mask].tolist(), clean_up_tokenization_spaces=False)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in batch.tensors.items()}
        save_file(tensors, f"{stem}.safetensors")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(f"{stem}.jsonl").write_text(text, encoding="utf-8")
    except Exception as error:  # what is told must not be lost for it; safetensors has errors of its own
        return f"no file ({error})"
    return f"{stem}.safetensors and .jsonl"
