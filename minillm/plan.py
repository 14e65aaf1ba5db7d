"""python -m minillm.plan recipe=minillm pair=gpt2_120m devices=64 device_memory=80: what a run would need.

No GPU, no hub and no weights: shapes are those of the models' yaml. See conf/plan.yaml and docs/planning.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from minillm import planning
from minillm.common import cli
from minillm.common.checks import collect, value_problems
from minillm.common.console import say, show_facts
from minillm.common.errors import ConfigError, check
from minillm.common.lazy import lazy
from minillm.common.numbers import count, duration, millions
from minillm.common.stored import resolved
from minillm.models import Architecture, split_problems
from minillm.parallel import Parallel
from minillm.planning import Case, Memory, Rates, Sizes, Speed
from minillm.train.preview.memory import case_of, choose
from minillm.train.settings import Settings, check_config, check_values

torch = lazy("torch")
_KINDS = {
    "devices": int, "device_memory": float, "reserve": float, "prompt_tokens": int | None, "answer_tokens": int | None,
    "train_prompts": int, "json": str | None,
}  # fmt: skip
_POSITIVE = ("devices", "device_memory", "prompt_tokens", "answer_tokens", "train_prompts")
_ONE_DEVICE = {"devices": 1, "num_nodes": 1, "cpu_offload": False}
_SHOWN = 0.005  # GB


@dataclass(frozen=True)
class Question:
    """A checked config. `make` gives the case of settings without `auto` on a layout; `layouts` are tried in order."""

    settings: Settings
    make: Callable[..., Case]
    layouts: tuple[Parallel, ...]
    rates: Rates
    keys: dict


@dataclass(frozen=True)
class Plan:
    """GB are 1e9 bytes. `microbatch_rows` (of `case.columns` tokens) and `rollout_rows`: of one device, the most that
    fit beside the rest; 0 where not even one does."""

    case: Case
    memory: Memory
    budget: float
    fits: bool
    microbatch_rows: int
    rollout_rows: int
    speed: Speed
    assumed: dict[str, float]


def check_plan(cfg: DictConfig) -> Question:
    """Raises ConfigError with every problem: of the planner's keys and of the training config; or, where no layout of
    the devices can be used, why."""
    # Where the run would be does not matter, nor whether it has been there.
    plain = resolved(OmegaConf.merge(cfg, {"run": {"dir": "runs/.plan"}}))
    keys, rates, asked = {name: plain.pop(name) for name in _KINDS}, plain.pop("rates"), plain["strategy"]
    problems = value_problems(keys, _KINDS, _POSITIVE)
    if not problems and not 0 <= keys["reserve"] < keys["device_memory"]:
        problems.append(f"reserve={keys['reserve']}: wanted 0 to less than device_memory={keys['device_memory']}")
    rates = collect(problems, "rates", rates)
    problems += [
        f"strategy.{key}={asked[key]}: not planned; wanted {value}, and the devices of all nodes as devices="
        for key, value in _ONE_DEVICE.items()
        if asked.get(key, value) not in (value, "auto")
    ]
    plain["strategy"] = asked | _ONE_DEVICE | ({"tensor_parallel_size": 1} if asked.get("kind") == "fsdp_tp" else {})
    try:
        check_values(plain, elsewhere=True)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    settings = check_config(plain, elsewhere=True)
    found, problems = planning.configs(settings.model)
    if problems:
        raise ConfigError(problems)
    kind, devices, layouts = settings.strategy.kind, keys["devices"], []
    tried = [(kind, asked.get("tensor_parallel_size", 1))]
    if kind == "single":
        splits = [2**k for k in range(1, 1 + int(math.log2(rates.devices_per_node)))]
        tried = [("ddp" if devices > 1 else "single", 1), ("fsdp", 1), *(("fsdp_tp", each) for each in splits)]
    shapes = {side: Architecture.of(config) for side, config in found.items()}
    for name, size in tried:
        strategy = plain["strategy"] | {"kind": name, "devices": devices, "tensor_parallel_size": size}
        try:
            layout = check_values(plain | {"strategy": strategy}, elsewhere=True)["strategy"]
            split = [f"model.{side}: {each}" for side, shape in shapes.items() for each in split_problems(shape, size)]
            check(*((size == 1, each) for each in split))
            layouts.append(layout)
        except ConfigError as error:
            problems += [f"strategy={name}, devices={devices}: {each}" for each in error.problems]
    if not layouts:
        raise ConfigError(dict.fromkeys(problems))
    return Question(settings, _maker(settings, found), tuple(layouts), rates, keys)


def _maker(settings: Settings, found: dict) -> Callable[..., Case]:
    model, data = settings.model, settings.data
    auto = {"student": "float32", "teacher": "float32" if model.own_teacher == "ema" else "bfloat16"}  # on GPUs
    auto["reference"] = auto["teacher"]
    types = {side: getattr(torch, auto[side] if model.dtype == "auto" else model.dtype) for side in found}
    sizes = {"teacher": None} | {
        side: Sizes.planned(config, types[side], model.attention, trained=side == "student", lora=model.lora)
        for side, config in found.items()
    }
    if teacher := sizes["teacher"]:
        served, bits = getattr(model.teacher, "url", None), getattr(model.teacher, "bits", None)
        sizes["teacher"] = teacher.served if served else teacher.quantised(bits) if bits else teacher
    answer = (
        settings.sampler.max_new_tokens if settings.regime.rollouts else max(1, data.longest - data.max_prompt_tokens)
    )
    half = settings.plain["trainer"]["precision"] != "32-true"  # auto is bf16-mixed there
    return partial(case_of, **sizes, prompt=data.max_prompt_tokens, answer=answer, half=half)


def make_plan(question: Question) -> Plan:
    """With the first layout that fits or, where none does, with the one that needs least."""
    settings, keys, rates, regime = question.settings, question.keys, question.rates, question.settings.regime
    budget = keys["device_memory"] - keys["reserve"]
    cases = [
        choose(settings, partial(question.make, layout=each), keys["device_memory"])[1] for each in question.layouts
    ]
    needs = [(case, planning.measure(case)) for case in cases]
    fitting = (each for each in needs if each[1].total <= budget)
    case, memory = next(fitting, min(needs, key=lambda each: each[1].total))
    speed = planning.speed(
        case,
        rates,
        steps=regime.steps(keys["train_prompts"]),
        steps_per_round=regime.steps_per_rollout,
        prompt=keys["prompt_tokens"] or case.prompt,
        answer=keys["answer_tokens"] or case.answer,
    )
    data = {"train_prompts": keys["train_prompts"]} if getattr(regime, "epochs", None) else {}
    rows = planning.largest_microbatch(case, budget), planning.largest_rollout(case, budget)
    return Plan(case, memory, budget, memory.total <= budget, *rows, speed, data | asdict(rates))


def show(plan: Plan) -> None:
    case, speed, phases = plan.case, plan.speed, {name: phase for name, phase in vars(plan.memory).items() if phase}
    rows = [
        ("parameters", [millions(each.parameters) for each in case.models]),
        ("trained", [millions(each.trained) for each in case.models]),
    ]
    layout = f"{case.layout}; {case.local(case.minibatch)} answers of a mini-batch for each group of devices"
    show_facts("Models", ("student", "teacher")[: len(case.models)], rows, [("layout", layout)])
    purposes = dict.fromkeys(each for phase in phases.values() for each, size in phase.items() if size >= _SHOWN)
    table = [(each, [count(phase.get(each, 0), 3) for phase in phases.values()]) for each in purposes]
    table.append(("all", [count(sum(phase.values()), 3) for phase in phases.values()]))
    state = "fits" if plan.fits else "DOES NOT FIT"
    budget = f"{state}: {count(plan.memory.total, 3)} of {plan.budget:g} GB (device_memory - reserve)"
    show_facts("Peak memory of a device, GB", tuple(phases), table, [("", budget)])
    show_facts("What would fit", (), (), _fitting(plan))
    parts = ", ".join(f"{name} {duration(value)}" for name, value in speed.seconds.items())
    rounds = "rollouts" if case.rollouts else "optimizer steps"
    others = "the supervised start, validation and checkpoints"
    time = [
        ("a round", f"{duration(speed.round)}: {parts}"),
        ("tokens", f"{speed.rate:,.0f} of answers a second"),
        ("the run", f"{duration(speed.days * 86400)}: {speed.rounds:,} {rounds}, without {others}"),
    ]
    show_facts("Time", (), (), time)
    show_facts("Assumed (rates.*)", (), (), [(name, f"{value:,g}") for name, value in plan.assumed.items()])


def _fitting(plan: Plan) -> list[tuple[str, str]]:
    """The largest micro-batch and rollout batch, and whether they are all of a device's rows."""
    case, answers, rows = plan.case, plan.microbatch_rows, plan.rollout_rows
    if not answers or (case.rollouts and not rows):
        advice = "model.gradient_checkpointing=true, lora=default, more devices or another layout"
        return [("nothing", f"not even one row of {case.columns + 1} tokens: see {advice}")]
    every = " (all)" * (answers == case.local(case.minibatch))
    size = f"regime.microbatch_tokens={answers * case.columns}"
    fits = [("micro-batch", f"{answers} x {case.columns}{every}: {size}; planned with {case.rows} rows")]
    if case.rollouts:
        every = " (all)" * (rows == case.local(case.rollouts))
        fits.append(("rollout", f"sampler.batch_size={rows}{every}; planned with {case.decoding_rows}"))
    return fits


@hydra.main(config_path="../conf", config_name="plan", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    question = check_plan(cfg)
    cli.prepare()
    plan, file = make_plan(question), question.keys["json"]
    show(plan)
    if file:
        Path(file).write_text(json.dumps(asdict(plan), indent=2) + "\n")
        say(f"Wrote {file}")


if __name__ == "__main__":
    cli.run(main, "plan")
