"""Frozen dataclasses of tensors that pass between packages.

Axes: B rows, P prompt positions (left padded), R response positions (right padded), H hidden width, M corpus blocks,
L block length. Masks are bool, True = counts; no mask is ever rebuilt from ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Rows:
    """Tensors that share their first axis; every other field is the same for all rows."""

    def _map(self, function):
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in changed.items() if isinstance(v, Tensor)})

    def rows(self, index):
        """The given rows, in that order."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device):
        return self._map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class PromptBatch(_Rows):
    """Prompts, left padded. `records` [B] are row numbers in the prompt set, equal for equal prompts; `references` are
    the tokenised answers that the data gives (with their end token), empty where it gives none. `teacher_` are the
    prompts that the teacher sees, None where it sees the same; P is the width of both; `teachers_B` numbers several."""

    ids_BP: Tensor
    mask_BP: Tensor
    records: Tensor
    index: int = 0
    reference_ids_BR: Tensor | None = None
    reference_mask_BR: Tensor | None = None
    teacher_ids_BP: Tensor | None = None
    teacher_mask_BP: Tensor | None = None
    teachers_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids_BP)

    @property
    def for_teacher(self) -> PromptBatch:
        """As the teacher sees them."""
        if self.teacher_ids_BP is None:
            return self
        own = dict(ids_BP=self.teacher_ids_BP, mask_BP=self.teacher_mask_BP)
        return replace(self, **own, teacher_ids_BP=None, teacher_mask_BP=None)

    def answered(self, ids_BR: Tensor, mask_BR: Tensor, **values) -> Rollout:
        """With answers: a rollout that has these other `values`."""
        teacher = dict(teacher_prompt_ids_BP=self.teacher_ids_BP, teacher_prompt_mask_BP=self.teacher_mask_BP)
        values = dict(teachers_B=self.teachers_B) | values
        return Rollout(self.ids_BP, self.mask_BP, ids_BR, mask_BR, **teacher, **values)

    def flush_left(self) -> tuple[Tensor, list[int]]:
        """[B, P] prompts moved to begin at column 0 (what follows them is undefined), and their lengths."""
        n_columns = self.ids_BP.shape[1]
        lengths_B = self.mask_BP.sum(-1)
        columns_BP = torch.arange(n_columns, device=lengths_B.device) + (n_columns - lengths_B).unsqueeze(-1)
        return self.ids_BP.gather(1, columns_BP.clamp(max=n_columns - 1)), lengths_B.tolist()


@dataclass(frozen=True)
class Rollout(_Rows):
    """Prompts with their sampled answers. Log-probabilities are of the chosen tokens under the full distributions at
    `temperature` (if `decode` had a `no_repeat_ngram_size`, without the tokens it banned); those of the `behaviour` are
    under whatever drew the tokens: the student, a mixture, another temperature. `near_edge_BR` marks draws so close to
    the edge of a token's share that rounding in float32 may decide (see `draw`; half types round more). `costs_BR`
    and `start_logprobs_BR` are there for an objective that needs them. `teacher_prompt` is what the teacher sees in the
    place of the prompt, None where it sees the same. `given_B` marks answers of the data: they have no behaviour
    policy, so that their weight is 1 and they have no policy gradient; None where all are sampled. `records_B`,
    `teachers_B`: see `PromptBatch`. `rewards_B`, and what they add to the advantages, `gains_B`: see `train.reward`.
    `spans_BR2` is there where the teacher has tokens of its own, see `rollout.spans`; an answer that was dropped then
    has an empty mask."""

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BR: Tensor
    response_mask_BR: Tensor
    student_logprobs_BR: Tensor | None = None
    teacher_logprobs_BR: Tensor | None = None
    teacher_hidden_BRH: Tensor | None = None
    near_edge_BR: Tensor | None = None
    behaviour_logprobs_BR: Tensor | None = None
    costs_BR: Tensor | None = None
    start_logprobs_BR: Tensor | None = None
    teacher_prompt_ids_BP: Tensor | None = None
    teacher_prompt_mask_BP: Tensor | None = None
    given_B: Tensor | None = None
    records_B: Tensor | None = None
    rewards_B: Tensor | None = None
    gains_B: Tensor | None = None
    teachers_B: Tensor | None = None
    spans_BR2: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.response_ids_BR)

    def trimmed(self):
        """A copy without the leading prompt columns and trailing response columns that no row uses."""
        prompts = [self.prompt_mask_BP, self.for_teacher.prompt_mask_BP]
        first = int(torch.cat(prompts).any(0).int().argmax())
        used = self.response_mask_BR.any(0).nonzero()
        last = int(used[-1]) + 1 if len(used) else 0
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in cut.items():
            if isinstance(value, Tensor) and value.dim() > 1:
                # Contiguous: a view would keep what was cut off in memory.
                cut[name] = (value[:, first:] if name.endswith("_BP") else value[:, :last]).contiguous()
        return replace(self, **cut)

    @property
    def for_teacher(self) -> Rollout:
        """As the teacher sees it."""
        if self.teacher_prompt_ids_BP is None:
            return self
        own = dict(prompt_ids_BP=self.teacher_prompt_ids_BP, prompt_mask_BP=self.teacher_prompt_mask_BP)
        return replace(self, **own, teacher_prompt_ids_BP=None, teacher_prompt_mask_BP=None)

    @property
    def sampled_mask_BR(self) -> Tensor:
        """The response mask without the given answers."""
        mask_BR = self.response_mask_BR
        return mask_BR if self.given_B is None else mask_BR & ~self.given_B.unsqueeze(-1)

    @property
    def ids_BS(self) -> Tensor:
        return torch.cat([self.prompt_ids_BP, self.response_ids_BR], dim=1)


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with the `constants` of its tokens, [B, R] each, that an objective computed from it once."""

    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def _map(self, function):
        changed = {name: function(each) for name, each in self.constants.items()}
        return replace(super()._map(function), constants=changed)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise and its parts (detached 0-d tensors, already divided by the same denominator)."""

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class TrainBatch:
    """What one rollout needs: its prompts, and one corpus batch [M, L] for each of its S optimizer steps."""

    prompts: PromptBatch
    corpus_SML: Tensor | None = None

    def to(self, device):
        return TrainBatch(self.prompts.to(device), None if self.corpus_SML is None else self.corpus_SML.to(device))


@dataclass(frozen=True)
class SupervisedBatch:
    """A micro-batch of prompts with given answers. `n_tokens` counts the response tokens of its whole
    mini-batch."""

    prompts: PromptBatch
    n_tokens: int

    def to(self, device):
        return replace(self, prompts=self.prompts.to(device))
