"""What evaluate.py does: check, start the processes, do what is missing, put it together, show it."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta

from omegaconf import DictConfig, OmegaConf

from minillm import parallel
from minillm.common import cli
from minillm.common.console import say, tracked
from minillm.common.errors import Interrupted, MinillmError
from minillm.common.files import write_whole
from minillm.common.lazy import lazy
from minillm.common.machine import on_cuda
from minillm.common.numbers import duration
from minillm.common.overrides import override
from minillm.common.ranks import in_a_worker, rank, started_processes
from minillm.common.read import SETTINGS
from minillm.evaluation.suite.screen import show_results
from minillm.evaluation.suite.settings import Suite, check_suite
from minillm.evaluation.suite.units import Store, Unit, units_of

# Wrong values need not wait for torch.
results, work = (lazy(f"minillm.evaluation.suite.{name}") for name in ("results", "work"))
_PATIENCE = timedelta(days=30)  # shares are by number, and so of unequal length
_FILES = ("metrics.json", "answers.jsonl", "tokens.jsonl")


def evaluate(cfg: DictConfig) -> None:
    """Measure what `cfg` describes, here or in `devices` processes.

    Raises:
        MinillmError: see `check_suite` and `run_suite`.
    """
    logging.getLogger("minillm.data.prompts").setLevel(logging.WARNING)  # what it counts is said where it matters
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if in_a_worker():
        parallel.join(cuda=on_cuda(plain["device"]), patience=_PATIENCE)
        plain = parallel.agree(plain)  # the run's name may hold the time
    suite = check_suite(plain)
    if suite.devices > 1 and not in_a_worker():
        try:
            parallel.launch(suite.devices, [override("run.name", suite.run_name)], cuda=on_cuda(suite.device.type))
        except Interrupted as error:
            raise Interrupted(error.signal, "the same command with the same run.name goes on") from error
        return
    cli.prepare()
    run_suite(suite)
    parallel.leave()


def run_suite(suite: Suite) -> dict:
    """Do the units that are missing, this process its share of them; what metrics.json holds, nothing on ranks other
    than the first.

    Raises:
        ModelError, ConfigError, DataError, JudgeError: what is finished is kept.
    """
    metrics, answers, tokens = (suite.run_dir / name for name in _FILES)
    store = Store(suite)
    if finished := parallel.on_first(lambda: _is_finished(suite) or _begin(suite)):
        say(f"{metrics} is already there.")
    else:
        do_units(store)
    if rank() > 0:
        return {}
    if not finished:
        found = results.results_of(store)
        write_whole(answers, results.answer_lines(store))
        write_whole(tokens, results.token_lines(store))
        # Only now: the file says that the measurement is complete.
        write_whole(metrics, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    found = json.loads(metrics.read_text(encoding="utf-8"))
    show_results(found)
    say(f"{suite.run_dir}: {', '.join(_FILES)}")
    return found


def _is_finished(suite: Suite) -> bool:
    """Whether all is there, measured with these very settings; a damaged metrics.json is made again."""
    if not all((suite.run_dir / name).exists() for name in _FILES):
        return False
    try:
        return json.loads((suite.run_dir / _FILES[0]).read_text(encoding="utf-8"))["settings"] == suite.settings
    except (ValueError, TypeError, KeyError):
        return False


def _begin(suite: Suite) -> None:
    """Write the settings, say what is left out."""
    say(f"Into {suite.run_dir}; if it is stopped, the same command with run.name={suite.run_name} goes on.")
    for name, task in suite.measures.calibration.items():
        if task.file is None:
            say(f"{name}: no file (suite.calibration.{name}.file); its calibration is left out.")
    if suite.teacher is None:
        say("No teacher: KL, exposure bias and the figures of tokens are left out.")
    for note in suite.notes:
        say(f"NOTE: {note}.")
    suite.run_dir.mkdir(parents=True, exist_ok=True)
    (suite.run_dir / _FILES[0]).unlink(missing_ok=True)  # answers of these settings come before their figures
    write_whole(suite.run_dir / SETTINGS, json.dumps(suite.settings, indent=2) + "\n")


def do_units(store: Store) -> None:
    """This process's share of what is missing; behind the barrier all units are there."""
    suite, teacher = store.suite, None
    (suite.run_dir / "units").mkdir(parents=True, exist_ok=True)
    shares = {source: units_of(suite, source)[rank() :: started_processes()] for source in suite.models}
    missing = {source: [unit for unit in units if not store.file(unit).exists()] for source, units in shares.items()}
    total = sum(map(len, shares.values()))
    done = total - sum(map(len, missing.values()))
    if done:
        say(f"{done} of {total} units of work are already there.")
    for source, units in missing.items():
        if units and teacher is None and suite.teacher is not None:
            teacher = work.load(suite, suite.teacher)
        if units:
            _measure(store, source, teacher, units, done, total)
        done += len(units)
    parallel.barrier()


def _measure(store: Store, source: str, teacher: work.Loaded | None, units: list[Unit], done: int, total: int) -> None:
    """With one model loaded beside the teacher; it is gone at the end."""
    loaded = teacher if source == store.suite.teacher else work.load(store.suite, source)
    bench = work.Bench(store, source, work.pair_for(store.suite, source, loaded, teacher))
    for number, unit in enumerate(tracked(units, f"Measuring {source}"), start=done + 1):
        began, title = time.monotonic(), f"[{number}/{total}] {unit}"
        try:
            store.write(unit, bench.make(unit))
        except MinillmError:
            say(f"{unit}: failed.")  # alone, the error knows a tensor or a row
            raise
        say(f"{title}: {duration(time.monotonic() - began)}")
