"""The page before the first step: models, data, work and what deserves a second look; on screen, and preflight.md."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from minillm.common.console import show_facts
from minillm.common.files import write_whole
from minillm.common.machine import peak_memory, usable_memory
from minillm.common.numbers import count, millions
from minillm.data import Corpus, PromptSet, Sources
from minillm.data.prompts import BEYOND, HELD_OUT, remedies
from minillm.models import OWN_TEACHERS, Pair, PrunedTeacher
from minillm.models.families import text_config
from minillm.models.vocabulary import Tokens, Vocabulary
from minillm.planning import Memory
from minillm.train.settings import Settings

TITLE, SECOND_LOOK = "Preflight", "Worth a second look"
_SHOWN = 1e-3  # of all memory
_MANY = 0.2  # share of prompts or references from which on their loss is worth a warning
_SIZES = ("sampler.batch_size", "regime.microbatch_tokens", "regime.microbatch_size", "linear_loss.chunk_mb")


@dataclass
class Page:
    """Texts, ready to be shown: `sides` have one for each model, `lines` without a text are left out. `figures` are
    exact, for preflight.json."""

    columns: tuple[str, ...]
    sides: dict[str, list[str]]
    lines: dict[str, str]
    warnings: list[str]
    figures: dict[str, Any] = field(default_factory=dict)

    def add_agreement(self, reverse_kl: float, forward_kl: float, samples: int, tokens: int, *, n_vocab: int) -> None:
        """How far apart teacher and student are on a few answers, see `agreement`."""
        limit, found = math.log(n_vocab), {"reverse_kl": reverse_kl, "forward_kl": forward_kl}
        self.warnings[:0] = [
            f"{name.replace('_kl', ' KL')} is {value:.3g} nats a token, wanted at most log(vocabulary) = {limit:.3g}: "
            "wrong template, not one family, a student that has learnt nothing yet, or a half type that overflows "
            "(model.dtype)?"
            for name, value in found.items()
            if not value <= limit  # NaN too
        ]
        text = f"reverse KL {reverse_kl:.3g}, forward KL {forward_kl:.3g} nats a token"
        self.lines["agreement"] = f"{text}, on {samples} answers of the student ({tokens} tokens)"
        exact = {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
        self.figures["agreement"] = exact | {"samples": samples, "tokens": tokens}  # JSON knows no NaN

    def show(self) -> None:
        """On the console; it is readable in a log file of 80 columns too."""
        show_facts(TITLE, self.columns, list(self.sides.items()), self._facts())
        if self.warnings:
            show_facts(SECOND_LOOK, (), (), [("!", text) for text in self.warnings])

    def write(self, run_dir: Path) -> None:
        """preflight.md, and the comparisons of models as numbers in preflight.json."""
        rows = [["", *self.columns], ["---"] * (1 + len(self.columns))]
        rows += [[name, *texts] for name, texts in self.sides.items()]
        facts = [["", ""], ["---"] * 2, *self._facts()]
        lines = [f"# {TITLE}", "", *map(_row, rows), "", *map(_row, facts)]
        if self.warnings:
            lines += ["", f"## {SECOND_LOOK}", "", *(f"- {_escaped(text)}" for text in self.warnings)]
        write_whole(run_dir / "preflight.md", "\n".join(lines) + "\n")
        write_whole(run_dir / "preflight.json", json.dumps(self.figures, indent=2) + "\n")

    def _facts(self) -> list[tuple[str, str]]:
        return [(name, text) for name, text in self.lines.items() if text]


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def page_of(
    settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet, corpus: Corpus | None, memory: Memory
) -> Page:
    """From what has been loaded; fast, and nothing is computed by the models. `memory` is the planner's."""
    networks = {"student": pair.student} | {name: each.network for name, each in pair.teachers.items()}
    device, vocabulary, optim = pair.student.device, pair.vocabulary, settings.optim
    usable, weights = usable_memory(device), sum(memory.update.get(side, 0) for side in ("student", "teacher"))
    # On a CPU the peak memory is that of the process: with libraries and data, which are there now.
    held = max(0.0, peak_memory(device) - weights) if device.type == "cpu" else 0.0
    need = memory.total + held
    tokens = [each for each in (vocabulary.student, vocabulary.teacher, *vocabulary.others) if each]
    own = networks.get("teacher") is pair.student
    sides = {
        "source": [_source(each) for each in (settings.model.student, *settings.model.all_teachers.values())],
        "model": [_model(network) for network in networks.values()],
        "parameters": [_parameters(pair.student), "the student's"] if own else [*map(_parameters, networks.values())],
        "tokens": [_tokens(each, each.rows if vocabulary.separate else vocabulary.shared) for each in tokens],
        "end": [f"{each.eos} (id {each.eos_id})" for each in tokens],
    }
    groups = {key: getattr(getattr(settings, key.split(".")[0]), key.split(".")[1], None) for key in _SIZES}
    lines = {
        "vocabulary": _vocabulary(vocabulary, pair.stop_ids, pair.teacher_stop_ids),
        "template": _template(settings.data, pair),
        "training": _prompts(train),
        "validation": _prompts(validation),
        "corpus": "" if corpus is None else "{:,} blocks of {:,} tokens".format(*corpus.blocks_NL.shape),
        "agreement": "",
        "log-ratio": "",
        "steps": _steps(settings, len(train)),
        "time": "",
        "rate": f"{optim.learning_rate:g}, {optim.schedule} after {optim.warmup_steps} steps of warm-up",
        "sizes": ", ".join(f"{key}={size:,g}" for key, size in groups.items() if size is not None),
        "memory": f"peak memory about {_gb(need)} GB, of {_gb(usable)} GB"
        + (f"; {_gb(held)} GB are libraries and data" if held else ""),
        "rollout": _phase(memory.rollout, memory),
        "update": _phase(memory.update, memory),
    }
    warnings = [*_of_work(settings, pair, train, validation, corpus), *_of_models(settings, pair)]
    if need > usable:
        keys = "regime.microbatch_tokens, sampler.batch_size" if settings.regime.rollouts else "regime.microbatch_size"
        text = f"About {need:.1f} GB are needed and {usable:.1f} are there: lower {keys}; docs/usage.md"
        warnings.append(text)
    return Page(tuple(networks), sides, lines, warnings)


