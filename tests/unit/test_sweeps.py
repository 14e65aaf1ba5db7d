"""The summary after a sweep."""

import json

from minillm.experiments.sweep import report


def outcomes(folder, *found):
    (folder / ".trials").mkdir()
    for number, (name, state, figure, text) in enumerate(found):
        outcome = {"name": name, "state": state, "figure": figure, "text": text}
        (folder / ".trials" / f"{number}.json").write_text(json.dumps(outcome))


GOOD, WORSE = ("a-0", "finished", 0.5, ""), ("a-1", "finished", 0.9, "")
FAILED = ("a-2", "failed", None, "Error: 2 problems:\n  - x")


def test_all_well(tmp_path, capsys):
    outcomes(tmp_path, GOOD, WORSE)
    assert report(tmp_path, "val/reverse_kl") is None
    out = " ".join(capsys.readouterr().out.split())
    assert "Best val/reverse_kl: 0.5" in out and "a-1 finished 0.9" in out
    report(tmp_path, "val/rouge_l")
    assert "Best val/rouge_l: 0.9" in " ".join(capsys.readouterr().out.split())


def test_a_failed_trial_is_named_with_its_reason(tmp_path):
    outcomes(tmp_path, GOOD, FAILED)
    said = "1 of 2 trials did not finish; the same command goes on:\n  - a-2: failed. Error: 2 problems:\n    - x"
    assert report(tmp_path, "val/reverse_kl") == said
