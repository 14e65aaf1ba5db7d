"""The memory that a run will need, and what `auto` stands for in settings that change memory and speed, and numbers by
no more than rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.common.errors import ConfigError
from minillm.objectives import START, TEACHER
from minillm.parallel import Parallel
from minillm.planning import Case, Memory, Sizes, measure
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings

if TYPE_CHECKING:
    from minillm.data import PromptSet
    from minillm.models import Pair

AUTO = "auto"
SHARE = 0.8  # of a GPU's memory that a plan may fill: it can be 15% off, and validation is not in it


@dataclass(frozen=True)
class AutoSizes:
    """The values of `sampler.batch_size`, `regime.microbatch_tokens`, `regime.microbatch_size` (of regime=supervised)
    and `linear_loss.chunk_mb`."""

    rows: int
    tokens: int
    answers: int
    chunk_mb: float

    @classmethod
    def stored(cls, values: Any, file: Path) -> AutoSizes:
        """Raises ConfigError: `file` holds other values."""
        names = {each.name for each in fields(cls)}
        whole = isinstance(values, dict) and values.keys() == names
        if not whole or not all(type(each) in (int, float) and each > 0 for each in values.values()):
            raise ConfigError(f"{file}: damaged (sizes={values!r}); delete it, and the run chooses its sizes anew")
        return cls(**values)

    def fill(self, settings: Settings) -> Settings:
        """The settings with these sizes in place of every `auto`. Where the objective divides by what is in a
        micro-batch, its size changes the numbers, and is what it is on a CPU."""
        sampler, regime, loss = settings.sampler, settings.regime, settings.linear_loss
        here = CPU if settings.objective.per_micro_batch else self
        if sampler.batch_size == AUTO:
            sampler = replace(sampler, batch_size=self.rows)
        if isinstance(regime, OnPolicy) and regime.microbatch_tokens == AUTO:
            regime = replace(regime, microbatch_tokens=here.tokens)
        elif regime.microbatch_size == AUTO:
            fitting = (n for n in range(self.answers, 0, -1) if regime.minibatch_size % n == 0)
            regime = replace(regime, microbatch_size=next(fitting))
        if loss.chunk_mb == AUTO:
            loss = replace(loss, chunk_mb=self.chunk_mb)
        return replace(settings, sampler=sampler, regime=regime, linear_loss=loss)


CPU = AutoSizes(rows=32, tokens=2048, answers=8, chunk_mb=32.0)
MOST = AutoSizes(rows=256, tokens=16_384, answers=32, chunk_mb=512.0)  # more makes no GPU faster
LEAST = AutoSizes(rows=8, tokens=512, answers=1, chunk_mb=16.0)


def choose(
    settings: Settings,
    make: Callable[[Settings], Case],
    memory: float,
    measure: Callable[[Case], Memory] = measure,
) -> tuple[AutoSizes, Case]:
    """The sizes that fill a GPU, halved until each phase of the run needs at most SHARE of its `memory` (GB); the least
    ones where nothing fits. And the case with them, as `make` makes it of settings without `auto`."""
    case = make(CPU.fill(settings))
    sizes = replace(MOST, rows=min(MOST.rows, max(LEAST.rows, case.local(case.rollouts))))
    while True:
        case = make(sizes.fill(settings))
        found = measure(case)
        rollout, update = (sum(phase.values()) > SHARE * memory for phase in (found.rollout, found.update))
        # Where the teacher takes no part in decoding, it scores answers in micro-batches, which belong to the rollout.
        update |= rollout and not case.teacher_decodes
        names = [*["rows"] * rollout, *["tokens", "answers", "chunk_mb"] * update]
        smaller = replace(sizes, **{each: max(getattr(LEAST, each), getattr(sizes, each) // 2) for each in names})
        if smaller == sizes:
            return sizes, case
        sizes = smaller


def case_of(
    settings: Settings,
    student: Sizes,
    teacher: Sizes | None,
    reference: Sizes | None = None,
    *,
    prompt: int,
    answer: int,
    half: bool,
    layout: Parallel | None = None,
) -> Case:
    """What settings without `auto` mean for memory and time.

    Args:
        prompt, answer: tokens of the longest ones. half: whether autocast computes products in bfloat16. layout: that
            of the settings unless it is given.
    """
    model, regime, regulariser = settings.model, settings.regime, settings.regulariser
    tokens = regime.microbatch_tokens if regime.rollouts else regime.microbatch_size * settings.data.longest
    return Case(
        student,
        teacher,
        prompt=prompt,
        answer=answer,
        minibatch=regime.minibatch_size,
        microbatch_tokens=tokens,
        microbatch_rows=regime.microbatch_size,
        rollouts=regime.rollouts,
        decoded=settings.sampler.batch_size,
        chunk_mb=settings.linear_loss.chunk_mb,
        reads_teacher=TEACHER in settings.objective.needs,
        shares_base=model.own_teacher == "base" or (model.own_teacher == "ema" and model.lora is not None),
        start=(reference or student) if START in settings.objective.needs else None,
        keep_states=regime.rollouts > 0 and regime.teacher_states == "keep",
        teacher_decodes=settings.sampler.alpha > 0,
        blocks=regulariser.batch_size if regulariser.on else 0,
        block=settings.data.block_size,
        corpus_teacher=bool(regulariser.on and regulariser.needs),
        offload=bool(getattr(model.teacher, "offload", False)),
        half=half,
        recompute=model.gradient_checkpointing,
        layout=layout or settings.strategy,
    )


def sizes_of(pair: Pair) -> tuple[Sizes, Sizes | None, Sizes | None]:
    """Of student, teacher and reference as they are loaded; of several teachers the largest, with the weights of
    all."""
    networks = [each.network for each in pair.teachers.values()]
    teacher = max(map(Sizes.of, networks), key=lambda each: each.parameters, default=None)
    if pair.teacher_names:
        weights = {id(each): each for network in networks for each in network.parameters()}.values()
        stored = sum(each.numel() * each.element_size() for each in weights)
        teacher = replace(teacher, stored=stored, width=pair.teacher.width)
    if pair.teacher is not None and pair.teacher.served:  # only its head is here
        teacher = teacher.served
    return Sizes.of(pair.student), teacher, pair.reference and Sizes.of(pair.reference.network)


def choose_sizes(settings: Settings, pair: Pair, train: PromptSet, precision: str, memory: float | None) -> AutoSizes:
    """What `auto` stands for on this device: on a GPU what fits into its `memory` (GB), see `choose`; on a CPU (None)
    fixed sizes."""
    if memory is None:
        return CPU
    models = dict(zip(("student", "teacher", "reference"), sizes_of(pair), strict=True))
    sizes = dict(prompt=train.longest, answer=settings.answer_tokens, half=precision == "bf16-mixed")
    return choose(settings, partial(case_of, **models, **sizes), memory)[0]
