"""The made-up task: answers are right, files share no prompt, every word is a token."""

import itertools
import json
import random

import pytest

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
