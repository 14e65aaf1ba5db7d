"""What a training config must fulfil beyond the values of its groups; each problem as what, got, wanted, where."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minillm.common.checks import trainer_problem, value_problems
from minillm.common.errors import ConfigError, nearest
from minillm.common.labels import name_problems
from minillm.common.read import SETTINGS as JOB_SETTINGS
from minillm.objectives import SPANS, START, TEACHER

SETTINGS = (
    "model", "data", "sampler", "regulariser", "objective", "linear_loss", "regime", "optim", "start", "reward",
    "strategy",
)  # fmt: skip
GROUPS = ("run", "trainer", "callbacks", "logger")
_KINDS = {
    "seed": int, "eval_seed": int, "optimized_metric": str, "preflight": bool, "resume": str | None,
}  # fmt: skip


ROOT = (*_KINDS, *GROUPS, *SETTINGS)


def root_problems(plain: dict) -> list[str]:
    """Problems of the root keys, the run's name and directory, and of keys of the trainer that are ours."""
    problems = value_problems(plain, _KINDS)
    known = {"": ROOT, "run.": ("name", "dir")}
    for prefix, keys in known.items():
        given = plain[prefix[:-1]] if prefix else plain
        problems += [f"{prefix}{key}: no such key; {nearest(key, keys)}" for key in given if key not in keys]
    problems += name_problems(name := plain["run"]["name"])
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
    return problems + [refused for key in plain["trainer"] if (refused := trainer_problem(key))]


