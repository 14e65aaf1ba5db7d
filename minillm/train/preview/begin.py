"""Before the first step of a run: collect, compare a few answers."""

from __future__ import annotations

import logging
from dataclasses import replace

import lightning as L
import torch

from minillm.common.errors import ModelError
from minillm.data import Corpus, PromptSet
from minillm.models import LanguageModel, Pair
from minillm.planning import measure
from minillm.train.preview.agreement import agreement, consistency
from minillm.train.preview.memory import case_of, sizes_of
from minillm.train.preview.page import Page, page_of, show, write
from minillm.train.preview.work import Work
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.resume import BEGUN
from minillm.train.settings import Settings
from minillm.train.student import TrainingModule

log = logging.getLogger(__name__)
_SIZES = ("sampler.batch_size", "regime.microbatch_tokens", "regime.microbatch_size", "linear_loss.chunk_mb")


def begin(
    settings: Settings,
    pair: Pair,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    precision: str,
) -> Preview | None:
    """The callback that shows the page of a run that begins; with preflight=false None, and the page's warnings are
    logged."""
    work, optim = work_of(settings, len(train)), settings.optim
    longest, half = train.longest, precision == "bf16-mixed"
    case = case_of(settings, *sizes_of(pair), prompt=longest, answer=settings.answer_tokens, half=half)
    chooses = settings.callbacks["record"].export == "best"
    page = page_of(
        pair,
        settings.data,
        train,
        validation,
        corpus,
        work,
        model=settings.model,
        memory=measure(case),
        monitor=settings.callbacks["checkpoints"].monitor if chooses else None,
    )
    late = f"optim.warmup_steps={optim.warmup_steps}: the run has {work.steps} optimizer steps, so that the learning "
    late += f"rate never reaches {optim.learning_rate:g}"
    groups = [(key, getattr(settings, key.split(".")[0]), key.split(".")[1]) for key in _SIZES]
    sizes = {key: size for key, group, name in groups if (size := getattr(group, name, None)) is not None}
    page = page.adding(
        *[late] * (optim.warmup_steps >= work.steps),
        rate=f"{optim.learning_rate:g}, {optim.schedule} after {optim.warmup_steps} steps of warm-up",
        sizes=", ".join(f"{key}={size:,g}" for key, size in sizes.items()),
    )
    if settings.plain["preflight"]:
        return Preview(page, settings, pair, train)
    for text in page.warnings:
        log.warning(text)
    return None


def work_of(settings: Settings, n_prompts: int) -> Work:
    """What the run will do with so many training prompts."""
    if isinstance(settings.regime, Supervised):
        return Work.supervised(settings.regime, n_prompts, settings.answer_tokens)
    rows = settings.regulariser.batch_size
    work = Work.on_policy(settings.regime, settings.start, settings.sampler, corpus_rows=rows)
    return replace(work, learns_references=work.learns_references or settings.data.on_policy < 1)


class Preview(L.Callback):
    """Completes the `page` by a few answers of the models, shows it and writes it into the run's directory."""

    def __init__(self, page: Page, settings: Settings, pair: Pair, train: PromptSet):
        self.page, self.settings, self.pair, self.train = page, settings, pair, train

    def on_fit_start(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Raises ModelError: see `check_consistency`. The run's name is free again then."""
        models = {"student": module.model} | ({} if self.pair.teacher_here is None else {"teacher": self.pair.teacher})
        if not self.settings.strategy.sharded:  # compiling for these few shapes would change those that follow
            models = {side: type(each)(each.network, self.pair.n_vocab) for side, each in models.items()}
        half = torch.autocast(module.device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed")
        try:
            with module.asking(), module.whole_weights(), half:
                self._compare(models)
        except ModelError:  # nothing is trained: the same command, with what is mended, makes this run
            if trainer.is_global_zero:
                for name in ("config.yaml", BEGUN, "metrics.csv"):
                    (self.settings.run_dir / name).unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            show(self.page)
            write(self.page, self.settings.run_dir)

    def _compare(self, models: dict[str, LanguageModel]) -> None:
        """Put on the page how far apart the models are."""
        settings, regime = self.settings, self.settings.regime
        work = work_of(settings, len(self.train))
        reach = self.train.longest + work.answer_tokens
        reach = reach if work.sampler else min(reach, settings.data.longest)
        temperature = work.sampler.temperature if work.sampler else 1.0
        tokens = regime.microbatch_tokens if isinstance(regime, OnPolicy) else regime.microbatch_size * reach
        sizes = dict(seed=settings.plain["seed"], max_new_tokens=work.answer_tokens, max_tokens=tokens)
        same = consistency(models, self.pair, self.train, longest=reach, temperature=temperature, **sizes)
        self.page = self.page.with_consistency(same)
        if self.pair.teacher is not None:
            teacher = models.get("teacher", self.pair.teacher)
            found = agreement(models["student"], teacher, self.pair, self.train, **sizes)
            self.page = self.page.with_agreement(found, self.pair.n_vocab)