def _source(spec: object) -> str:
    if isinstance(spec, PrunedTeacher):
        return "layers of the teacher"
    return OWN_TEACHERS.get(getattr(spec, "source", None)) or getattr(spec, "name", "random weights")


def _model(network: PreTrainedModel) -> str:
    dtypes = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in network.parameters()}))
    layers = text_config(network.config).num_hidden_layers
    place = "a server" if network.device.type == "meta" else network.device
    return f"{network.config.model_type}, {layers} layers, {dtypes} on {place}"


def parameters_of(network: PreTrainedModel) -> tuple[int, int]:
    """Parameters of all, and of those that are trained."""
    return network.num_parameters(), sum(each.numel() for each in network.parameters() if each.requires_grad)


def _parameters(network: PreTrainedModel) -> str:
    parameters, trained = parameters_of(network)
    how = "all trained" if trained == parameters else f"{millions(trained)} trained"
    return f"{millions(parameters)}, {how if trained else 'frozen'}"


def _tokens(side: Tokens, shared: int) -> str:
    cut = f", {side.rows - shared:,} cut" if side.rows > shared else ""
    return f"{side.tokens:,} in {side.rows:,} rows{cut}"


def _vocabulary(tokens: Vocabulary, stop_ids: tuple[int, ...], teacher: tuple[int, ...] | None) -> str:
    if teacher is not None:
        own = " and ".join(", ".join(map(str, ids)) for ids in (stop_ids, teacher))
        return f"separate: texts are compared by their bytes; student and teacher stop an answer at id {own}"
    same = f"{tokens.shared:,} rows, the same token in each; " if tokens.teacher else f"{tokens.shared:,} rows; "
    beyond = f"tokens beyond them that differ: {tokens.beyond:,}; " if tokens.beyond else ""
    return f"{same}{beyond}an answer stops at id {', '.join(map(str, stop_ids))}"


def _template(sources: Sources, pair: Pair) -> str:
    if sources.template == "paper":
        return f"the paper's, with {sources.front(pair.tokenizer) or 'nothing'} in front (data.bos)"
    stated = [f"{name}={value}" for name, value in sources.template_arguments.items()]
    stated += [f"dated {sources.date} (data.date)"] if sources.date else []
    own = "the own chat templates of both" if pair.teacher_tokenizer else "the student's own chat template"
    return ", ".join([own, *stated])


def _prompts(prompts: PromptSet) -> str:
    longest, references = max(map(len, prompts.prompt_ids)), _references_in(prompts)
    text = f"{len(prompts):,} of {len(prompts) + prompts.dropped.total():,} prompts, the longest {longest:,} tokens"
    if prompts.teacher_ids is not None:
        text += f" (the teacher's own: {max(map(len, prompts.teacher_ids)):,})"
    if reasons := ", ".join(f"{n:,} {reason}" for reason, n in prompts.dropped.items() if n):
        text += f"; dropped: {reasons}"
    cut = f", {prompts.references_cut:,} of them too long and cut" if prompts.references_cut else ""
    named = Counter(record.teacher for record in prompts.records if prompts.teachers is not None)
    teachers = "".join(f"; {name}: {named[name]:,}" for name in sorted(named))
    return f"{text}; {references:,} with a reference{cut}{teachers}"


def _references_in(prompts: PromptSet) -> int:
    return sum(bool(record.references) for record in prompts.records)


def _steps(settings: Settings, n_prompts: int) -> str:
    """Optimizer steps, those of the supervised start first; rollouts, and passes over the prompts in these."""
    regime, sampler, start = settings.regime, settings.sampler, settings.start
    steps = regime.steps(n_prompts)
    rounds = math.ceil(steps / regime.steps_per_rollout)
    text = f"{steps:,} optimizer steps of {regime.minibatch_size:,} answers"
    if regime.rollouts:
        text += (
            f", in {rounds:,} rollouts of {regime.rollouts:,}: {rounds * regime.rollouts:,} samples of at most "
            f"{sampler.max_new_tokens:,} tokens at T = {sampler.temperature:g}"
        )
    text = f"{start.steps:,} supervised, then {text}" if start.steps else text
    return f"{text}; {count(rounds * _round_size(settings) / n_prompts)} passes over the prompts"


