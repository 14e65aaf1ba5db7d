"""The command: check, start the processes, do what is missing, put it together, show it."""

from __future__ import annotations

import json
from collections.abc import Callable

from minillm.common.console import say
from minillm.common.errors import MinillmError
from minillm.common.files import write_whole
from minillm.common.ranks import rank, started_processes
from minillm.common.read import SETTINGS
from minillm.evaluation.job import share
from minillm.evaluation.suite.results import answer_lines, results_of, token_lines
from minillm.evaluation.suite.screen import Progress, show_results
from minillm.evaluation.suite.settings import Suite
from minillm.evaluation.suite.units import Store, Unit, judge_units, units_of
from minillm.evaluation.suite.work import Bench, Loaded, judged, load, pair_for
from minillm.parallel import barrier, on_first


def run_suite(suite: Suite) -> dict:
    """Do the units that are missing, this process its share of them; what metrics.json holds, nothing on ranks other
    than the first.

    Raises:
        ModelError, ConfigError, DataError, JudgeError: what is finished is kept.
    """
    done, store = suite.run_dir / "metrics.json", Store(suite)
    if finished := on_first(lambda: _is_finished(suite) or _begin(suite)):
        say(f"{done} is already there.")
    else:
        store.folder.mkdir(parents=True, exist_ok=True)
        _work(suite, store)
    if rank() > 0:
        return {}
    if not finished:
        results = results_of(suite, store)
        write_whole(suite.run_dir / "answers.jsonl", answer_lines(suite, store))
        write_whole(suite.run_dir / "tokens.jsonl", token_lines(suite, store))
        # Only now: the file says that the measurement is complete.
        write_whole(done, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    results = json.loads(done.read_text(encoding="utf-8"))
    show_results(results)
    say(f"{suite.run_dir}: metrics.json, answers.jsonl, tokens.jsonl")
    return results


def _is_finished(suite: Suite) -> bool:
    """Whether all is there, measured with these very settings; a damaged metrics.json is made again."""
    if not all((suite.run_dir / name).exists() for name in ("metrics.json", "answers.jsonl", "tokens.jsonl")):
        return False
    try:
        return json.loads((suite.run_dir / "metrics.json").read_text(encoding="utf-8"))["settings"] == suite.settings
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
    (suite.run_dir / "metrics.json").unlink(missing_ok=True)  # answers of these settings come before their figures
    write_whole(suite.run_dir / SETTINGS, json.dumps(suite.settings, indent=2) + "\n")


def _work(suite: Suite, store: Store) -> None:
    """All that is missing; on the first rank all units are there at the end."""
    shares = {source: share(units_of(suite, source), rank(), started_processes()) for source in suite.models}
    # A judge is asked many things at a time as it is; and what it counts is said by the first rank alone.
    to_judge = judge_units(suite) if rank() == 0 else []
    all_of = [unit for units in (*shares.values(), to_judge) for unit in units]
    missing = {unit for unit in all_of if unit not in store}
    teacher: Loaded | None = None
    with Progress(len(all_of), len(all_of) - len(missing)) as progress:
        for source, units in shares.items():
            left = [unit for unit in units if unit in missing]
            if left and teacher is None and suite.teacher is not None:
                teacher = load(suite, suite.teacher)
            if left:
                _measure(suite, store, source, teacher, left, progress)
        barrier()  # what follows needs the units of all; nobody waits for the judge
        _make(store, [unit for unit in to_judge if unit in missing], lambda unit: judged(suite, store, unit), progress)


def _measure(
    suite: Suite, store: Store, source: str, teacher: Loaded | None, units: list[Unit], progress: Progress
) -> None:
    """With one model loaded beside the teacher; it is gone at the end."""
    loaded = teacher if source == suite.teacher else load(suite, source)
    _make(store, units, Bench(suite, store, source, pair_for(suite, source, loaded, teacher)).make, progress)


def _make(store: Store, units: list[Unit], make: Callable[[Unit], dict], progress: Progress) -> None:
    for unit in units:
        progress.begin(unit)
        try:
            made = make(unit)
        except MinillmError:
            say(f"{unit}: failed.")  # alone, the error knows a tensor or a row
            raise
        store.write(unit, made)
        progress.end()
