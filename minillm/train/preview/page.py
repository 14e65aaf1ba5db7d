"""The page before the first step: models, data and work. On screen, and as preflight.md in the run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from minillm.common.console import show_facts
from minillm.common.files import write_whole
from minillm.common.machine import usable_memory
from minillm.common.numbers import count, millions
from minillm.data import Corpus, PromptSet, Sources
from minillm.models import OWN_TEACHERS, ModelPair, Pair, PrunedTeacher
from minillm.models.families import text_config
from minillm.models.vocabulary import Tokens, Vocabulary
from minillm.planning import Memory
from minillm.rollout.consistency import Consistency
from minillm.train.preview.agreement import Agreement
from minillm.train.preview.second_look import parameters_of, references_in, warnings_of
from minillm.train.preview.work import Work

TITLE, SECOND_LOOK = "Preflight", "Worth a second look"
_SHOWN = 1e-3  # of all memory


@dataclass(frozen=True)
class Page:
    """Texts, ready to be shown: `sides` have one for each model, `lines` without a text are left out."""

    columns: tuple[str, ...]
    sides: Mapping[str, list[str]]
    lines: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)  # exact, of preflight.json

    def adding(self, *warnings: str, **lines: str) -> Page:
        return replace(self, lines={**self.lines, **lines}, warnings=(*warnings, *self.warnings))

    def with_agreement(self, found: Agreement, n_vocab: int) -> Page:
        """Also how far apart the teacher and the student are on a few answers."""
        limit, numbers = math.log(n_vocab), asdict(found)
        high = [
            f"{name.replace('_kl', ' KL')} is {numbers[name]:.3g} nats a token, wanted at most log(vocabulary) = "
            f"{limit:.3g}: wrong template, not one family, a student that has learnt nothing yet, or a half type that "
            "overflows (model.dtype)?"
            for name in ("reverse_kl", "forward_kl")
            if not numbers[name] <= limit  # NaN too
        ]
        text = f"reverse KL {found.reverse_kl:.3g}, forward KL {found.forward_kl:.3g} nats a token"
        page = self.adding(
            *high, agreement=f"{text}, on {found.samples} answers of the student ({found.tokens} tokens)"
        )
        exact = {name: each if math.isfinite(each) else str(each) for name, each in numbers.items()}
        return replace(page, figures={**self.figures, "agreement": exact})  # JSON knows no NaN

    def with_consistency(self, found: Mapping[str, Consistency]) -> Page:
        """Also how far decoding and update are apart, by side."""
        sides = [
            f"{side} mean {each.mean:+.1g}, largest {each.largest:.1g} on {each.tokens:,} tokens"
            for side, each in found.items()
        ]
        page = self.adding(**{"log-ratio": f"update against decoding, same weights, in nats: {'; '.join(sides)}"})
        figures = {side: asdict(each) for side, each in found.items()}
        return replace(page, figures={**self.figures, "consistency": figures})


def page_of(
    pair: Pair,
    sources: Sources,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    work: Work,
    *,
    model: ModelPair,
    memory: Memory,
    monitor: str | None,
) -> Page:
    """From what has been loaded; fast, and nothing is computed by the models.

    Args:
        model: the settings that `pair` was loaded by. monitor: the figure of the validation that chooses the best
            weights, None where nothing is chosen.
    """
    networks = {"student": pair.student} | ({} if pair.teacher is None else {"teacher": pair.teacher.network})
    vocabulary, usable = pair.vocabulary, usable_memory(pair.student.device)
    tokens = [each for each in (vocabulary.student, vocabulary.teacher) if each]
    sides = {
        "source": [_source(getattr(model, side)) for side in networks],
        "model": [_model(network) for network in networks.values()],
        "parameters": [
            "the student's" if side == "teacher" and network is pair.student else _parameters(network)
            for side, network in networks.items()
        ],
        "tokens": [_tokens(each, vocabulary.shared) for each in tokens],
        "end": [f"{each.eos} (id {each.eos_id})" for each in tokens],
    }
    lines = {
        "vocabulary": _vocabulary(vocabulary, pair.stop_ids),
        "template": _template(sources, pair),
        "training": _prompts(train),
        "validation": _prompts(validation),
        "corpus": "" if corpus is None else "{:,} blocks of {:,} tokens".format(*corpus.blocks_NL.shape),
        "agreement": "",
        "log-ratio": "",
        "steps": _steps(work, len(train)),
        "rate": "",
        "sizes": "",
        "memory": f"about {_gb(memory.total)} GB at the peak, of {_gb(usable)} GB",
        "rollout": _phase(memory.rollout, memory),
        "update": _phase(memory.update, memory),
    }
    warnings = warnings_of(pair, sources, train, validation, corpus, work, monitor)
    if memory.total > usable:
        keys = "regime.microbatch_tokens, sampler.batch_size" if work.sampler else "regime.microbatch_size"
        warnings += (f"About {memory.total:.1f} GB are needed and {usable:.1f} are there: lower {keys}; docs/usage.md",)
    return Page(tuple(networks), sides, lines, warnings)


def show(page: Page) -> None:
    """Show the page on the console; it is readable in a log file of 80 columns too."""
    lines = [(name, text) for name, text in page.lines.items() if text]
    show_facts(TITLE, page.columns, list(page.sides.items()), lines)
    if page.warnings:
        show_facts(SECOND_LOOK, (), (), [("!", text) for text in page.warnings])


def write(page: Page, run_dir: Path) -> None:
    """preflight.md, and the comparisons of models as numbers in preflight.json."""
    rows = [["", *page.columns], ["---"] * (1 + len(page.columns))]
    rows += [[name, *texts] for name, texts in page.sides.items()]
    facts = [["", ""], ["---"] * 2, *([name, text] for name, text in page.lines.items() if text)]
    lines = [f"# {TITLE}", "", *map(_row, rows), "", *map(_row, facts)]
    if page.warnings:
        lines += ["", f"## {SECOND_LOOK}", "", *(f"- {_escaped(text)}" for text in page.warnings)]
    write_whole(run_dir / "preflight.md", "\n".join(lines) + "\n")
    write_whole(run_dir / "preflight.json", json.dumps(page.figures, indent=2) + "\n")


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _source(spec: object) -> str:
    if isinstance(spec, PrunedTeacher):
        return "layers of the teacher"
    return OWN_TEACHERS.get(getattr(spec, "source", None)) or getattr(spec, "name", "random weights")


def _model(network: PreTrainedModel) -> str:
    dtypes = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in network.parameters()}))
    layers = text_config(network.config).num_hidden_layers
    place = "a server" if network.device.type == "meta" else network.device
    return f"{network.config.model_type}, {layers} layers, {dtypes} on {place}"


def _parameters(network: PreTrainedModel) -> str:
    parameters, trained = parameters_of(network)
    how = "all trained" if trained == parameters else f"{millions(trained)} trained"
    return f"{millions(parameters)}, {how if trained else 'frozen'}"


def _tokens(side: Tokens, shared: int) -> str:
    cut = f", {side.rows - shared:,} cut" if side.rows > shared else ""
    return f"{side.tokens:,} in {side.rows:,} rows{cut}"


def _vocabulary(tokens: Vocabulary, stop_ids: tuple[int, ...]) -> str:
    same = f"{tokens.shared:,} rows, the same token in each; " if tokens.teacher else f"{tokens.shared:,} rows; "
    beyond = f"tokens beyond them that differ: {tokens.beyond:,}; " if tokens.beyond else ""
    return f"{same}{beyond}an answer stops at id {', '.join(map(str, stop_ids))}"


def _template(sources: Sources, pair: Pair) -> str:
    if sources.template == "paper":
        return f"the paper's, with {sources.front(pair.tokenizer) or 'nothing'} in front (data.bos)"
    stated = [f"{name}={value}" for name, value in sources.template_arguments.items()]
    stated += [f"dated {sources.date} (data.date)"] if sources.date else []
    return ", ".join(["the student's own chat template", *stated])


def _prompts(prompts: PromptSet) -> str:
    longest, references = max(map(len, prompts.prompt_ids)), references_in(prompts)
    text = f"{len(prompts):,} of {len(prompts) + prompts.dropped.total():,} prompts, the longest {longest:,} tokens"
    if prompts.teacher_ids is not None:
        text += f" (the teacher's own: {max(map(len, prompts.teacher_ids)):,})"
    if reasons := ", ".join(f"{n:,} {reason}" for reason, n in prompts.dropped.items() if n):
        text += f"; dropped: {reasons}"
    cut = f", {prompts.references_cut:,} of them too long and cut" if prompts.references_cut else ""
    return f"{text}; {references:,} with a reference{cut}"


def _steps(work: Work, n_prompts: int) -> str:
    text = f"{work.start_steps:,} supervised, then " if work.start_steps else ""
    text += f"{work.steps:,} optimizer steps of {work.minibatch_size:,} answers"
    if work.sampler:
        size = work.round_size * work.sampler.answers_per_prompt
        text += (
            f", in {work.rounds:,} rollouts of {size:,}: {work.rounds * size:,} samples of at most "
            f"{work.answer_tokens:,} tokens at T = {work.sampler.temperature:g}"
        )
    return f"{text}; {count(work.prompts_seen / n_prompts)} passes over the prompts"


def _phase(sizes: Mapping[str, float], memory: Memory) -> str:
    return ", ".join(f"{what} {_gb(size)}" for what, size in sizes.items() if size > memory.total * _SHOWN)


def _gb(size: float) -> str:
    return f"{size:.1f}" if abs(size) >= 10 else f"{size:.2g}"
