"""What a training config must fulfil beyond the types of its nodes; each problem as what, got, wanted, where."""

from __future__ import annotations

import tempfile
from pathlib import Path

from minillm.common.checks import describe, matches
from minillm.common.errors import ConfigError, nearest
from minillm.common.labels import name_problems
from minillm.common.read import SETTINGS as JOB_SETTINGS
from minillm.train.regime import OnPolicy

_VALUES = ("seed", "eval_seed", "resume", "optimized_metric", "profile", "preflight")
GROUPS = ("run", "trainer", "callbacks", "logger")
_PLAIN = {"run": ("name", "dir")}  # groups without a constructor
SETTINGS = (
    "model",
    "data",
    "sampler",
    "regulariser",
    "objective",
    "linear_loss",
    "regime",
    "optim",
    "start",
    "strategy",
)


def root_problems(plain: dict) -> list[str]:
    """Problems of the root keys and of the groups without a constructor."""
    wanted = {"seed": int, "eval_seed": int, "optimized_metric": str, "profile": bool, "preflight": bool}
    problems = [
        f"{key}={plain[key]!r}: wanted {describe(kind)}"
        for key, kind in wanted.items()
        if not matches(plain[key], kind)
    ]
    known = {"": (*_VALUES, *GROUPS, *SETTINGS)} | {f"{group}.": keys for group, keys in _PLAIN.items()}
    for prefix, keys in known.items():
        given = plain[prefix[:-1]] if prefix else plain
        problems += [f"{prefix}{key}: no such key; {nearest(key, keys)}" for key in given if key not in keys]
    name = plain["run"]["name"]
    problems += name_problems(name)
    run_dir = Path(plain["run"]["dir"])
    if (run_dir / "config.yaml").exists() and not plain["resume"]:
        problems.append(
            f"run.name={name}: {run_dir} already holds a run; choose another name, go on with resume=auto, or delete it"
        )
    elif (run_dir / JOB_SETTINGS).exists():  # whose figures and answers a training run would write over
        problems.append(
            f"run.name={name}: {run_dir} already holds an evaluation or a teacher's answers; choose another name"
        )
    if plain["resume"] not in (None, "auto"):
        problems.append(f"resume={plain['resume']!r}: wanted null or auto")
    return problems


