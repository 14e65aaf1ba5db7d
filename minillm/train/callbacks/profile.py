"""One rollout with its optimizer steps under the profiler: a trace, and a picture of where the time went."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from torch.profiler import ProfilerActivity, profile

from minillm.common.console import say

_PHASES = {"rollout": "#4477aa", "score": "#ccbb44", "update": "#ee6677"}


class Profile(L.Callback):
    """Added by `profile=true`. Takes the second rollout of MiniLLM, or the only one; writes profile/trace.json.gz (for
    ui.perfetto.dev or chrome://tracing), profile/time.png and profile/operations.txt into the run directory."""

    def __init__(self, run_dir: Path):
        self.folder = Path(run_dir) / "profile"
        self._profile: profile | None = None
        self._done = False

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        only_one = module.regime.max_steps <= module.regime.steps_per_rollout
        if self._done or module.in_start or (module.step == 0 and not only_one):
            return
        gpu = [ProfilerActivity.CUDA] if module.device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._profile is None:
            return
        self._profile.__exit__(None, None, None)
        events = self._profile.key_averages()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / "trace.json.gz"))
        sort = "self_cuda_time_total" if module.device.type == "cuda" else "self_cpu_time_total"
        (self.folder / "operations.txt").write_text(events.table(sort_by=sort, row_limit=40) + "\n")
        ranges = {e.key: max(e.cpu_time_total, e.device_time_total) / 1e6 for e in events if e.is_user_annotation}
        draw_times(parts_of(module.phases.seconds, ranges), self.folder / "time.png", f"Rollout {module.round}")
        self._profile, self._done = None, True
        say(f"Wrote {self.folder}: trace.json.gz, time.png, operations.txt")


def parts_of(phases: dict[str, float], ranges: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of the named ranges of each phase ("update: backward"), and what is left of it as `other`."""
    out: dict[str, dict[str, float]] = {}
    for phase, whole in phases.items():
        named = {key.removeprefix(f"{phase}: "): value for key, value in ranges.items() if key.startswith(f"{phase}: ")}
        out[phase] = named | {"other" if named else "all": max(0.0, whole - sum(named.values()))}
    return out


def draw_times(parts: dict[str, dict[str, float]], file: Path, title: str) -> None:
    """One bar a part, the longest of a phase first, with seconds and share of the whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = sum(sum(named.values()) for named in parts.values())
    bars = [
        (f"{phase}: {name}", value, _PHASES[phase])
        for phase, named in parts.items()
        for name, value in sorted(named.items(), key=lambda item: -item[1])
    ]
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names, values, colours = zip(*bars, strict=True)
    axes.barh(names, values, color=colours)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.2f} s, {100 * value / whole:.0f}%", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(values))
    axes.set_xlabel("seconds")
    shares = ", ".join(f"{phase} {100 * sum(named.values()) / whole:.0f}%" for phase, named in parts.items())
    axes.set_title(f"{title}: {whole:.1f} s ({shares})", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
