"""A teacher answers prompts, on disk, as training data of SeqKD.

The work is that of an evaluation of one model: units of `chunk` prompts with a file each. A stopped run goes on with
the missing ones, and processes under torchrun or srun share them. The result is the same: a row's random stream depends
on seed and row alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from minillm.common.changes import changes, flat
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError
from minillm.common.files import write_whole
from minillm.common.read import SETTINGS
from minillm.data import Record, read_records
from minillm.data.records import TEACHER_KEYS
from minillm.evaluation.job import Options, begin_check
from minillm.evaluation.suite.run import do_units
from minillm.evaluation.suite.settings import Measures, Suite, made_suite
from minillm.evaluation.suite.units import Store, units_of
from minillm.models import Checkpoint

_MEASURES = Measures(
    name="generate", teacher_row=False, decodings={"plain": 0}, reference_loss=False, exposure=None, calibration={},
    calibration_limit=None, token_rows=0, judge=None,
)  # fmt: skip


@dataclass(frozen=True)
class _Options(Options):
    teacher: str
    seed: int | None
    temperature: float


def check_generation(cfg: DictConfig) -> Suite:
    """What to answer. Raises ConfigError with every wrong setting; DataError for an unusable file."""
    # The teacher sees its own keys of the data here too.
    allowed = (*TEACHER_KEYS, "teacher_template_arguments", "teacher_cache")
    plain, sources, before, problems = begin_check(cfg, _Options, "file", allowed)
    file, teacher, run_dir = plain["data"]["file"], plain["teacher"], Path(plain["run"]["dir"])
    if teacher == "???":
        problems.append(
            "teacher: wanted a directory, a hub id, a .gguf file or package:NAME, for example teacher=runs/x/student"
        )
    if not isinstance(file, str):
        problems.append(f"data.file={file!r}: wanted a .jsonl file, builtin, or a hub data set")
    ours = before is not None and "models" not in before  # an evaluation's has them
    if not ours and (before is not None or any((run_dir / name).exists() for name in ("answers.jsonl", "config.yaml"))):
        problems.append(
            f"run.name={plain['run']['name']}: {run_dir} already holds another run; choose another run.name"
        )
    if problems:
        raise ConfigError(problems)
    try:
        Checkpoint(teacher).resolve()
    except (ConfigError, ModelError) as error:
        raise ConfigError([f"teacher: {error}"]) from error
    records = {file: read_records(file)[: plain["limit"]]}
    own = dict(models=(teacher,), teacher=None, devices=1, seeds=[plain["seed"]], temperature=plain["temperature"])
    own |= dict(measures=_MEASURES, records=records, tasks={}, sources=sources, as_teacher=True)
    suite = made_suite(plain, before, **own)
    found = changes(flat(before), flat(suite.settings)) if ours else ()
    problems = [f"{each}; {run_dir} was begun with the first: choose another run.name or delete it" for each in found]
    if problems:
        raise ConfigError(problems)
    return suite


def generate(suite: Suite) -> Path | None:
    """Answer this process's share of the missing chunks; answers.jsonl once all are there, else None."""
    (file, records), (teacher,) = next(iter(suite.records.items())), suite.models
    out, store = suite.run_dir / "answers.jsonl", Store(suite)
    if out.exists():
        say(f"{out} is already there.")
        return out
    suite.run_dir.mkdir(parents=True, exist_ok=True)
    write_whole(suite.run_dir / SETTINGS, json.dumps(suite.settings, indent=2) + "\n")
    do_units(store)
    if left := sum(not store.file(unit).exists() for unit in units_of(suite, teacher)):
        say(f"{left} chunks are left to the other processes.")
        return None
    by_id = {record.id: record for record in records}
    answers = next(iter(store.answers(teacher, file, "plain").values()))
    rows = [row_of(by_id[answer["id"]], answer["answer"], answer["truncated"]) for answer in answers]
    write_whole(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    say(f"Wrote {out}: train on it with data.train_file={out}")
    if n_cut := sum(row["truncated"] for row in rows):
        say(f"{n_cut} of {len(rows)} answers were cut off at max_new_tokens; training gives them no end")
    return out


def row_of(record: Record, answer: str, truncated: bool) -> dict:
    """An answer as a row of training data."""
    if record.history:
        turns = [*record.history, ("user", record.question), ("assistant", answer)]
        content = {"messages": [{"role": role, "content": text} for role, text in turns]}
    else:
        content = {"instruction": record.instruction, "input": record.input, "output": answer}
    named = {} if record.teacher is None else {"teacher": record.teacher}
    return {"id": record.id, **content, **named, "truncated": truncated}
