"""The made-up task: answers are right, files share no prompt, every word is a token."""

import itertools
import json
import random

import pytest
import torch

from examples import narrow, spans
from examples.narrow import KINDS, TESTS, example, make_tokenizer, write


@pytest.mark.parametrize("seed", range(20))
def test_answers_are_right(seed):
    rng = random.Random(seed)
    rows = {kind: example(kind, rng) for kind in KINDS}
    words = {kind: row["input"].split() for kind, row in rows.items()}
    assert rows["copy"]["output"].split() == words["copy"]
    assert rows["reverse"]["output"].split()[::-1] == words["reverse"]
    answer = rows["sort"]["output"].split()
    assert sorted(words["sort"]) == answer and all(a < b for a, b in itertools.pairwise(answer))
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    counted = [part.split() for part in rows["count"]["output"].split(" and ")]
    assert sorted(word for number, word in counted for _ in range(numbers[number])) == sorted(words["count"])
    assert sum(numbers[number] for number, _ in counted) == len(words["count"])
    things = rows["describe"]["input"].split(" and ")
    sentences = rows["describe"]["output"].split(" . ")
    assert len(sentences) == 2 and all(f"the {thing}" in rows["describe"]["output"] for thing in things)


def test_no_prompt_is_in_two_files_and_every_word_is_a_token(tmp_path):
    write(tmp_path, n_train=400, n_val=40, n_test=40)
    tokenizer, seen = make_tokenizer(), set()
    sizes = {"train": 400, "val": 40} | {f"test_{name}": 40 for name in TESTS}
    for name, size in sizes.items():
        rows = list(map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines()))
        prompts = {(row["instruction"], row["input"]) for row in rows}
        assert len(rows) == len(prompts) == size and not prompts & seen
        seen |= prompts
        texts = [" ".join(row.values()) for row in rows]
        assert tokenizer.unk_token_id not in {token for ids in tokenizer(texts).input_ids for token in ids}
        lengths = {len(row["input"].split()) for row in rows if row["instruction"] != "describe"}
        assert lengths <= ({6, 7} if name == "test_longer" else {3, 4, 5})


def test_the_files_are_always_the_same(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, n_train=50, n_val=5, n_test=5)
    for file in (tmp_path / "one").glob("*.jsonl"):
        assert file.read_text() == (tmp_path / "two" / file.name).read_text()


def test_an_interval_of_a_ratio_is_that_of_resampled_prompts():
    generator = torch.Generator().manual_seed(0)
    sums = torch.rand(400, 2, dtype=torch.float64, generator=generator) + 0.5
    value, half = spans.interval(sums)
    again = [spans.ratio(sums[torch.randint(400, (400,), generator=generator)]) for _ in range(500)]
    assert value == spans.ratio(sums) and half == pytest.approx(1.96 * float(torch.tensor(again).std()), rel=0.15)
    assert spans.interval(sums, sums) == (0, 0)


@pytest.mark.slow
def test_the_example_of_another_tokenizer_runs(tmp_path):
    found = spans.main(tmp_path, seeds=[0], teacher_steps=3, start_steps=80, rounds=2, samples=1)
    assert (tmp_path / "results.json").exists() and len(found[0]["spans - sft"]) == 2
    files = [tmp_path / "task" / f"{side}_tokenizer" / "tokenizer.json" for side in spans.TOKENS]
    assert files[0].read_text() != files[1].read_text()


def test_the_command_says_how_long_make_reproduce_takes_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(narrow, "step_seconds", lambda: 0.3)
    monkeypatch.setattr("sys.argv", ["narrow", str(tmp_path)])
    narrow.main()
    assert "make reproduce takes about 22 minutes, with SIZE=small 6." in capsys.readouterr().out
    assert (tmp_path / "train.jsonl").exists()
