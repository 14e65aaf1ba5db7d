"""python -m minillm.plan experiment=... devices=64 device_memory=80: what a run would need. See conf/plan.yaml.

No GPU, no hub and no weights: shapes are those of the models' yaml.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from transformers import PretrainedConfig

from minillm import planning
from minillm.common import cli
from minillm.common.checks import collect, describe, matches
from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.models import Architecture, split_problems
from minillm.parallel import KINDS, Parallel
from minillm.planning import Case, Rates, page
from minillm.train.preview.sizes import CPU, case_from, measure_chosen
from minillm.train.regime import OnPolicy
from minillm.train.settings import Settings, check_config

_KINDS = {
    "devices": int, "device_memory": float, "reserve": float, "layout": str, "tensor_devices": int | None,
    "scale_batch": bool, "prompt_tokens": int | None, "answer_tokens": int | None, "train_prompts": int,
    "json": str | None, "table": bool, "pairs": list[str], "table_devices": list[int],
}  # fmt: skip
_ELSEWHERE = "the planner counts the devices of all nodes; wanted their number as devices="
# Keys of strategy= that say nothing here with these values, and why others are refused.
_UNPLANNED = {
    "devices": (("auto", 1), _ELSEWHERE),
    "num_nodes": ((1,), _ELSEWHERE),
    "cpu_offload": ((False,), "parts of weights that wait on the CPU are not planned; wanted false"),
}
_POSITIVE = ("devices", "device_memory", "tensor_devices", "prompt_tokens", "answer_tokens", "train_prompts")


@dataclass(frozen=True)
class Question:
    """A checked config: the training settings, the case on one device, the layouts to try in order; `rows` that the
    devices share, by key; `scaled`: how many times larger than those of the config scale_batch has made them."""

    settings: Settings
    case: Case
    rows: dict[str, int]
    layouts: tuple[Parallel, ...]
    rates: Rates
    keys: dict
    name: str
    scaled: int


def check_plan(cfg: DictConfig) -> Question:
    """Raises ConfigError with every problem: of the planner's keys, of the training config, of the two together."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    keys = {name: plain.pop(name) for name in _KINDS}
    rates_node = plain.pop("rates")
    plain["run"]["dir"] = "runs/.plan"  # where the run would be does not matter, nor whether it has been there
    problems = _follow(plain, keys)
    problems += [
        f"{name}={keys[name]!r}: wanted {describe(kind)}"
        for name, kind in _KINDS.items()
        if not matches(keys[name], kind)
    ]
    if not problems:
        problems += [
            f"{name}={keys[name]}: wanted a positive number"
            for name in _POSITIVE
            if keys[name] is not None and keys[name] <= 0
        ]
        if not 0 <= keys["reserve"] < keys["device_memory"]:
            problems.append(f"reserve={keys['reserve']}: wanted 0 to less than device_memory={keys['device_memory']}")
        if keys["layout"] not in ("auto", *KINDS):
            problems.append(f"layout={keys['layout']}: wanted auto or one of {', '.join(KINDS)}")
    rates = collect(problems, "rates", rates_node)
    settings = configs = None
    try:
        settings = check_config(OmegaConf.create(plain), elsewhere=True)
        configs, missing = planning.configs(settings.model)
        problems += missing
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    case = _case(settings, configs, plain["trainer"]["precision"])
    layouts = _layouts(keys, rates, case, problems, shardable=_shardable(plain))
    case, scaled = _scaled(case, keys, layouts)
    rows = _shared_rows(settings, case)
    for layout in layouts:
        problems += _uneven(rows, layout)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Question(settings, case, rows, tuple(layouts), rates, keys, settings.plain["run"]["name"], scaled)


