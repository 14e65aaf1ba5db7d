"""The command: check, start the processes, do what is missing, put it together, show it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from minillm.common.console import say
from minillm.common.errors import ConfigError, DataError, Interrupted, MinillmError
from minillm.common.files import write_whole
from minillm.common.machine import on_cuda
from minillm.common.ranks import in_a_worker, rank, started_processes
from minillm.common.stored import composed_of
from minillm.evaluation.suite.grown import told
from minillm.evaluation.suite.results import answer_lines, results_of, token_lines
from minillm.evaluation.suite.screen import Progress, show_results
from minillm.evaluation.suite.settings import SETTINGS, Suite, check_suite, read_settings
from minillm.evaluation.suite.units import Store, Unit, judge_units, units_of
from minillm.evaluation.suite.work import Bench, Loaded, judged, load, pair_for
from minillm.parallel import agree, barrier, join, launch, leave, on_first

_PATIENCE = timedelta(days=30)  # shares are by number, and so of unequal length


def evaluate(cfg: DictConfig) -> None:
    """Measure what `cfg` describes, here or in `devices` processes.

    Raises:
        MinillmError: see `check_suite` and `run_suite`.
    """
    logging.getLogger("minillm.data.prompts").setLevel(logging.WARNING)  # what it counts is said where it matters
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    cuda = on_cuda(plain["device"])
    if in_a_worker():
        join(cuda=cuda, patience=_PATIENCE)
        plain = agree(plain)  # the run's name may hold the time
    suite = check_suite(composed_of(plain))
    if suite.devices > 1 and not in_a_worker():
        try:
            launch(suite.devices, {"task": "evaluate", "cfg": plain}, cuda=cuda)
        except Interrupted as error:
            raise Interrupted(error.signal, "the same command with the same run.name goes on") from error
        return
    run_suite(suite)
    leave()


def run_suite(suite: Suite) -> dict:
    """Do the units that are missing, this process its share of them; what metrics.json holds, nothing on ranks other
    than the first.

    Raises:
        ModelError, ConfigError, DataError, JudgeError: what is finished is kept.
    """
    done, store = suite.run_dir / "metrics.json", Store(suite)
    there = on_first(lambda: _begin(suite, done))
    if not there:
        _check_ours(suite)
        store.folder.mkdir(parents=True, exist_ok=True)  # after settings.json: without it the run would be another's
        _work(suite, store)
    if rank() > 0:
        return {}
    if there:
        say(f"{done} is already there.")
    else:
        results = results_of(suite, store)
        _check_ours(suite)
        write_whole(suite.run_dir / "answers.jsonl", answer_lines(suite, store))
        write_whole(suite.run_dir / "tokens.jsonl", token_lines(suite, store))
        # Only now: the file says that the measurement is complete.
        write_whole(done, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    results = json.loads(done.read_text(encoding="utf-8"))
    show_results(results)
    say(f"{suite.run_dir}: metrics.json, answers.jsonl, tokens.jsonl")
    return results


def _begin(suite: Suite, done: Path) -> bool:
    """Whether the work is done for these very settings; else they are in settings.json now."""
    files = [done.with_name(name) for name in ("answers.jsonl", "tokens.jsonl")]
    if _made_with(done) == suite.settings and all(each.exists() for each in files):
        return True
    say(f"Into {suite.run_dir}; if it is stopped, the same command with run.name={suite.run_name} goes on.")
    before = read_settings(suite.run_dir)
    if before and (changed := told(before, suite.settings)):
        say(f"Changed since: {changed}.")
    _say_left_out(suite)
    for note in suite.notes:
        say(f"NOTE: {note}.")
    suite.run_dir.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # the answers beside it will be of these settings before its figures are
    write_whole(suite.run_dir / SETTINGS, json.dumps(suite.settings, indent=2) + "\n")
    return False


def _made_with(done: Path) -> dict | None:
    """The settings of a finished evaluation; None where there is none, or a damaged one."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _check_ours(suite: Suite) -> None:
    """Raises DataError: another command has the directory now, or it is not the one of the first process."""
    file, settings = suite.run_dir / SETTINGS, read_settings(suite.run_dir)
    if settings is None:
        raise DataError(f"{file}: is not there, although it is written; all nodes must share run.dir={suite.run_dir}")
    if settings != suite.settings:
        raise DataError(
            f"{file}: another command measures into {suite.run_dir}; its units are kept. When it has ended, the same "
            "command goes on"
        )


def _work(suite: Suite, store: Store) -> None:
    """All that is missing; on the first rank all units are there at the end."""
    shares = {source: _share(units_of(suite, source)) for source in suite.models}
    # A judge is asked many things at a time as it is; and what it counts is said by the first rank alone.
    to_judge = judge_units(suite) if rank() == 0 else []
    all_of = [unit for units in (*shares.values(), to_judge) for unit in units]
    missing = {unit for unit in all_of if unit not in store}
    teacher: Loaded | None = None
    with Progress(suite, len(all_of), len(all_of) - len(missing)) as progress:
        for source, units in shares.items():
            left = [unit for unit in units if unit in missing]
            if left and teacher is None and suite.teacher is not None:
                progress.begin(f"loading {suite.teacher}")
                teacher = load(suite, suite.teacher)
            if left:
                _measure(suite, store, source, teacher, left, progress)
        barrier()  # what follows needs the units of all; nobody waits for the judge
        _make(store, [unit for unit in to_judge if unit in missing], lambda unit: judged(suite, store, unit), progress)


def _share(units: list[Unit]) -> list[Unit]:
    """This process's, by number and not among those missing: processes may see different ones."""
    return units[rank() :: started_processes()]


def _measure(
    suite: Suite, store: Store, source: str, teacher: Loaded | None, units: list[Unit], progress: Progress
) -> None:
    """With one model loaded beside the teacher; it is gone at the end."""
    loaded = teacher
    if source != suite.teacher:
        progress.begin(f"loading {source}")
        loaded = load(suite, source)
    with_teacher = "" if source == suite.teacher or suite.teacher is None else f" with teacher {suite.teacher}"
    with _naming(f"{source}{with_teacher}"):
        pair = pair_for(suite, source, loaded, teacher)
    bench = Bench(suite, store, source, pair)
    _make(store, units, bench.make, progress)


def _make(store: Store, units: list[Unit], make: Callable[[Unit], dict], progress: Progress) -> None:
    for unit in units:
        progress.begin(unit)
        with _naming(unit):
            made = make(unit)
        store.write(unit, made)
        progress.end()


@contextmanager
def _naming(what: Unit | str) -> Iterator[None]:
    """Errors on purpose come up with what was being made in front: alone, they know a tensor or a row."""
    try:
        yield
    except Interrupted:
        raise
    except ConfigError as error:
        raise ConfigError(f"{what}: {problem}" for problem in error.problems) from error
    except MinillmError as error:
        raise type(error)(f"{what}: {error}") from error


def _say_left_out(suite: Suite) -> None:
    for name, task in suite.measures.calibration.items():
        if task.file is None:
            say(f"{name}: no file (suite.calibration.{name}.file); its calibration is left out.")
    if suite.teacher is None:
        say("No teacher: KL, exposure bias and the figures of tokens are left out.")
    if suite.measures.name == "paper" and suite.measures.judge is None:
        say("No judge (suite.judge.base_url); its score is left out.")
