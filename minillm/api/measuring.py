"""Answers of models, and figures of the answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from minillm.api.inputs import Prompts, Run, Student, pair_of_model, prompts_of
from minillm.common.child import ROOT
from minillm.common.errors import ConfigError
from minillm.evaluation.answers import answer_prompts
from minillm.evaluation.generation import row_of
from minillm.evaluation.suite.run import run_suite
from minillm.evaluation.suite.settings import check_suite
from minillm.models import LanguageModel, Pair
from minillm.models.digest import weights_digest


def generate(
    model: str | Path | Pair | Run,
    prompts: Prompts,
    *,
    of: Literal["student", "teacher"] = "student",
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int | None = 0,
    batch_size: int = 32,
    data: Mapping[str, Any] | None = None,
) -> list[dict]:
    """Answers as rows that `finetune` takes as prompts: one a prompt, sampled, or greedy with seed=None. Rows of
    `prompts` that cannot be written with the model's template or are too long are left out.

    Args:
        model: a directory or hub id, a pair or a run; `of` them the student or the teacher.
    """
    pair = pair_of_model(model)
    if of == "teacher" and pair.teacher_here is None:
        served = "the teacher is served elsewhere and scores answers only; give the directory or hub id of its model"
        raise ConfigError(f"of=teacher: {'the pair has no teacher' if pair.teacher is None else served}")
    chosen = prompts_of(pair if of == "teacher" else replace(pair, teacher=None, teacher_tokenizer=None), prompts, data)
    model = pair.teacher if of == "teacher" else LanguageModel(pair.student, pair.n_vocab)
    tokenizer, stops = pair.tokens_of(model)
    answers = answer_prompts(
        model,
        chosen.for_teacher if of == "teacher" else chosen,
        tokenizer,
        seeds=None if seed is None else [seed],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop_ids=stops,
        temperature=temperature,
    )
    pairs = zip(chosen.records, answers, strict=True)
    return [row_of(record, answer.answer, answer.truncated) for record, answer in pairs]


def evaluate(
    models: Sequence[str | Path | Run | Pair],
    *,
    teacher: str | Path | Pair | LanguageModel | None = None,
    files: Sequence[str | Path] = ("builtin:validation",),
    suite: str | Mapping[str, Any] = "quick",
    run_dir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict:
    """Measure models on held-out prompts; what evaluate.py writes to metrics.json:
    ["answers"][decoding][file][model]["figures"], each with mean and 95% interval, and more.

    Args:
        models: directories, hub ids, runs or pairs. The student of a run or pair is saved as
            <run_dir>/models/<hash of its weights>, which is its name.
        teacher: for the KL; of a pair its teacher, which must be a model of a directory or the hub as it is there: no
            moving average, no adapter, not in 4 or 8 bits.
        files: of prompts. suite: quick, or paper for all that the paper measures, or the keys of such a file.
        options: other keys of conf/evaluate.yaml: seeds, max_new_tokens, batch_size, limit, ...
    """
    if isinstance(teacher, Pair | LanguageModel):
        model = teacher.teacher if isinstance(teacher, Pair) else teacher
        teacher = getattr(getattr(model, "network", None), "name_or_path", None)
        if not teacher:
            raise ConfigError(
                "teacher: is not one model that was loaded from a directory or a hub id, with nothing changed; wanted "
                "the name of one"
            )
    with tempfile.TemporaryDirectory(prefix="minillm-") as scratch:
        folder = Path(run_dir or f"{scratch}/evaluation")
        cfg = OmegaConf.load(ROOT / "conf" / "evaluate.yaml")
        del cfg["defaults"], cfg["hydra"]
        named = [str(each) for each in models]
        saved = []
        for number, each in enumerate(models):
            if not isinstance(each, str | Path):
                pair = pair_of_model(each)
                place = folder / "models" / weights_digest(pair.student)[:12]
                named[number] = str(place)
                if not place.exists():
                    saved.append(place)
                    Student(pair).save_pretrained(place)
        given = options | {
            "models": named,
            "teacher": teacher and str(teacher),
            "run": {"name": folder.name, "dir": str(folder)},
            "suite": OmegaConf.load(ROOT / "conf" / "suite" / f"{suite}.yaml") if isinstance(suite, str) else suite,
            "data": OmegaConf.load(ROOT / "conf" / "data" / "builtin.yaml"),
        }
        cfg = OmegaConf.merge(cfg, given, {"data": {"files": [str(each) for each in files], **(data or {})}})
        try:
            checked = check_suite(cfg)
        except BaseException:  # nothing is left where nothing is measured
            for each in saved:
                shutil.rmtree(each, ignore_errors=True)
            for each in (folder / "models", folder):
                with suppress(OSError):
                    each.rmdir()
            raise
        return run_suite(checked)