def rule_problems(built: Mapping[str, Any], plain: Mapping) -> list[str]:
    """What does not go together in groups whose own values are right. `built` has the object of each of SETTINGS."""
    model, data, sampler, regulariser, objective, _, regime, _, start, reward, strategy = map(built.get, SETTINGS)
    teacher, kind, on_policy = model.teacher, strategy.kind, regime.name == "on_policy"
    own = model.own_teacher
    offload, bits = (teacher is not None and getattr(teacher, name) for name in ("offload", "bits"))
    half, precision = model.dtype in ("bfloat16", "float16"), plain["trainer"].get("precision")
    callbacks, served = plain["callbacks"], teacher is not None and teacher.url is not None
    vllm = served and teacher.protocol == "vllm"
    soft = (regulariser.on and regulariser.kd_ratio) or (start.steps and start.kd_ratio)
    best = (callbacks.get("record") or {}).get("export") == "best"
    body_needed = strategy.sharded or (regulariser.on and regulariser.kd_ratio > 0)
    body_needed |= not on_policy or regime.teacher_states == "recompute"
    rollouts, steps = (regime.rollouts, regime.steps_per_rollout) if on_policy else (0, 1)
    separate, spans = model.tokenizers == "separate", SPANS in objective.needs
    rules = (
        (
            separate and (TEACHER in objective.needs or (on_policy and not spans)),
            f"model.tokenizers=separate with objective {type(objective).__name__}: it compares tokens, and the teacher "
            "has others; wanted objective=spans, or objective=sft, which needs no teacher",
        ),
        (spans and not separate, "objective=spans with model.tokenizers=shared: wanted separate, or another objective"),
        (
            separate and on_policy and (sampler.alpha > 0 or sampler.temperature != 1),
            f"sampler.alpha={sampler.alpha}, sampler.temperature={sampler.temperature} with model.tokenizers=separate: "
            "texts are compared as the models write them; wanted 0 and 1",
        ),
        *(
            (separate and given, f"{key} with model.tokenizers=separate: takes the teacher's tokens; wanted {do}")
            for key, given, do in (
                ("start.kd_ratio", start.steps and start.kd_ratio, 0),
                ("start.responses=teacher", start.steps and start.responses == "teacher", "reference"),
                ("regulariser.kd_ratio", regulariser.on and regulariser.kd_ratio, 0),
                ("data.replay", data.replay, 0),
                ("data.teacher_cache", data.teacher_cache, "null"),
            )
        ),
        (
            regulariser.on and data.corpus_file is None,
            "data.corpus_file=null: the regulariser needs a corpus; name a file or set regulariser=none",
        ),
        (
            not model.all_teachers and (on_policy or objective.needs),
            "model.teacher=null with an objective that needs it: wanted a teacher, or regime=supervised objective=sft",
        ),
        (
            model.teachers and (strategy.sharded or data.teacher_cache or (regulariser.on and regulariser.kd_ratio)),
            "model.teachers: wanted strategy=single or ddp, data.teacher_cache=null and regulariser.kd_ratio=0",
        ),
        (
            strategy.sharded and own in ("ema", "base"),
            f"model.teacher={own} with strategy={kind}: its weights are not sharded as the student's; wanted start, "
            "strategy=single or ddp",
        ),
        (
            own == "ema" and on_policy and regime.teacher_states == "keep" and (start.steps or steps > 1),
            "regime.teacher_states=keep with model.teacher=ema: the average moves at each of several steps on a "
            "rollout, and kept states would stay; wanted recompute, or one step (minibatch_size=rollouts, "
            "inner_epochs=1, start.steps=0)",
        ),
        (
            offload and body_needed,
            "model.teacher.offload=true: its body is away during updates, where regime=supervised, "
            "regime.teacher_states=recompute, regulariser.kd_ratio > 0 and sharded strategies need it; wanted false",
        ),
        (served and on_policy and sampler.alpha > 0, f"sampler.alpha={sampler.alpha} with model.teacher.url: wanted 0"),
        (
            served and start.steps > 0 and start.responses == "teacher",
            "start.responses=teacher with model.teacher.url: a served teacher writes no answers; wanted reference",
        ),
        (
            served and on_policy and regime.teacher_states == "recompute",
            "regime.teacher_states=recompute with model.teacher.url: would ask again in each inner epoch; wanted keep",
        ),
        (
            on_policy and sampler.one_process and strategy.world_size > 1,
            f"strategy={kind} with sampler {type(sampler).__name__}: works in one process; wanted strategy=single",
        ),
        (served and strategy.sharded, f"strategy={kind} with model.teacher.url: wanted single or ddp"),
        (
            model.reference is not None and START not in objective.needs,
            f"model.reference: objective {type(objective).__name__} compares with none; wanted null",
        ),
        (
            vllm and objective.teacher_tokens is None,
            f"objective {type(objective).__name__} with model.teacher.protocol=vllm: needs the whole distribution, of "
            "which the server lists some tokens; wanted objective=topk (of=teacher), sampled, iw_opd or extrapolated",
        ),
        (
            vllm and (soft or data.teacher_cache or (on_policy and sampler.temperature != 1)),
            "model.teacher.protocol=vllm: the server lists some log-probs, of temperature 1; wanted start.kd_ratio=0, "
            "regulariser.kd_ratio=0, sampler.temperature=1 and data.teacher_cache=null",
        ),
        (
            str(plain["logger"].get("_target_")).endswith(".tensorboard_logger") and find_spec("tensorboard") is None,
            "logger=tensorboard: tensorboard is not installed; pip install -r requirements-tensorboard.txt",
        ),
        (start.steps > 0 and not on_policy, "start.steps > 0 with regime=supervised: wanted 0"),
        (
            regulariser.on and not on_policy,
            "regulariser with regime=supervised: fine-tuning has none; wanted regulariser=none",
        ),
        (
            regime.name not in objective.regimes,
            f"objective {type(objective).__name__} with regime={regime.name}: wanted regime={objective.regimes[0]}",
        ),
        (
            not on_policy and (data.on_policy < 1 or data.replay),
            "data.on_policy, data.replay with regime=supervised: all answers are the data's; wanted 1 and 0",
        ),
        (
            on_policy and data.on_policy < 1 and objective.sampled_only,
            f"data.on_policy={data.on_policy}: objective {type(objective).__name__} is a policy gradient alone, and "
            "answers of the data have no log-probs of a policy that drew them; wanted 1, or a loss at each position",
        ),
        (
            reward.function and (not objective.long_part or sampler.answers_per_prompt == 1),
            f"reward.function with objective {type(objective).__name__}, sampler.answers_per_prompt="
            f"{sampler.answers_per_prompt}: wanted a long part (objective=paper, or objective.long_part=true), and 2 "
            "or more answers, which are compared",
        ),
        (
            rollouts % sampler.answers_per_prompt,
            f"sampler.answers_per_prompt={sampler.answers_per_prompt} does not divide regime.rollouts; use a divisor",
        ),
        (
            start.steps and rollouts % start.minibatch_size,
            f"start.minibatch_size={start.minibatch_size} does not divide regime.rollouts={rollouts}; use a divisor",
        ),
        (
            data.teacher_cache and (on_policy or strategy.sharded or own),
            f"data.teacher_cache={data.teacher_cache}: keeps the teacher's states of given answers, of whole weights; "
            "wanted null, or regime=supervised with strategy=single or ddp and a teacher that is not the student",
        ),
        (
            not callbacks.get("record"),
            "callbacks.record=null: it writes metrics.json and student/; wanted conf/callbacks/default.yaml's",
        ),
        (
            best and not (callbacks.get("checkpoints") and callbacks.get("validation")),
            "callbacks.record.export=best: needs callbacks.checkpoints and callbacks.validation; set it to last",
        ),
        (
            precision not in ("auto", "32-true", "bf16-mixed"),
            f"trainer.precision={precision}: wanted auto, 32-true or bf16-mixed; the weights' type is model.dtype",
        ),
        (
            half and model.lora is None,
            f"model.dtype={model.dtype}: the student's weights would be trained in it, and a step of the learning rate "
            "is lost in most of them; wanted auto with trainer.precision=bf16-mixed, or lora",
        ),
        (
            model.attention == "flash_attention_2" and not half,
            "model.attention=flash_attention_2: works in half types only; wanted model.dtype=bfloat16 and lora",
        ),
        (
            getattr(model.student, "offload", False),
            "model.student.offload=true: only a teacher's body can be away; remove it",
        ),
        (
            strategy.sharded and model.compile,
            f"model.compile=true with strategy={kind}: layers are gathered one at a time; wanted false",
        ),
        (
            strategy.sharded and bits,
            f"model.teacher.bits={bits} with strategy={kind}: quantised weights cannot be sharded; wanted null, or "
            "strategy=ddp",
        ),
    )
    rows = {"regime.minibatch_size": regime.minibatch_size, "regime.rollouts": rollouts}
    rows["start.minibatch_size"] = start.minibatch_size if start.steps and on_policy else 0
    size = strategy.data_parallel_size
    return [text for wrong, text in rules if wrong] + [
        f"{name}={number}: the {size} devices that share its rows do not divide it; use a multiple"
        for name, number in rows.items()
        if number % size
    ]


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
