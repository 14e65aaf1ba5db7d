"""Before the first step of a run: collect, compare a few answers, show."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from minillm.data import Corpus, PromptSet
from minillm.models import Pair
from minillm.modules import OnPolicy, Supervised
from minillm.preflight.agreement import agreement, consistency
from minillm.preflight.facts import Preflight, collect
from minillm.preflight.memory import case_of, estimate
from minillm.preflight.page import show
from minillm.preflight.work import Work
from minillm.settings import Settings

log = logging.getLogger(__name__)


def begin(
    settings: Settings,
    plain: dict,
    pair: Pair,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    precision: str,
    device: torch.device,
) -> Preflight | None:
    """The page of a run that begins, shown; with preflight=false None, and only warnings that take no time are logged.

    Args:
        settings, plain: the run's, as objects and as plain values. precision, device: the trainer's. The rest is what
            they have loaded.
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
    # Weights that are shared out later are on the CPU until then, where large models would answer for an hour.
    if pair.student.device.type == device.type:
        sizes = dict(seed=plain["seed"], max_new_tokens=case.answer, max_tokens=case.microbatch_tokens)
        temperature = work.sampler.temperature if work.sampler else 1.0
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            reach = longest + case.answer if work.sampler else min(longest + case.answer, settings.data.longest)
            same = consistency(pair, train, longest=reach, temperature=temperature, **sizes)
        found = replace(found, consistency=same)
        if pair.teacher is not None:
            found = found.with_agreement(agreement(pair, train, **sizes))
    elif pair.teacher is not None:
        text = (
            f"not compared: the weights wait on the CPU until they are shared out (strategy={settings.strategy.kind})"
        )
        found = replace(found, not_compared=text)
    show(found)
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