def check_writable(run_dir: Path) -> None:
    """Raise ConfigError if a directory, which need not exist yet, cannot be written into; by trying it."""
    there = next(each for each in (run_dir.absolute(), *run_dir.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"x")
    except OSError as error:
        raise ConfigError(
            f"run.name: {run_dir} cannot be written ({there}: {error.strerror}); wanted a place where runs can be"
        ) from error


def cross_field_problems(built: dict, callbacks: dict, plain: dict) -> list[str]:
    """Problems of settings that do not go together; `built` and `callbacks` hold None where a node itself is wrong."""
    data, regulariser, start, regime = (built[name] for name in ("data", "regulariser", "start", "regime"))
    problems = []
    if data and regulariser and regulariser.on and data.corpus_file is None:
        problems.append("data.corpus_file=null: the regulariser needs a corpus; name a file or set regulariser=none")
    if regime:
        problems += _regime_problems(built, on_policy=isinstance(regime, OnPolicy), profile=plain["profile"] is True)
    if start and isinstance(regime, OnPolicy) and start.steps and regime.rollouts % start.minibatch_size:
        problems.append(
            f"start.minibatch_size={start.minibatch_size} does not divide regime.rollouts={regime.rollouts}; "
            "use a divisor"
        )
    record = callbacks.get("record")
    if "record" not in callbacks:
        problems.append(
            "callbacks.record=null: it writes metrics.json and student/; wanted conf/callbacks/default.yaml's"
        )
    if record and record.export == "best" and not {"checkpoints", "validation"} <= callbacks.keys():
        problems.append(
            "callbacks.record.export=best: needs callbacks.checkpoints and callbacks.validation; set it to last"
        )
    if callbacks.get("median") and getattr(callbacks.get("validation"), "every", None) is None:
        problems.append("callbacks.median: needs validations on the way; set callbacks.validation.every")
    precision = plain["trainer"].get("precision")
    if precision not in ("auto", "32-true", "bf16-mixed"):
        problems.append(
            f"trainer.precision={precision}: wanted auto, 32-true or bf16-mixed; the weights' type is model.dtype"
        )
    if model := built["model"]:
        half = model.dtype in ("bfloat16", "float16")
        if half and model.lora is None:
            problems.append(
                f"model.dtype={model.dtype}: the student's weights would be trained in it, and most of them are too "
                "coarse there to move by a step of the learning rate; wanted auto (a float32 student, a bfloat16 "
                "teacher on a GPU that has it) with trainer.precision=bf16-mixed, or lora"
            )
        if model.attention == "flash_attention_2" and not half:
            problems.append(
                "model.attention=flash_attention_2: works in half types only; wanted model.dtype=bfloat16 and lora"
            )
    teacher = getattr(built["model"], "teacher", None)
    if teacher and teacher.offload and getattr(regime, "teacher_states", "keep") == "recompute":
        problems.append(
            "model.teacher.offload=true with regime.teacher_states=recompute: the body is away when it is needed; "
            "change one of them"
        )
    if teacher and teacher.offload and regulariser and regulariser.on and regulariser.kd_ratio > 0:
        problems.append(
            "model.teacher.offload=true with regulariser.kd_ratio > 0: the body is away when it is needed; change one "
            "of them"
        )
    student = getattr(built["model"], "student", None)
    if getattr(student, "offload", False):
        problems.append("model.student.offload=true: only a teacher's body can be away; remove it")
    if built["strategy"]:
        problems += _device_problems(built, profile=plain["profile"] is True)
    return problems


def _device_problems(built: dict, *, profile: bool) -> list[str]:
    strategy, regime, start, model = (built[name] for name in ("strategy", "regime", "start", "model"))
    problems, size = strategy.problems(), strategy.data_parallel_size
    rows = {}
    if regime:
        rows["regime.minibatch_size"] = regime.minibatch_size
    if isinstance(regime, OnPolicy):
        rows["regime.rollouts"] = regime.rollouts
        if start and start.steps:
            rows["start.minibatch_size"] = start.minibatch_size
    for name, number in rows.items():
        if number < size:
            problems.append(f"{name}={number}: fewer rows than the {size} devices that share them; use fewer devices")
        elif number % size:
            problems.append(f"{name}={number}: the {size} devices that share its rows do not divide it; use a multiple")
    if profile and strategy.world_size > 1:
        problems.append("profile=true with several devices: one is profiled; wanted strategy=single")
    if model and strategy.sharded:
        teacher = model.teacher
        problems += [
            f"{name} with strategy={strategy.kind}: {why}"
            for wrong, name, why in (
                (model.compile, "model.compile=true", "layers are gathered one at a time; wanted false"),
                (teacher and teacher.offload, "model.teacher.offload=true", "its layers are in parts; wanted false"),
                (
                    teacher and teacher.bits,
                    f"model.teacher.bits={teacher and teacher.bits}",
                    "quantised weights cannot be in parts; wanted null, or strategy=ddp",
                ),
            )
            if wrong
        ]
    return problems


def _regime_problems(built: dict, *, on_policy: bool, profile: bool) -> list[str]:
    objective, start, regulariser = built["objective"], built["start"], built["regulariser"]
    teacher = getattr(built["model"], "teacher", None)
    no_teacher = built["model"] is not None and built["model"].teacher is None
    if on_policy:
        pairs = [
            (no_teacher, "model.teacher=null with regime=on_policy: wanted a teacher"),
        ]
    else:
        pairs = [
            (
                no_teacher and bool(getattr(objective, "needs", ())),
                "model.teacher=null with an objective that needs it: wanted a teacher (or objective.kd_ratio=0)",
            ),
            (profile, "profile=true with regime=supervised: only rollouts are profiled; wanted false"),
            (
                bool(getattr(teacher, "offload", False)),
                "model.teacher.offload=true with regime=supervised: the body is needed in every step; wanted false",
            ),
            (start is not None and start.steps > 0, "start.steps > 0 with regime=supervised: wanted 0"),
            (
                regulariser is not None and regulariser.on,
                "regulariser with regime=supervised: fine-tuning has none; wanted regulariser=none",
            ),
        ]
    regime = "on_policy" if on_policy else "supervised"
    if objective and regime not in objective.regimes:
        name = type(objective).__name__
        pairs.append((True, f"objective {name} with regime={regime}: wanted regime={'|'.join(objective.regimes)}"))
    return [problem for wrong, problem in pairs if wrong]
