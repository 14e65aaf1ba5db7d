"""Load a pair, distil it, fine-tune it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minillm.api.inputs import Prompts, Run, as_file, sources_of
from minillm.common.errors import ConfigError, check
from minillm.common.machine import tune
from minillm.data import read_records
from minillm.models import Checkpoint, Lora, ModelPair, Pair, PrunedTeacher, device_of
from minillm.objectives import CrossEntropy, MiniLLM, PretrainLoss
from minillm.objectives.linear_loss import LinearLoss
from minillm.parallel import Parallel
from minillm.rollout import Sampler
from minillm.train.fit import train
from minillm.train.optim import Optim
from minillm.train.preemption import kept_handlers
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.reward import Reward
from minillm.train.settings import assemble
from minillm.train.start import SupervisedStart

_NO_CORPUS = PretrainLoss(enabled=False, coefficient=0.0, batch_size=1)


def load_pair(
    student: str | Path | Checkpoint | PrunedTeacher,
    teacher: str | Path | Checkpoint | None = None,
    *,
    teachers: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
    ema_rate: float = 0.02,
    tokenizers: Literal["shared", "separate"] = "shared",
    seed: int = 0,
) -> Pair:
    """A student to train and its frozen teacher, checked against one another. From now on this process keeps freed
    memory for the next tensor (glibc), as those of the commands do.

    Args:
        student, teacher: a directory, a hub id, a .gguf file, or `package:NAME`; without a teacher the student can be
            fine-tuned only. The teacher may also be the address of `minillm.serve`, http://HOST:PORT, or the student
            itself: `start`, `ema` (with its `ema_rate`) or `base`. A `Checkpoint` of `minillm.models` has all settings,
            and the student may be a `PrunedTeacher` of it: the teacher without some of its layers.
        teachers: several, by names of your own, in the place of `teacher`; each row of the prompts names its own by the
            key `teacher`. A mapping has the keys of `Checkpoint`: {"source": DIR, "adapter": DIR}.
        dtype: of weights that are not trained; trained ones are float32 with `auto`.
        lora: train adapters of the student. seed: of their initial weights.
        tokenizers: `separate` for a teacher with other tokens; the objective is then SpanReverseKL.

    Raises:
        ConfigError, ModelError: a model cannot be loaded or is not known here, or the two do not share a vocabulary.
    """
    options = dict(dtype=dtype, attention=attention, lora=lora, gradient_checkpointing=gradient_checkpointing)
    options |= dict(ema_rate=ema_rate, tokenizers=tokenizers)
    named = teachers and {name: str(each) if isinstance(each, Path) else each for name, each in teachers.items()}
    sides = [str(each) if isinstance(each, Path) else each for each in (student, teacher)]
    tune()
    settings = ModelPair(*sides, teachers=named, **options)
    return settings.load(device_of(device), seed)


def distill(
    pair: Pair,
    prompts: Prompts,
    *,
    steps: int | None = None,
    objective: Any = None,
    sampler: Sampler | None = None,
    regime: OnPolicy | None = None,
    corpus: str | Path | None = None,
    regulariser: PretrainLoss | None = None,
    start: SupervisedStart | None = None,
    reward: Reward | None = None,
    **options: Any,
) -> Run:
    """Train `pair.student` in place on its own answers, by default with MiniLLM's objective.

    Args:
        prompts: a .jsonl file, a hub data set, `builtin`, or rows: texts, or dicts as in the file.
        steps: optimizer steps; None takes those of `regime`, whose sizes are the paper's by default (256 answers a
            rollout, 64 a step).
        corpus: text for the regulariser L_PT (a file, a hub data set, `pydoc_topics`); None does without.
        start: supervised steps before the first rollout.
        reward: of a function of your own, added to the long part of the objective.

    Options:
        optim: the optimizer, its learning rate (5e-6 by default) and schedule.
        linear_loss: memory of the loss's logits.
        validation: prompts that are held out; None keeps a tenth of `prompts` out, 64 at most.
        data: further settings of `Sources`, such as template, system, max_prompt_tokens.
        validate_every, save_every: optimizer steps; None: at the beginning and the end.
        run_dir: where metrics, checkpoints, samples and the student are kept; None keeps nothing.
        resume: go on from the run_dir's last checkpoint, if there is one.
        export: the weights that stay: `last`, of the last step, or `best`, of the best validation (by reverse KL, or by
            loss without a teacher); `best` needs a run_dir.
        seed: of prompts, rollouts and inner epochs. eval_seed: of validation.
        preflight: look at the pair before the first step, and check that decoding and update are one model.

    Raises:
        ConfigError, DataError, ModelError: before anything is trained, with all that is wrong.
        Interrupted: by a signal; with a `run_dir` the same call with resume=True goes on.
    """
    if pair.teacher is None:
        raise ConfigError("pair: has no teacher; wanted load_pair(student, teacher)")
    regime = regime or OnPolicy()
    groups = dict(
        objective=objective or MiniLLM(),
        sampler=sampler or Sampler(),
        regime=regime if steps is None else replace(regime, max_steps=steps),
        regulariser=regulariser or (PretrainLoss() if corpus else _NO_CORPUS),
        start=start or SupervisedStart(),
        reward=reward or Reward(),
    )
    return _train(pair, prompts, groups, corpus, **options)


def finetune(
    pair: Pair,
    prompts: Prompts,
    *,
    steps: int | None = None,
    objective: CrossEntropy | None = None,
    regime: Supervised | None = None,
    **options: Any,
) -> Run:
    """Train `pair.student` in place on the answers of the data: fine-tuning, or with CrossEntropy(kd_ratio=0.5)
    word-level KD, and on a teacher's answers (`generate`) SeqKD. `steps` None takes the epochs of `regime`. The
    options: as `distill`."""
    regime = regime or Supervised()
    groups = dict(
        objective=objective or CrossEntropy(),
        sampler=Sampler(),
        regime=regime if steps is None else replace(regime, epochs=None, max_steps=steps),
        regulariser=_NO_CORPUS,
        start=SupervisedStart(),
        reward=Reward(),
    )
    return _train(pair, prompts, groups, None, **options)


def _train(
    pair: Pair,
    prompts: Prompts,
    groups: dict[str, Any],
    corpus: str | Path | None,
    *,
    optim: Optim | None = None,
    linear_loss: LinearLoss | None = None,
    validation: Prompts | None = None,
    data: Mapping[str, Any] | None = None,
    validate_every: int | None = None,
    save_every: int | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    export: Literal["best", "last"] = "last",
    seed: int = 0,
    eval_seed: int = 1234,
    preflight: bool = True,
) -> Run:
    if export == "best" and run_dir is None:
        raise ConfigError("export=best: needs a run_dir, where the best weights are kept")
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="minillm-")))
        train_file = as_file(prompts, folder)
        val_file = None if validation is None else as_file(validation, folder)
        files = dict(train_file=train_file, val_file=val_file, corpus_file=None if corpus is None else str(corpus))
        check(*((False, each) for each in sources_of(pair, data, **files | {"val_size": 1}).missing(corpus=True)))
        held_out = max(1, min(64, len(read_records(train_file)) // 10)) if validation is None else None
        built = groups | {
            "model": pair.loaded_by or ModelPair(pair.student.name_or_path or "memory", pair.teacher and "memory"),
            "optim": optim or Optim(),
            "linear_loss": linear_loss or LinearLoss(),
            "strategy": Parallel(),
            "data": sources_of(pair, data, val_size=held_out, **files),
        }
        monitor = "loss" if pair.teacher is None else "reverse_kl" if pair.teacher.exact else "reverse_kl_sampled"
        monitor += "_per_byte" if pair.teacher_tokenizer else ""
        ours, tokens = "minillm.train.callbacks.", groups["sampler"].max_new_tokens
        kept = run_dir is not None
        plain = {name: _plain(each) for name, each in built.items()} | {
            "seed": seed, "eval_seed": eval_seed, "resume": "auto" if resume else None,
            "preflight": preflight, "optimized_metric": f"val/{monitor}",
            "run": {"name": folder.name, "dir": str(folder)},
            "trainer": {"_target_": "lightning.Trainer", "precision": "auto", "enable_model_summary": False,
                        "accelerator": "gpu" if pair.student.device.type == "cuda" else "cpu"},
            "logger": {"_target_": None},
            "callbacks": {
                "validation": {"_target_": f"{ours}Validation", "every": validate_every, "max_new_tokens": tokens},
                "checkpoints": {"_target_": f"{ours}Checkpoints", "every": save_every, "monitor": monitor}
                if kept else None,
                "record": {"_target_": f"{ours}RunRecord", "export": export if kept else None},
                "progress": {"_target_": f"{ours}Progress"},
            },
        }  # fmt: skip
        command = f"minillm.{'distill' if isinstance(built['regime'], OnPolicy) else 'finetune'}"
        device = pair.student.device
        with kept_handlers():
            settings = assemble(plain, built, command=f"{command}(...)  # from Python", began=time.time())
            run = train(settings, pair)
        pair.student.to(device)  # Lightning leaves it on the CPU
        metrics = json.loads((folder / "metrics.json").read_text())
        history = [{name: float(value) for name, value in row.items()} for row in run.trainer.loggers[0].rows]
    return Run(metrics, history, pair, folder if kept else None, settings.callbacks["record"].card)


def _plain(value: Any) -> Any:
    """A settings object as plain values, its class in `_target_`, as conf/ has it."""
    if is_dataclass(value):
        own = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
