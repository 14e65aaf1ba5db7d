"""The model card of a student: the README.md beside its weights, in the form that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import minillm
from minillm.common.errors import check
from minillm.common.hub import card_of, hub_id
from minillm.common.numbers import count, is_finite
from minillm.data.records import Record
from minillm.data.templates import paper_prompt
from minillm.evaluation.metrics import FIGURES
from minillm.models import OWN_TEACHERS

_NAMES = {each.key: each.name for each in FIGURES} | {"loss": "Loss on references, nats a token"}
_QUESTION = "Why is the sky blue?"
_FOLDERS = re.compile(r"(?:(?<=file://)|(?<![\w./~:}-]))~?/(?:[^\s/'\"\[\]{},]+/)*")  # of an absolute path


def card_text(
    plain: Mapping[str, Any],
    commands: Sequence[str | None] = (),
    *,
    figures: Mapping[str, float] | None = None,
    against: str | None = None,
    weights: str = "last",
    name: str | None = None,
    place: str = "student",
    license: str | None = None,
    language: str | list[str] | None = None,
) -> str:
    """The card of a run's student.

    Args:
        plain: the run's config as plain values; groups may be missing. figures: of a validation of these very weights;
            its Rouge-L is measured `against` these. place: where the student is loaded from. name, license, language:
            None takes those of the config, and the last two else those of the base model's card, if it has any.

    Raises:
        ConfigError: see `check_terms`.
    """
    groups = {key: plain.get(key) or {} for key in ("model", "data", "objective", "regulariser", "callbacks", "run")}
    model, data, own = groups["model"], groups["data"], groups["callbacks"].get("record") or {}
    student, named = model.get("student"), model.get("teachers") or {"teacher": model.get("teacher")}
    teachers = [_source(each) for each in named.values()]
    pruned = isinstance(student, Mapping) and student.keys() & {"keep_layers", "drop_layers"}
    base = teachers[0] if pruned else _source(student)
    objective = "objective" in plain and str(groups["objective"].get("_target_", "MiniLLM")).rpartition(".")[2]
    terms = {"license": license or own.get("license"), "language": language or own.get("language")}
    check_terms(**terms)
    head, name = card_of(base), name or groups["run"].get("name") or "student"
    inherited = ("language", *(() if terms["license"] else ("license", "license_name", "license_link")))
    held_out = str(data.get("val_file") or data.get("train_file"))
    on_hub, file = hub_id(held_out, "dataset"), Path(held_out)
    where = dict(dataset_name=on_hub or file.name, dataset_type=on_hub or re.sub(r"[^\w-]+", "-", file.stem))
    names = _NAMES | ({"rouge_l": f"{_NAMES['rouge_l']} against {against}"} if against else {})
    rows = [(key, value, names.get(key, key)) for key, value in (figures or {}).items()]
    results = [EvalResult("text-generation", **where, metric_type=key, metric_name=text, metric_value=value)
               for key, value, text in rows if is_finite(value)]  # fmt: skip
    on = all(groups["regulariser"].get(key) for key in ("enabled", "coefficient"))
    used = (data.get("train_file"), data.get("corpus_file") if on else None)
    known = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["minillm", "distillation", *([objective] if objective else [])],
        base_model=hub_id(base) or head.get("base_model"),
        datasets=[each for each in dict.fromkeys(hub_id(each, "dataset") for each in used) if each] or None,
        model_name=name if results else None,
        eval_results=results or None,
        **terms | {key: head.get(key) for key in inherited if not terms.get(key)},
    )
    card = ModelCard.from_template(
        known, template_path=str(Path(__file__).with_name("card.md")), **groups, name=name, base=base, rows=rows,
        place=place, weights=weights, held_out=where["dataset_name"], against=against,
        by=objective, teachers=list(dict.fromkeys(OWN_TEACHERS.get(each) or _called(each) for each in teachers)),
        question=_QUESTION, paper=paper_prompt(Record("", _QUESTION)), version=minillm.__version__,
        commands=_FOLDERS.sub("", "\n".join(filter(None, commands))), called=_called, repr=repr, count=count,
    )  # fmt: skip
    return f"{card}\n"


def check_terms(license: str | None, language: str | list[str] | None) -> None:
    """Raises ConfigError: the hub would refuse them."""
    given, form = [license, *([language] if isinstance(language, str) else language or [])], "[a-z0-9][a-z0-9.+-]*"
    wanted = "wanted names of the hub, such as apache-2.0 and en"
    check(*((bool(re.fullmatch(form, each)), f"license, language: got {each!r}; {wanted}") for each in given if each))


def _source(node: Any) -> str | None:
    return node.get("source") if isinstance(node, Mapping) else node and str(node)


def _called(source: str | None) -> str:
    """In a text: what is on this disk by its last part, a run's student by the run's name."""
    path = Path(source or "").expanduser()
    if source and (path.exists() or source.startswith((".", "/", "~"))):
        source = (path.parent if path.name == "student" else path).name
    return f"`{source}`" if source else "a served teacher"