def _follow(plain: dict, keys: dict) -> list[str]:
    """Let `layout=auto` follow strategy=, and leave the layout in the training config on one device: how many there
    are is the planner's. Returns what of strategy= cannot be planned."""
    node = plain["strategy"]
    if not isinstance(node, dict):
        return []
    problems = [
        f"strategy.{key}={node[key]}: {why}"
        for key, (silent, why) in _UNPLANNED.items()
        if key in node and node[key] not in silent
    ]
    kind = node.get("kind")
    if keys["layout"] == "auto" and kind in KINDS[1:]:
        keys["layout"] = kind
        if kind == "fsdp_tp" and keys["tensor_devices"] is None:
            keys["tensor_devices"] = node.get("tensor_parallel_size")
    elif keys["layout"] in KINDS:
        kind = keys["layout"]
    alone = {"kind": kind, "devices": 1, "num_nodes": 1, "cpu_offload": False}
    unsplit = {} if kind == node.get("kind") != "fsdp_tp" else {"tensor_parallel_size": 1}
    plain["strategy"] = node | alone | unsplit
    return problems


def _shardable(plain: dict) -> bool:
    """Whether train.py takes these settings with weights in parts."""
    try:
        check_config(OmegaConf.create(plain | {"strategy": plain["strategy"] | {"kind": "fsdp"}}))
    except ConfigError:
        return False
    return True


def _case(settings: Settings, configs: dict[str, PretrainedConfig], precision: str) -> Case:
    model, data = settings.model, settings.data
    weights = "bfloat16" if model.dtype == "auto" else model.dtype  # on the GPUs this is for
    dtypes = {"student": "float32" if model.dtype == "auto" else weights, "teacher": weights}
    networks = {name: (config, getattr(torch, dtypes[name])) for name, config in configs.items()}
    on_policy = isinstance(settings.regime, OnPolicy)
    return case_from(
        CPU.fill(settings),
        networks["student"],
        networks.get("teacher"),
        prompt=data.max_prompt_tokens,
        answer=settings.sampler.max_new_tokens if on_policy else max(1, data.longest - data.max_prompt_tokens),
        offload=bool(model.teacher and model.teacher.offload),
        half=precision != "32-true",  # auto is bf16-mixed there
    )


def _layouts(keys: dict, rates: Rates, case: Case, problems: list[str], *, shardable: bool) -> list[Parallel]:
    """The layouts to try, in order. Problems of a layout that was asked for by name are added to `problems`."""
    devices, tensor, asked = keys["devices"], keys["tensor_devices"], keys["layout"]
    whole = "single" if devices == 1 else "ddp"
    names = [whole, *(["fsdp", "fsdp_tp"] if shardable else [])] if asked == "auto" else [asked]
    sizes = [tensor] if tensor else [2**k for k in range(1, 1 + int(math.log2(rates.devices_per_node)))]
    found = []
    for name in names:
        for size in sizes if name == "fsdp_tp" else [1 if asked == "auto" else tensor or 1]:
            wrong = _unsplit(case, size) if name == "fsdp_tp" else []
            try:
                layout = Parallel(name, devices, tensor_parallel_size=size)
            except ConfigError as error:
                given = f"layout={name}, devices={devices}" + (f", tensor_devices={size}" if size > 1 else "")
                wrong += [f"{given}: {problem}" for problem in error.problems]
            if not wrong:
                found.append(layout)
            elif asked != "auto" and (name != "fsdp_tp" or size == sizes[0]):
                problems += wrong
    return found


def _unsplit(case: Case, size: int) -> list[str]:
    sides = {"student": case.student, "teacher": case.teacher}
    shapes = {side: Architecture.of(blueprint.config) for side, blueprint in sides.items() if blueprint is not None}
    return [
        f"layout=fsdp_tp, tensor_devices={size}, model.{side}: {problem}"
        for side, shape in shapes.items()
        for problem in split_problems(shape, size)
    ]


def _scaled(case: Case, keys: dict, layouts: list[Parallel]) -> tuple[Case, int]:
    """With scale_batch=true and more groups of devices than answers in a mini-batch, the case with one answer for each
    group, and how many times larger it is; else the same case and 1."""
    groups = max((each.data_parallel_size for each in layouts), default=1)
    if not keys["scale_batch"] or groups <= case.minibatch:
        return case, 1
    times = math.ceil(groups / case.minibatch)
    corpus = replace(case.regulariser, batch_size=case.regulariser.batch_size * times)
    return replace(case, minibatch=case.minibatch * times, rollouts=case.rollouts * times, regulariser=corpus), times


