"""The whole evaluation on tiny models, for several test files: its options, and what a run leaves."""

import json

import torch

from minillm.models import Checkpoint, pair_of
from tests.commands import Command

SAMPLES = 5
BRIEF = ["seeds=[1]", "~suite.decodings.no_repeat_ngram_1", "limit=4", "suite.exposure.samples=2"]
ALONE = [*BRIEF, "suite.exposure=null", "suite.calibration.sst2.file=null", "suite.teacher_row=false"]


def options(world, place, run_dir, *more):
    return [
        "suite=paper", f"models=[{place}/one/student,{place}/two/student]", f"teacher={world}/teacher",
        f"data.files=[{world}/val.jsonl,{world}/train.jsonl]", "data.template=chat", "seeds=[1,2]", "max_new_tokens=4",
        "chunk=6", "dtype=float64", f"suite.exposure.samples={SAMPLES}", "suite.token_rows=2",
        f"suite.calibration.sst2.file={place}/choices.jsonl", "suite.calibration.sst2.words=[red,blue]",
        "~suite.decodings.no_repeat_ngram_6", "+suite.decodings.no_repeat_ngram_1=1",
        f"run.dir={run_dir}", "run.name=test", *more,
    ]  # fmt: skip


def results(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def same(run_dir, other):
    return all(
        (run_dir / name).read_bytes() == (other / name).read_bytes()
        for name in ("metrics.json", "answers.jsonl", "tokens.jsonl")
    )


def loaded(world, place, name="one"):
    (student, tokenizer), (teacher, _) = (
        Checkpoint(str(path)).load(torch.float64) for path in (place / name / "student", world / "teacher")
    )
    return pair_of(student.eval(), teacher, tokenizer, tokenizer)


def command(world, place, run_dir, *more):
    return Command("evaluate.py", *options(world, place, run_dir, *more), cwd=run_dir.parent)
