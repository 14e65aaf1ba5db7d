"""The plain facts of a run that is about to begin, and what in them deserves a second look."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from minillm.common.machine import usable_memory
from minillm.data import Corpus, PromptSet, Sources
from minillm.data.prompts import BEYOND, HELD_OUT, remedies
from minillm.models import ModelPair, Pair, PrunedTeacher
from minillm.models.families import text_config
from minillm.models.vocabulary import Vocabulary
from minillm.planning import Memory
from minillm.rollout.consistency import Consistency
from minillm.train.preview.agreement import Agreement
from minillm.train.preview.work import Work

_MANY = 0.2  # share of prompts or references from which on their loss is worth a warning


@dataclass(frozen=True)
class ModelFacts:
    source: str
    family: str
    layers: int
    parameters: int
    trained: int
    dtype: str
    device: str

    @property
    def size(self) -> int:
        """Parameters without adapters: where only some are trained, those are."""
        return self.parameters - self.trained % self.parameters


@dataclass(frozen=True)
class PromptFacts:
    """Numbers of prompts; `dropped` by reason, those that are held out for validation or `beyond` data.val_size apart.
    Of the kept ones `references` have an answer, of which `cut` exceed data.max_response_tokens or data.max_tokens.
    `longest` in tokens."""

    kept: int
    dropped: dict[str, int]
    held_out: int
    references: int
    cut: int
    longest: int
    beyond: int = 0

    @property
    def wanted(self) -> int:
        """How many prompts would be kept if none were dropped."""
        return self.kept + sum(self.dropped.values())

    @property
    def read(self) -> int:
        return self.wanted + self.held_out + self.beyond


@dataclass(frozen=True)
class CorpusFacts:
    blocks: int
    block_size: int


@dataclass(frozen=True)
class Preflight:
    """All of it; what a run has not (a teacher, a corpus, samples) is None. Counts, GB of 1e9 bytes, nats a token."""

    student: ModelFacts
    teacher: ModelFacts | None
    vocabulary: Vocabulary
    stop_ids: tuple[int, ...]
    template: str
    training: PromptFacts
    validation: PromptFacts
    corpus: CorpusFacts | None
    work: Work
    memory: Memory | None
    usable: float  # what the device has for this process
    front: str = ""  # tokens that the paper's template has in front of a prompt
    date: str | None = None  # what the chat template is given
    rate: str = ""  # learning rate, schedule and warm-up
    sizes: str = ""  # what goes through the models at a time
    devices: str | None = None  # where they are several
    agreement: Agreement | None = None
    consistency: dict[str, Consistency] = field(default_factory=dict)  # of decoding and update, by side
    warnings: tuple[str, ...] = ()

    def with_agreement(self, found: Agreement) -> Preflight:
        """Also what the teacher and the student say about the same few answers."""
        limit = math.log(self.vocabulary.shared)
        high = [
            f"{name} KL is {value:.3g} nats a token, wanted at most log(vocabulary) = {limit:.3g}: "
            + (
                "these models barely agree: wrong template, not one family, or a student that has learnt nothing yet?"
                if math.isfinite(value)
                else "a half type that overflows (model.dtype), or broken weights?"
            )
            for name, value in (("reverse", found.reverse_kl), ("forward", found.forward_kl))
            if not value <= limit  # NaN too
        ]
        return replace(self, agreement=found, warnings=(*high, *self.warnings))


def collect(
    pair: Pair,
    sources: Sources,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    work: Work,
    *,
    model: ModelPair,
    memory: Memory | None,
    monitor: str | None,
) -> Preflight:
    """From what has been loaded; fast, and nothing is computed by the models.

    Args:
        model: the settings that `pair` was loaded by. memory: see `estimate`. monitor: the figure of the validation
            that chooses the best weights, None where nothing is chosen.
    """
    teacher = pair.teacher
    facts = [_prompt_facts(each) for each in (train, validation)]
    preflight = Preflight(
        student=_model_facts(pair.student, _source(model.student)),
        teacher=None if teacher is None else _model_facts(teacher.network, _source(model.teacher)),
        vocabulary=pair.vocabulary,
        stop_ids=pair.stop_ids,
        template=sources.template,
        front=sources.front(pair.tokenizer),
        date=sources.date,
        training=facts[0],
        validation=facts[1],
        corpus=None if corpus is None else CorpusFacts(*corpus.blocks_NL.shape),
        work=work,
        memory=memory,
        usable=usable_memory(pair.student.device),
    )
    return replace(preflight, warnings=tuple(_warnings(preflight, monitor)))


def _warnings(found: Preflight, monitor: str | None) -> list[str]:
    work, tokens, memory = found.work, found.vocabulary, found.memory
    texts = []
    if found.template == "chat" and tokens.teacher and not tokens.same_template:
        what = "another chat template" if tokens.teacher.chat_template else "no chat template"
        texts.append(f"The teacher has {what}; prompts are written with the student's, which may be strange to it.")
    for name, prompts in (("training", found.training), ("validation", found.validation)):
        if (n_dropped := sum(prompts.dropped.values())) > _MANY * prompts.wanted:
            what = remedies(prompts.dropped)
            texts.append(f"{n_dropped:,} of {prompts.wanted:,} {name} prompts are dropped: change {what}.")
    if work.sampler and not work.sampler.full_support:
        texts.append(
            f"{type(work.sampler).__name__} does not draw every token that the student can say: importance weights "
            "cannot make up for what is never drawn, so that the gradient is biased."
        )
    training = found.training
    if work.learns_references and training.cut > _MANY * training.references:
        texts.append(
            f"{training.cut:,} of {training.references:,} training references are cut at data.max_response_tokens or "
            "max_tokens, without an end: the student learns to go on."
        )
    if work.round_size > training.kept:
        what, key = ("rounds", "regime.rollouts") if work.sampler else ("optimizer steps", "regime.minibatch_size")
        texts.append(
            f"{training.kept:,} training prompts for {what} of {work.round_size:,}: some come several times in each; "
            f"more prompts or a smaller {key}."
        )
    if (corpus := found.corpus) and corpus.blocks <= work.corpus_rows:
        blocks = f"{corpus.blocks:,} block{'s' * (corpus.blocks > 1)}"
        texts.append(
            f"The corpus has {blocks} of {corpus.block_size:,} tokens for optimizer steps of {work.corpus_rows:,}: "
            "each reads all of it; more text (data.corpus_file), a smaller data.block_size or regulariser.batch_size."
        )
    if found.teacher and found.teacher.size < found.student.size:
        texts.append(
            f"The teacher has {found.teacher.size:,} parameters, the student {found.student.size:,}: model.teacher and "
            "model.student the wrong way round?"
        )
    if monitor == "rouge_l" and found.validation.references < found.validation.kept:
        texts.append(
            "callbacks.checkpoints.monitor=rouge_l, and not every validation prompt has a reference: "
            + ("Rouge-L is against the teacher's greedy answers" if found.teacher else "there is no Rouge-L")
            + "; name a data.val_file with them or another monitor."
        )
    if memory and memory.total > found.usable:
        texts.append(
            f"About {memory.total:.1f} GB are needed and {found.usable:.1f} are there: lower "
            + (
                "regime.microbatch_tokens, sampler.batch_size or regime.rollouts, or see model.teacher.offload and "
                "regime.teacher_states."
                if work.sampler
                else "regime.microbatch_size or data.max_tokens, or see model.gradient_checkpointing and lora."
            )
        )
    return texts


def _model_facts(network: PreTrainedModel, source: str) -> ModelFacts:
    parameters = list(network.parameters())
    return ModelFacts(
        source=source,
        family=network.config.model_type,
        layers=text_config(network.config).num_hidden_layers,
        parameters=network.num_parameters(),
        trained=sum(each.numel() for each in parameters if each.requires_grad),
        dtype=", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in parameters})),
        device=str(network.device),
    )


def _source(spec: Any) -> str:
    return "layers of the teacher" if isinstance(spec, PrunedTeacher) else getattr(spec, "source", "random weights")


def _prompt_facts(prompts: PromptSet) -> PromptFacts:
    return PromptFacts(
        kept=len(prompts),
        dropped={reason: count for reason, count in prompts.dropped.items() if reason not in (HELD_OUT, BEYOND)},
        held_out=prompts.dropped[HELD_OUT],
        references=sum(bool(record.references) for record in prompts.records),
        cut=prompts.references_cut,
        longest=max(map(len, prompts.prompt_ids)),
        beyond=prompts.dropped[BEYOND],
    )