def _shared_rows(settings: Settings, case: Case) -> dict[str, int]:
    """What groups of devices share out, by key; see `_device_problems` in settings/rules.py."""
    rows = {"regime.minibatch_size": case.minibatch}
    if case.rollouts:
        rows["regime.rollouts"] = case.rollouts
        if settings.start.steps:
            rows["start.minibatch_size"] = settings.start.minibatch_size
    return rows


def _uneven(rows: dict[str, int], layout: Parallel) -> list[str]:
    """Rows that cannot be shared out evenly. Where they are fewer than the groups there is a plan all the same, and its
    page says that train.py refuses it."""
    data = layout.data_parallel_size
    return [
        f"devices={layout.world_size}: {data} groups do not divide {name}={size}; use a divisor, or change {name}"
        for name, size in rows.items()
        if size > data and size % data
    ]


def make_plan(question: Question) -> page.Plan:
    """Plan with the first layout that fits or, where none does, with the one that needs least. It takes seconds to a
    minute."""
    whole, needed = question.keys["device_memory"], {}
    budget = whole - question.keys["reserve"]
    for layout in question.layouts:
        with planning.fake_device(question.case.with_layout(layout)) as device:
            memory = measure_chosen(question.settings, device, whole)
            if memory.total <= budget:
                return _plan(question, device, memory, budget)
            needed[layout] = memory.total
    with planning.fake_device(question.case.with_layout(min(needed, key=needed.get))) as device:
        return _plan(question, device, measure_chosen(question.settings, device, whole), budget)


def _plan(question: Question, device: planning.Device, memory: planning.Memory, budget: float) -> page.Plan:
    case, keys, settings = device.case, question.keys, question.settings
    regime, model = settings.regime, settings.model
    on_policy = isinstance(regime, OnPolicy)
    speed = planning.speed(
        case,
        device.updates.sizes,
        question.rates,
        steps=regime.max_steps if on_policy else regime.steps(keys["train_prompts"]),
        steps_per_round=regime.steps_per_rollout if on_policy else 1,
        prompt=keys["prompt_tokens"] or case.prompt,
        answer=keys["answer_tokens"] or case.answer,
        launches=device.rollouts.calls if device.rollouts else 0,
    )
    return page.Plan(
        name=question.name,
        case=case,
        rows=question.rows,
        sizes=device.updates.sizes,
        memory=memory,
        device_memory=keys["device_memory"],
        reserve=keys["reserve"],
        microbatch_rows=device.largest_microbatch(budget),
        rollout_rows=device.largest_rollout(budget) if device.rollouts else 0,
        speed=speed,
        rates=question.rates,
        sources={name: _source(getattr(model, name)) for name in device.updates.sizes},
        scaled=question.scaled,
        train_prompts=None if on_policy or regime.epochs is None else keys["train_prompts"],
    )


def _source(spec: object) -> str:
    bits = getattr(spec, "bits", None)
    return getattr(spec, "source", "-") + (f" (counted without its {bits} bits)" if bits else "")


def print_table(keys: DictConfig, overrides: list[str]) -> None:
    """One line for each pair on each number of devices, of recipe=minillm where `overrides`, which go to all of them,
    name no other."""
    rest = [each for each in overrides if each.split("=")[0] not in ("table", "pair", "devices")]
    rest = rest if any(each.startswith("recipe=") for each in rest) else ["recipe=minillm", *rest]
    print(f"| {' | '.join(page.HEADINGS)} |\n|{' --- |' * len(page.HEADINGS)}", flush=True)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        for pair in keys.pairs:
            for devices in keys.table_devices:
                cfg = compose("plan", [*rest, f"pair={pair}", f"devices={devices}"])
                print(page.line(make_plan(check_plan(cfg))), flush=True)


@hydra.main(config_path="../conf", config_name="plan", version_base="1.3")
@cli.job
def main(cfg: DictConfig) -> None:
    if cfg.table is True:
        print_table(cfg, list(HydraConfig.get().overrides.task))
        return
    plan = make_plan(check_plan(cfg))
    page.show(plan)
    if cfg.json:
        Path(cfg.json).write_text(json.dumps(page.figures(plan), indent=2) + "\n")
        say(f"Wrote {cfg.json}")


if __name__ == "__main__":
    cli.run(main, "plan")
