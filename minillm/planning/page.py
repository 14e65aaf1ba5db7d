"""What a plan says, for a person: a page, a line of a table, plain numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from minillm.common.console import show_facts
from minillm.common.numbers import duration, millions
from minillm.planning.case import Case
from minillm.planning.memory import Memory
from minillm.planning.networks import Sizes
from minillm.planning.speed import Rates, Speed

HEADINGS = ("run", "devices", "strategy", "GB rollout", "GB update", "largest micro-batch", "largest rollout batch",
            "busy in updates", "tokens/s", "time")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """GB are 1e9 bytes. `rows`: by key, the rows that all groups of devices share. `microbatch_rows` (of
    `case.columns` tokens) and `rollout_rows`: of one device, the most that fit beside the rest; 0 where not even one
    does. `train_prompts`: those of an epoch, None where the number of steps is given."""

    name: str
    case: Case
    rows: dict[str, int]
    sizes: dict[str, Sizes]
    memory: Memory
    device_memory: float
    reserve: float
    microbatch_rows: int
    rollout_rows: int
    speed: Speed
    rates: Rates
    sources: dict[str, str]
    scaled: int = 1
    train_prompts: int | None = None

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.device_memory - self.reserve

    @property
    def refused(self) -> list[str]:
        """Keys with fewer rows than there are groups of devices to share them: train.py refuses such a run."""
        return [name for name, size in self.rows.items() if size < self.case.layout.data_parallel_size]

    @property
    def most_devices(self) -> int:
        """The largest number of devices, in groups of this size, that shares all rows evenly."""
        return math.gcd(*self.rows.values()) * self.case.layout.tensor_parallel_size

    @property
    def busy(self) -> int:
        """Devices that have an answer of each mini-batch."""
        return min(self.case.layout.data_parallel_size, self.case.minibatch) * self.case.layout.tensor_parallel_size


def show(plan: Plan) -> None:
    sizes = plan.sizes
    rows = [
        ("source", [plan.sources[name] for name in sizes]),
        ("parameters", [millions(each.parameters) for each in sizes.values()]),
        ("trained", [millions(each.trained) for each in sizes.values()]),
    ]
    show_facts("Models", tuple(sizes), rows, [("layout", _layout(plan))])
    phases = {"rollout": plan.memory.rollout, "update": plan.memory.update}
    phases = {name: phase for name, phase in phases.items() if phase}
    purposes = sorted({each for phase in phases.values() for each in phase if phase[each] >= _SHOWN}, key=_order)
    table = [(each, [_gb(phase.get(each, 0)) for phase in phases.values()]) for each in purposes]
    table.append(("all", [_gb(sum(phase.values())) for phase in phases.values()]))
    state = "fits" if plan.fits else "DOES NOT FIT"
    budget = f"{state}: {_gb(plan.memory.total)} of {plan.device_memory - plan.reserve:g} GB (device_memory - reserve)"
    show_facts("Memory of a device, GB at the peak", tuple(phases), table, [("", budget)])
    show_facts("What would fit", (), (), _fits(plan))
    show_facts("Time", (), (), _time(plan))
    rates = [(name, f"{value:g}") for name, value in asdict(plan.rates).items()]
    data = [] if plan.train_prompts is None else [("train_prompts", f"{plan.train_prompts:,} in an epoch")]
    show_facts("Assumed (rates.*)", (), (), [*data, *rates])


def line(plan: Plan) -> str:
    """A row under HEADINGS, in Markdown."""
    case, layout = plan.case, plan.case.layout
    strategy = layout.kind + (f" x{layout.tensor_parallel_size}" if layout.tensor_parallel_size > 1 else "")
    wrong = [] if plan.fits else ["does not fit"]
    wrong += [f"train.py refuses, at most {plan.most_devices:,}"] if plan.refused else []
    texts = [
        plan.name,
        f"{layout.world_size:,}",
        f"**{strategy}: {'; '.join(wrong)}**" if wrong else strategy,
        _gb(sum(plan.memory.rollout.values())),
        _gb(sum(plan.memory.update.values())),
        f"{plan.microbatch_rows} x {case.columns}" + (" (all)" if plan.microbatch_rows == case.local_minibatch else ""),
        f"{plan.rollout_rows}" + (" (all)" if plan.rollout_rows == case.local_rollouts else ""),
        f"{plan.busy:,}",
        f"{plan.speed.rate:,.0f}",
        duration(plan.speed.days * 86400),
    ]
    return f"| {' | '.join(texts)} |"


def figures(plan: Plan) -> dict:
    """All figures of the plan as plain values, for a JSON file."""
    case, layout = plan.case, plan.case.layout
    return {
        "run": plan.name,
        "layout": {
            "strategy": layout.kind,
            "devices": layout.world_size,
            "tensor": layout.tensor_parallel_size,
            "data": layout.data_parallel_size,
            "busy": plan.busy,
            "refused": plan.refused,
            "most_devices": plan.most_devices,
            "scaled": plan.scaled,
        },
        "models": {name: asdict(each) | {"source": plan.sources[name]} for name, each in plan.sizes.items()},
        "memory_gb": asdict(plan.memory) | {"total": plan.memory.total},
        "device_memory_gb": plan.device_memory,
        "reserve_gb": plan.reserve,
        "fits": plan.fits,
        "largest": {
            "microbatch_rows": plan.microbatch_rows,
            "microbatch_tokens": plan.microbatch_rows * case.columns,
            "rollout_rows": plan.rollout_rows,
        },
        "seconds_a_round": plan.speed.seconds,
        "decoded_tokens_a_second": plan.speed.decoding_rate,
        "tokens_a_second": plan.speed.rate,
        "rounds": plan.speed.rounds,
        "days": plan.speed.days,
        "train_prompts": plan.train_prompts,
        "rates": asdict(plan.rates),
    }


def _layout(plan: Plan) -> str:
    case, layout = plan.case, plan.case.layout
    text = f"{layout.kind} on {layout.world_size:,} devices"
    if layout.tensor_parallel_size > 1:
        text += f", {layout.data_parallel_size:,} groups of {layout.tensor_parallel_size}"
    text += f"; {case.minibatch:,} answers a mini-batch: {case.local_minibatch} a group"
    if plan.scaled > 1:
        text += f"; mini-batch, rollouts and corpus {plan.scaled} times those of the config (scale_batch=true)"
    if plan.refused:
        few = ", ".join(f"{name}={plan.rows[name]}" for name in plan.refused)
        scale = "" if plan.scaled > 1 else ", or scale_batch=true (another run)"
        text += (
            f"; train.py REFUSES this: {few}, fewer rows than the {layout.data_parallel_size:,} groups of devices; "
            f"at most {plan.most_devices:,} devices, more rows{scale}"
        )
    return text


def _fits(plan: Plan) -> list[tuple[str, str]]:
    case = plan.case
    if not plan.microbatch_rows or (case.rollouts and not plan.rollout_rows):
        advice = "model.gradient_checkpointing=true, lora=default, more devices or another layout"
        return [("nothing", f"not even one row of {case.columns + 1} tokens: see {advice}")]
    tokens = plan.microbatch_rows * case.columns
    every = " (all of a device's mini-batch)" if plan.microbatch_rows == case.local_minibatch else ""
    lines = [("micro-batch", f"{plan.microbatch_rows} rows of {case.columns} tokens{every}: "
              f"regime.microbatch_tokens={tokens}; planned with {case.rows} rows")]  # fmt: skip
    if case.rollouts:
        every = " (all of a device's rollout)" if plan.rollout_rows == case.local_rollouts else ""
        lines.append(("rollout", f"sampler.batch_size={plan.rollout_rows}{every}; planned with {case.decoding_rows}"))
    return lines


def _time(plan: Plan) -> list[tuple[str, str]]:
    speed = plan.speed
    parts = ", ".join(f"{name} {duration(value)}" for name, value in speed.seconds.items())
    lines = [("a round", f"{duration(speed.round)}: {parts}")]
    if speed.decoding_rate:
        lines.append(("tokens", f"{speed.decoding_rate:,.0f} a second in rollouts, {speed.rate:,.0f} over all"))
    else:
        lines.append(("tokens", f"{speed.rate:,.0f} of answers a second"))
    lines.append(
        ("the run", f"{duration(speed.days * 86400)}: {speed.rounds:,} rounds, without validation and checkpoints")
    )
    return lines


_SHOWN = 0.005  # GB
_PURPOSES = ("student", "gradients", "optimizer", "activations", "half-type weights", "gathered", "backward", "teacher",
             "teacher's states", "teacher's pass", "caches", "loss", "other")  # fmt: skip


def _order(purpose: str) -> int:
    return _PURPOSES.index(purpose)


def _gb(size: float) -> str:
    if size < _SHOWN:
        return f"<{_SHOWN}" if size else "-"
    return f"{size:.1f}" if size >= 10 else f"{size:.2f}"
