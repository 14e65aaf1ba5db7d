"""The config group `sampler`: how answers are drawn while training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from minillm.common.errors import check

if TYPE_CHECKING:
    from minillm.common.types import PromptBatch, Rollout
    from minillm.models import LanguageModel, Pair


@dataclass(frozen=True)
class Sampler:
    """The config group `sampler`. `alpha` is the teacher's share in p~ = alpha p + (1 - alpha) q (paper, section 2.2;
    0 samples from the student alone); lengths in tokens; `batch_size` rows are decoded at a time (in a config `auto`
    stands for a number, see `train.preview.memory`); `answers_per_prompt` of `regime.rollouts` have one prompt."""

    alpha: float = 0.2
    temperature: float = 1.0
    max_new_tokens: int = 256
    batch_size: int | Literal["auto"] = 32
    answers_per_prompt: int = 1

    one_process: ClassVar[bool] = False  # it cannot answer for several
    figures: ClassVar[dict[str, float]] = {}  # of its newest rollout, to be logged
    full_support: ClassVar[bool] = True  # every token that the student can say can be drawn; else weights are biased

    def __post_init__(self):
        check(
            (0 <= self.alpha < 1, f"alpha={self.alpha}: wanted a number in [0, 1); 0 samples from the student alone"),
            (self.temperature > 0, f"temperature={self.temperature}: wanted a number above 0"),
            (self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens}: wanted a positive number of tokens"),
            (self.answers_per_prompt > 0, f"answers_per_prompt={self.answers_per_prompt}: wanted 1 or more"),
            (
                self.batch_size == "auto" or self.batch_size > 0,
                f"batch_size={self.batch_size}: wanted a positive number of rows, or auto",
            ),
        )

    def begin(self, pair: Pair) -> None:
        """Called before a run. Raises ModelError where it cannot answer for the pair's student."""

    def rollout(
        self,
        student: LanguageModel,
        teacher: LanguageModel,
        prompts: PromptBatch,
        seeds: list[int],
        *,
        stop_ids: tuple[int, ...],
        pad_id: int,
        keep_hidden: bool = True,
        interrupt: Callable[[], None] | None = None,
    ) -> Rollout:
        """Answers for all prompts. With alpha 0 the teacher takes no part; see `with_teacher`."""
        from minillm.rollout.decoding import decode

        return decode(
            student,
            teacher if self.alpha else None,
            prompts,
            seeds=seeds,
            batch_size=self.batch_size,
            stop_ids=stop_ids,
            pad_id=pad_id,
            max_new_tokens=self.max_new_tokens,
            alpha=self.alpha,
            temperature=self.temperature,
            keep_hidden=keep_hidden,
            interrupt=interrupt,
        )
