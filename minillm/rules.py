"""What a training config must fulfil beyond the types of its nodes; each problem as what, got, wanted, where."""

from __future__ import annotations

import re
from pathlib import Path

from minillm.checks import describe, matches
from minillm.errors import nearest
from minillm.modules import OnPolicy
from minillm.objectives import CrossEntropy, MiniLLM

_VALUES = ("seed", "eval_seed", "resume", "optimized_metric", "profile", "preflight")
GROUPS = ("run", "strategy", "trainer", "callbacks", "logger")
_PLAIN = {"run": ("name", "dir"), "strategy": ("strategy", "devices", "num_nodes")}  # groups without a constructor
SETTINGS = ("model", "data", "sampler", "regulariser", "objective", "linear_loss", "regime", "optim", "start")


def root_problems(plain: dict) -> list[str]:
    """Of the keys at the root and of the groups without a constructor."""
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
    if not isinstance(name, str) or not name or re.search(r"[=,\[\](){}\s]", name) or name.startswith(("/", ".")):
        problems.append(f"run.name={name!r}: wanted a relative path without = , spaces or brackets")
    run_dir = Path(plain["run"]["dir"])
    if (run_dir / "config.yaml").exists() and not plain["resume"]:
        problems.append(
            f"run.name={name}: {run_dir} already holds a run; choose another name, go on with resume=auto, or delete it"
        )
    if plain["resume"] not in (None, "auto"):
        problems.append(f"resume={plain['resume']!r}: wanted null or auto")
    return problems


def cross_field_problems(built: dict, callbacks: dict, plain: dict) -> list[str]:
    """Of settings that do not go together; `built` and `callbacks` hold None where a node is wrong in itself."""
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
    if (
        built["model"]
        and built["model"].attention == "flash_attention_2"
        and built["model"].dtype in ("auto", "float32")
    ):
        problems.append("model.attention=flash_attention_2: works in half types only; wanted model.dtype=bfloat16")
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
    devices = plain["strategy"].get("devices"), plain["strategy"].get("num_nodes")
    if devices != (1, 1):
        problems.append(
            f"strategy.devices, strategy.num_nodes={devices}: this version trains on one device; set both to 1"
        )
    return problems


def _regime_problems(built: dict, *, on_policy: bool, profile: bool) -> list[str]:
    objective, start, regulariser = built["objective"], built["start"], built["regulariser"]
    teacher = getattr(built["model"], "teacher", None)
    no_teacher = built["model"] is not None and built["model"].teacher is None
    if on_policy:
        pairs = [
            (isinstance(objective, CrossEntropy), "objective=sft|kd with regime=on_policy: wanted regime=supervised"),
            (no_teacher, "model.teacher=null with regime=on_policy: wanted a teacher"),
        ]
    else:
        pairs = [
            (
                isinstance(objective, MiniLLM),
                "objective=paper|reference with regime=supervised: wanted objective=sft or objective=kd",
            ),
            (
                no_teacher and bool(getattr(objective, "wanted", ())),
                "model.teacher=null with objective.kd_ratio > 0: wanted a teacher",
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
    return [problem for wrong, problem in pairs if wrong]
