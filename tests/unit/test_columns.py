"""Which settings are shown of many, and in how few characters."""

import itertools

import pytest

from minillm.common.labels import headings, short, shorts
from minillm.compare import telling


def test_the_fewest_settings_that_tell_runs_apart():
    """Against all subsets: no single one does it; what is the same everywhere or follows from another does not help."""
    runs = [{"same": 1, "scaled": 10 * rate, "rate": rate, "seed": seed} for rate in (0.1, 0.2) for seed in (0, 1)]
    keys = ["same", "scaled", "rate", "seed"]

    def tells(names):
        return len({tuple(run.get(name) for name in names) for run in runs}) == len(runs)

    enough = [names for n in range(5) for names in itertools.combinations(keys, n) if tells(names)]
    assert len(telling(runs, keys)) == len(enough[0]) == 2 and tells(telling(runs, keys))
    assert telling(runs, keys) == ["scaled", "seed"]  # the first of equals


def test_runs_that_nothing_tells_apart_are_no_endless_search():
    assert telling([{"a": 1}, {"a": 1}, {}], ["a"]) == ["a"]
    assert telling([{"a": 1}, {"a": 1}], ["a"]) == []


def test_headings_are_as_short_as_they_may():
    keys = ["model.teacher.source", "model.student.source", "seed", "start.seed", "a.rate"]
    assert list(headings(keys).values()) == ["teacher.source", "student.source", "seed", "start.seed", "rate"]
    assert list(headings(["val/kl", "best/kl", "val/loss"], "/").values()) == ["val/kl", "best/kl", "loss"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (None, "null"), (5e-06, "5e-06"), (12345.0, "12,345"), (1600, "1600"), ("word", "word"),
        ("/data/a/very/long/way/train.jsonl", "/data/a/...in.jsonl"),
    ],
)  # fmt: skip
def test_long_values_lose_their_middle(value, text):
    assert short(value, 19) == text and len(text) <= 19


def test_different_values_look_different():
    paths = [f"/data/somewhere/v{n}/train.jsonl" for n in (1, 2)]
    one, two = shorts([*paths, paths[0]], 12)[:2]
    assert one != two and len(one) < len(paths[0])
    assert shorts(["a" * 30, "b"], 12) == ["aaaa...aaaaa", "b"]