def _round_size(settings: Settings) -> int:
    """Prompts of a rollout, or of a supervised optimizer step."""
    return settings.regime.rollouts // settings.sampler.answers_per_prompt or settings.regime.minibatch_size


def _phase(sizes: Mapping[str, float], memory: Memory) -> str:
    return ", ".join(f"{what} {_gb(size)}" for what, size in sizes.items() if size > memory.total * _SHOWN)


def _gb(size: float) -> str:
    return f"{size:.1f}" if abs(size) >= 10 else f"{size:.2g}"


def _of_work(
    settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet, corpus: Corpus | None
) -> Iterator[str]:
    """Warnings of the data, and of what is done with it."""
    optim, start, on_policy = settings.optim, settings.start, settings.regime.rollouts > 0
    if optim.warmup_steps >= (steps := settings.regime.steps(len(train))):
        yield (
            f"optim.warmup_steps={optim.warmup_steps}: the run has {steps} optimizer steps, so that the learning rate "
            f"never reaches {optim.learning_rate:g}"
        )
    for prompts in (train, validation):
        dropped = {reason: n for reason, n in prompts.dropped.items() if reason not in (HELD_OUT, BEYOND)}
        lost = sum(dropped.values())  # not on purpose
        if lost > _MANY * (len(prompts) + lost):
            yield f"{lost:,} of {len(prompts) + lost:,} prompts are dropped: change {remedies(dropped)}."
    given = not on_policy or settings.data.on_policy < 1 or (start.steps and start.responses == "reference")
    if given and train.references_cut > _MANY * _references_in(train):
        yield (
            f"{train.references_cut:,} of {_references_in(train):,} training references are cut at "
            "data.max_response_tokens or max_tokens, without an end: the student learns to go on."
        )
    if (size := _round_size(settings)) > len(train):
        what, key = ("rounds", "regime.rollouts") if on_policy else ("optimizer steps", "regime.minibatch_size")
        yield (
            f"{len(train):,} training prompts for {what} of {size:,}: some come several times in each; more prompts or "
            f"a smaller {key}."
        )
    if corpus is not None and len(corpus.blocks_NL) <= settings.regulariser.batch_size:
        yield (
            f"The corpus has {len(corpus.blocks_NL):,} blocks for optimizer steps of "
            f"{settings.regulariser.batch_size:,}: each reads all of it; more text (data.corpus_file), or a smaller "
            "data.block_size or regulariser.batch_size."
        )
    chooses = settings.callbacks["record"].export == "best" and settings.callbacks["checkpoints"].monitor == "rouge_l"
    if chooses and _references_in(validation) < len(validation):
        instead = "Rouge-L is against the teacher's greedy answers" if pair.teacher_here else "there is no Rouge-L"
        yield (
            f"callbacks.checkpoints.monitor=rouge_l, and not every validation prompt has a reference: {instead}; name "
            "a data.val_file with them or another monitor."
        )


def _of_models(settings: Settings, pair: Pair) -> Iterator[str]:
    tokens, sampler, teachers = pair.vocabulary, settings.sampler, [each.network for each in pair.teachers.values()]
    if settings.data.template == "chat" and tokens.teacher and not tokens.same_template:
        what = "another chat template" if tokens.teacher.chat_template else "no chat template"
        yield f"The teacher has {what}; prompts are written with the student's, which may be strange to it."
    own = _ends(pair.student) | {pair.tokenizer.eos_token_id}
    ends = {each for teacher in teachers for each in _ends(teacher)} - own
    if ends and not tokens.separate:
        names = ", ".join(map(pair.tokenizer.convert_ids_to_tokens, sorted(ends)))
        yield (
            f"The teacher also ends an answer with {names}, the student alone does not: a base student of an instruct "
            "teacher may never stop. A supervised start (start.steps, or recipe=start) teaches it."
        )
    if settings.regime.rollouts and not sampler.full_support:
        yield (
            f"{type(sampler).__name__} does not draw every token that the student can say: importance weights cannot "
            "make up for what is never drawn, so that the gradient is biased."
        )
    parameters, trained = parameters_of(pair.student)
    ours = parameters - trained % parameters  # where only some are trained, those are adapters
    if teachers and (theirs := min(each.num_parameters() for each in teachers)) < ours:
        yield (
            f"The teacher has {theirs:,} parameters, the student {ours:,}: model.teacher and model.student the wrong "
            "way round?"
        )


def _ends(network: PreTrainedModel) -> set[int]:
    """The tokens that its generation config names."""
    stated = getattr(network.generation_config, "eos_token_id", None)
    return set(stated if isinstance(stated, list) else [stated]) - {None}
