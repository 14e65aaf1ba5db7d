"""The summary after a sweep."""

import json
from dataclasses import asdict

from minillm.experiments.sweep import report
from minillm.experiments.trials import Outcome


def outcomes(folder, *found):
    (folder / ".trials").mkdir()
    for each in found:
        (folder / ".trials" / f"{each.number}.json").write_text(json.dumps(asdict(each)))


GOOD, WORSE = (Outcome(n, f"a-{n}", "finished", figure=figure) for n, figure in enumerate((0.5, 0.9)))
FAILED = Outcome(2, "a-2", "failed", "Error: 2 problems:\n  - x")


def test_all_well(tmp_path, capsys):
    outcomes(tmp_path, GOOD, WORSE)
    assert report(tmp_path, "val/reverse_kl") is None
    out = " ".join(capsys.readouterr().out.split())
    assert "Best val/reverse_kl: 0.5" in out and "a-1 finished 0.9 was there" in out
    report(tmp_path, "val/rouge_l")
    assert "Best val/rouge_l: 0.9" in " ".join(capsys.readouterr().out.split())


def test_a_failed_trial_is_named_with_its_reason(tmp_path):
    outcomes(tmp_path, GOOD, FAILED)
    said = "1 of 2 trials did not finish; the same command goes on:\n  - a-2: failed. Error: 2 problems:\n    - x"
    assert report(tmp_path, "val/reverse_kl") == said
