"""What surrounds a sweep: the summary, and beginning again when a launcher's process died."""

import json
from dataclasses import asdict

import pytest

from minillm.common.errors import Interrupted, MinillmError
from minillm.experiments.sweep import Sweep, SweepStart, with_report
from minillm.experiments.trials import Outcome


class TerminatedWorkerError(Exception):
    """As joblib's."""


def outcomes(folder, *found):
    (folder / ".trials").mkdir(exist_ok=True)
    for each in found:
        (folder / ".trials" / f"{each.number}.json").write_text(json.dumps(asdict(each)))


GOOD, STOPPED = Outcome(0, "a-0", "finished", figure=0.5), Outcome(1, "a-1", "stopped early", figure=0.9)
FAILED = Outcome(2, "a-2", "failed", "Error: 2 problems:\n  - x")


def test_all_well(tmp_path, capsys):
    outcomes(tmp_path, GOOD, STOPPED)
    assert Sweep(tmp_path, "val/reverse_kl").report() is None
    out = " ".join(capsys.readouterr().out.split())
    assert "Best val/reverse_kl: 0.5" in out and "a-1 stopped early 0.9" in out
    Sweep(tmp_path, "val/rouge_l").report()
    assert "Best val/rouge_l: 0.9" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("deaths", "calls"), [(0, 1), (2, 3), (9, 4)])
def test_a_sweep_begins_again_when_a_process_of_the_launcher_died(tmp_path, deaths, calls):
    outcomes(tmp_path, GOOD, FAILED)
    seen = []

    def main():
        SweepStart.swept = Sweep(tmp_path, "val/reverse_kl")
        seen.append(1)
        if len(seen) <= deaths:
            raise TerminatedWorkerError("killed")

    with pytest.raises(MinillmError, match=r"1 of 2 trials did not finish.*\n  - a-2: failed. Error: 2 problems") as e:
        with_report(main)()
    assert len(seen) == calls and ("TerminatedWorkerError: killed" in str(e.value)) is (deaths == 9)


def test_an_interrupted_sweep_says_what_goes_on(tmp_path):
    def interrupted(swept):
        SweepStart.swept = swept
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="interrupted by a signal; the same command goes on"):
        with_report(lambda: interrupted(Sweep(tmp_path, "val/reverse_kl")))()
    with pytest.raises(KeyboardInterrupt):
        with_report(lambda: interrupted(None))()


def test_other_errors_and_single_runs_pass_through(tmp_path):
    def broken():
        SweepStart.swept = Sweep(tmp_path, "val/reverse_kl")
        raise KeyError("a bug")

    outcomes(tmp_path, GOOD)
    with pytest.raises(KeyError):
        with_report(broken)()
    with pytest.raises(TerminatedWorkerError):  # of a single run
        with_report(lambda: (_ for _ in ()).throw(TerminatedWorkerError()))()
    assert with_report(lambda: None)() is None
