"""Before the first step of a run: collect, compare a few answers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch

from minillm.data import Corpus, PromptSet
from minillm.models import LanguageModel, Pair
from minillm.train.preview.agreement import agreement, consistency
from minillm.train.preview.facts import Preflight, collect
from minillm.train.preview.memory import case_of, estimate
from minillm.train.preview.page import show, write
from minillm.train.preview.work import Work
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.settings import Settings
from minillm.train.student import TrainingModule

log = logging.getLogger(__name__)


def begin(
    settings: Settings,
    plain: dict,
    pair: Pair,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    precision: str,
) -> Preflight | None:
    """The page of a run that begins, without what `Comparison` adds; with preflight=false None, and only warnings that
    take no time are logged.

    Args:
        settings, plain: the run's, as objects and as plain values. precision: the trainer's. The rest is what they have
            loaded.
    """
    if isinstance(settings.regime, Supervised):
        answer = min(settings.data.longest, settings.data.max_response_tokens)
        work = Work.supervised(settings.regime, len(train), answer)
    else:
        rows = settings.regulariser.batch_size
        work = Work.on_policy(settings.regime, settings.start, settings.sampler, corpus_rows=rows)
    longest = max(map(len, train.prompt_ids))
    case = case_of(settings, pair, prompt=longest, answer=work.answer_tokens, precision=precision)
    chooses = settings.callbacks["record"].export == "best"
    found = collect(
        pair,
        settings.data,
        train,
        validation,
        corpus,
        work,
        model=settings.model,
        memory=estimate(case, pair) if plain["preflight"] else None,
        monitor=settings.callbacks["checkpoints"].monitor if chooses else None,
    )
    found = replace(found, rate=str(settings.optim), sizes=_sizes(settings, plain))
    if settings.optim.warmup_steps >= work.steps:
        text = (
            f"optim.warmup_steps={settings.optim.warmup_steps}: the run has {work.steps} optimizer steps, so that the "
            f"learning rate never reaches {settings.optim.learning_rate:g}"
        )
        found = replace(found, warnings=(*found.warnings, text))
    if not plain["preflight"]:
        for text in found.warnings:
            log.warning(text)
        return None
    if settings.strategy.world_size > 1:
        found = replace(found, devices=str(settings.strategy))
    return found


class Comparison(L.Callback):
    """A few answers of the models, for the `page`. Whole weights are compared before the run's directory is taken, by
    `now`; weights in parts are there only once the trainer begins, which then shows the page and writes it."""

    def __init__(self, page: Preflight, settings: Settings, pair: Pair, train: PromptSet, seed: int, run_dir: Path):
        self.page, self.settings, self.pair, self.train, self.seed = page, settings, pair, train, seed
        self.run_dir = run_dir

    def on_fit_start(self, trainer: L.Trainer, module: TrainingModule) -> None:
        with module.whole_weights():
            found = self.compare(module.model, self.pair.teacher, trainer.precision)
        if trainer.is_global_zero:
            show(found)
            write(found, self.run_dir)

    def now(self, precision: str) -> Preflight:
        """See `compare`."""
        # Without compilation, which would be for these few shapes and change those that follow.
        student, teacher = (
            network and LanguageModel(network, self.pair.n_vocab)
            for network in (self.pair.student, self.pair.teacher and self.pair.teacher.network)
        )
        return self.compare(student, teacher, precision)

    def compare(self, student: LanguageModel, teacher: LanguageModel | None, precision: str) -> Preflight:
        """The page with what was found.

        Raises:
            ModelError: see `check_consistency`.
        """
        settings, work = self.settings, self.page.work
        reach = max(map(len, self.train.prompt_ids)) + work.answer_tokens
        reach = reach if work.sampler else min(reach, settings.data.longest)
        temperature = work.sampler.temperature if work.sampler else 1.0
        regime = settings.regime
        tokens = regime.microbatch_tokens if isinstance(regime, OnPolicy) else regime.microbatch_size * reach
        sizes = dict(seed=self.seed, max_new_tokens=work.answer_tokens, max_tokens=tokens)
        models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
        with torch.autocast(student.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            same = consistency(models, self.pair, self.train, longest=reach, temperature=temperature, **sizes)
            found = replace(self.page, consistency=same)
            if teacher is not None:
                found = found.with_agreement(agreement(student, teacher, self.pair, self.train, **sizes))
        return found


def _sizes(settings: Settings, plain: dict) -> str:
    """What goes through the models at a time."""
    keys = {"regime.microbatch_size": "answers a micro-batch"}
    if isinstance(settings.regime, OnPolicy):
        keys = {"sampler.batch_size": "rows decoded at a time", "regime.microbatch_tokens": "tokens a micro-batch"}
    if settings.linear_loss.chunk_mb is not None:
        keys["linear_loss.chunk_mb"] = "MiB a chunk of logits"
    texts = []
    for key, what in keys.items():
        group, name = key.split(".")
        chosen = "auto" if plain[group][name] == "auto" else "given"
        texts.append(f"{getattr(getattr(settings, group), name):,g} {what} ({key}, {chosen})")
    return "; ".join(texts)
