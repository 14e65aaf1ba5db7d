"""The page: on screen, and as preflight.md and preflight.json in the run directory."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from minillm.common.console import show_facts
from minillm.common.numbers import count, millions
from minillm.models.vocabulary import Tokens
from minillm.train.preview.facts import ModelFacts, Preflight, PromptFacts

TITLE, SECOND_LOOK = "Preflight", "Worth a second look"
_SHOWN = 1e-3  # of all memory


def show(found: Preflight) -> None:
    """Show the page on the console; it is readable in a log file of 80 columns too."""
    show_facts(TITLE, _columns(found), _sides(found), _lines(found))
    if found.warnings:
        show_facts(SECOND_LOOK, (), (), [("!", text) for text in found.warnings])


def write(found: Preflight, run_dir: Path) -> None:
    """preflight.md, the page, and preflight.json, the facts."""
    columns = _columns(found)
    lines = [f"# {TITLE}", "", _row(["", *columns]), _row(["---"] * (1 + len(columns)))]
    lines += [_row([name, *texts]) for name, texts in _sides(found)]
    lines += ["", _row(["", ""]), _row(["---"] * 2), *(_row(pair) for pair in _lines(found))]
    if found.warnings:
        lines += ["", f"## {SECOND_LOOK}", "", *(f"- {_escaped(text)}" for text in found.warnings)]
    (run_dir / "preflight.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    facts = asdict(found)
    if found.memory:
        facts["memory"]["total"] = found.memory.total
    if found.agreement:  # JSON knows no NaN
        values = facts["agreement"].items()
        facts["agreement"] = {name: value if math.isfinite(value) else str(value) for name, value in values}
    (run_dir / "preflight.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _columns(found: Preflight) -> tuple[str, ...]:
    return ("student", "teacher") if found.teacher else ("student",)


def _sides(found: Preflight) -> list[tuple[str, list[str]]]:
    """What each of the models has, a text a model."""
    models = [each for each in (found.student, found.teacher) if each]
    tokens = [each for each in (found.vocabulary.student, found.vocabulary.teacher) if each]
    return [
        ("source", [each.source for each in models]),
        ("model", [f"{each.family}, {each.layers} layers, {each.dtype} on {each.device}" for each in models]),
        ("parameters", [_parameters(each) for each in models]),
        ("tokens", [_tokens(each, found.vocabulary.shared) for each in tokens]),
        ("end", [f"{each.eos} (id {each.eos_id})" for each in tokens]),
    ]


def _parameters(model: ModelFacts) -> str:
    trained = "all trained" if model.trained == model.parameters else f"{millions(model.trained)} trained"
    return f"{millions(model.parameters)}, {trained if model.trained else 'frozen'}"


def _tokens(side: Tokens, shared: int) -> str:
    cut = f", {side.rows - shared:,} cut" if side.rows > shared else ""
    return f"{side.tokens:,} in {side.rows:,} rows{cut}"


def _lines(found: Preflight) -> list[tuple[str, str]]:
    lines = [("vocabulary", _vocabulary(found)), ("template", _template(found))]
    lines += [("training", _prompts(found.training)), ("validation", _prompts(found.validation))]
    if found.corpus:
        blocks, size = found.corpus.blocks, found.corpus.block_size
        lines.append(("corpus", f"{blocks:,} blocks of {size:,} tokens: {blocks * size:,} tokens"))
    if found.agreement:
        kl = found.agreement
        text = f"reverse KL {kl.reverse_kl:.3g}, forward KL {kl.forward_kl:.3g} nats a token"
        lines.append(("agreement", f"{text}, on {kl.samples} answers of the student ({kl.tokens} tokens)"))
    if found.consistency:
        sides = [
            f"{side} mean {each.mean:+.1g}, largest {each.largest:.1g} on {each.tokens:,} tokens"
            for side, each in found.consistency.items()
        ]
        lines.append(("log-ratio", f"update against decoding, same weights, in nats: {'; '.join(sides)}"))
    if found.devices:
        lines.append(
            ("devices", f"{found.devices}; memory is told as for one, by python -m minillm.plan for each of them")
        )
    return [*lines, ("steps", _steps(found)), ("rate", found.rate), ("sizes", found.sizes), *_memory(found)]


def _vocabulary(found: Preflight) -> str:
    tokens = found.vocabulary
    same = f"{tokens.shared:,} rows, the same token in each; " if tokens.teacher else f"{tokens.shared:,} rows; "
    beyond = f"tokens beyond them that differ: {tokens.beyond:,}; " if tokens.beyond else ""
    return f"{same}{beyond}an answer stops at id {', '.join(map(str, found.stop_ids))}"


def _template(found: Preflight) -> str:
    tokens = found.vocabulary
    if tokens.teacher is None:
        chat = "the tokenizer has one" if tokens.student.chat_template else "the tokenizer has none"
    elif tokens.same_template:
        chat = "both tokenizers have the same" if tokens.student.chat_template else "neither tokenizer has one"
    else:
        lacking = [name for name in ("student", "teacher") if not getattr(tokens, name).chat_template]
        chat = f"the {lacking[0]} has none" if lacking else "student and teacher have different ones"
    used = "the student's own chat template" + (f", dated {found.date} (data.date)" if found.date else "")
    if found.template == "paper":
        used = f"the paper's, with {found.front or 'nothing'} in front (data.bos)"
    return f"{used} (chat templates: {chat})"


def _prompts(prompts: PromptFacts) -> str:
    parts = [f"{prompts.kept:,} of {prompts.read:,} prompts, the longest {prompts.longest:,} tokens"]
    reasons = [f"{count:,} {reason}" for reason, count in prompts.dropped.items()]
    reasons += [f"{prompts.held_out:,} held out for validation"] if prompts.held_out else []
    reasons += [f"{prompts.beyond:,} beyond data.val_size"] if prompts.beyond else []
    parts += [f"dropped: {', '.join(reasons)}"] if reasons else []
    cut = f", {prompts.cut:,} of them too long and cut" if prompts.cut else ""
    return "; ".join([*parts, f"{prompts.references:,} with a reference{cut}"])


def _steps(found: Preflight) -> str:
    work, epochs = found.work, found.work.prompts_seen / found.training.kept
    text = f"{work.start_steps:,} supervised, then " if work.start_steps else ""
    text += f"{work.steps:,} optimizer step{'s' * (work.steps > 1)} of {work.minibatch_size:,} answers"
    if work.sampler:
        samples = work.rounds * work.round_size
        text += (
            f", in {work.rounds:,} rollout{'s' * (work.rounds > 1)} of {work.round_size:,}: {samples:,} samples of "
            f"at most {work.answer_tokens:,} tokens"
        )
    asked = "" if work.epochs in (None, epochs) else f" (regime.epochs={work.epochs:g}; the last step is filled up)"
    return f"{text}; {count(epochs)} pass{'es' * (epochs != 1)} over the prompts{asked}"


def _memory(found: Preflight) -> list[tuple[str, str]]:
    memory = found.memory
    if memory is None:
        return [("memory", "cannot be told for this family")]
    phases = [(name, getattr(memory, name)) for name in ("rollout", "update")]
    sums = [
        (name, ", ".join(f"{what} {_gb(size)}" for what, size in sizes.items() if size > memory.total * _SHOWN))
        for name, sizes in phases
        if sizes
    ]
    return [("memory", f"about {_gb(memory.total)} GB at the peak, of {_gb(found.usable)} GB"), *sums]


def _gb(size: float) -> str:
    return f"{size:.1f}" if abs(size) >= 10 else f"{size:.2g}"


def _row(texts: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
