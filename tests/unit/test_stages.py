"""Stages of a chain: made once, recorded, refused if made otherwise, going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from minillm.common import child
from minillm.common.errors import ConfigError, MinillmError
from minillm.common.files import fingerprint
from minillm.experiments import stages as chains
from minillm.experiments.stages import Stage, begun_on, run_chain


def write(name, text, reads=()):
    """A stage that appends to its log and writes a file, as a command would."""
    code = f"import os; print('making {name}'); os.makedirs('{{0}}/{name}', exist_ok=True); "
    code += f"open('{{0}}/{name}/out', 'w').write('{text}')"
    return lambda folder: Stage(name, ("-c", code.format(folder)), tuple(reads), "out", {"text": text})


def stages(folder, *makers):
    return [make(folder) for make in makers]


def made(folder, name):
    return (folder / "logs" / f"{name}.log").read_text().count(f"making {name}")


def test_each_stage_is_made_once_and_its_inputs_are_recorded(tmp_path):
    both = stages(tmp_path, write("a", "1"), write("b", "2", reads=["a"]))
    for _ in range(2):
        records = run_chain(tmp_path, both)
    assert made(tmp_path, "a") == made(tmp_path, "b") == 1
    assert records["b"]["inputs"] == {"a": fingerprint(tmp_path / "a" / "out")} == {"a": records["a"]["result"]}
    assert json.loads((tmp_path / "chain.json").read_text()) == records


def test_a_failure_shows_the_end_of_the_log_and_the_rest_goes_on_later(tmp_path):
    broken = Stage("b", ("-c", "print('the cause'); raise SystemExit(3)"), ("a",), "out")
    with pytest.raises(MinillmError, match=r"\[2/2\] b failed; the same command goes on from here(.|\n)*the cause"):
        run_chain(tmp_path, [*stages(tmp_path, write("a", "1")), broken])
    run_chain(tmp_path, stages(tmp_path, write("a", "1"), write("b", "2", reads=["a"])))
    assert made(tmp_path, "a") == made(tmp_path, "b") == 1


def test_a_stage_that_was_killed_says_by_which_signal_and_shows_whatever_its_log_holds(tmp_path):
    code = r"import os; os.write(1, b'half a letter: \xc3\n'); os.kill(os.getpid(), 9)"
    with pytest.raises(
        MinillmError, match=r"a was killed by signal 9 .Killed.; the same command goes on(.|\n)*half a letter"
    ):
        run_chain(tmp_path, [Stage("a", ("-c", code), (), "out")])


def test_a_result_that_was_made_otherwise_is_refused(tmp_path):
    data = tmp_path / "data"
    data.write_text("rows")
    run_chain(tmp_path, stages(tmp_path, write("a", "1", reads=[str(data)])))
    with pytest.raises(ConfigError, match="a: text was '1', is '3' now. Delete it to make it again"):
        run_chain(tmp_path, stages(tmp_path, write("a", "3", reads=[str(data)])))
    data.write_text("other rows")
    with pytest.raises(ConfigError, match="data has changed"):
        run_chain(tmp_path, stages(tmp_path, write("a", "1", reads=[str(data)])))


def test_what_was_cut_off_goes_on_only_as_it_was_begun(tmp_path):
    """The first attempt leaves something in its directory and dies."""
    code = f"import os, sys; os.makedirs('{tmp_path}/a', exist_ok=True); "
    begun = Stage("a", ("-c", code + "sys.exit(1)"), (), "out")
    with pytest.raises(MinillmError, match="a failed"):
        run_chain(tmp_path, [begun])
    assert json.loads((tmp_path / "chain.json").read_text())["a"]["result"] is None
    with pytest.raises(ConfigError, match="a: text was 'absent', is '1' now. Delete it to make it again"):
        run_chain(tmp_path, stages(tmp_path, write("a", "1")))


def test_two_chains_do_not_meet_even_where_a_stage_outlives_its_own(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path]) as chain:
        until(lambda: (tmp_path / "logs" / "a.log").exists() and (tmp_path / "logs" / "a.log").read_text())
        chain.kill()  # its stage still sleeps with the lock
    stage = int((tmp_path / "logs" / "a.log").read_text())
    said = r"another chain, or a stage that it began, is at work there; wait until .* or end it"
    with pytest.raises(MinillmError, match=said):
        run_chain(tmp_path, stages(tmp_path, write("a", "1")))
    os.kill(stage, signal.SIGKILL)


def test_ctrl_c_waits_for_the_stage_and_says_that_the_same_command_goes_on(tmp_path):
    """It is a signal to the chain alone here; a terminal sends it to both."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stderr=subprocess.PIPE, text=True) as chain:
        until(lambda: (tmp_path / "logs" / "a.log").exists() and (tmp_path / "logs" / "a.log").read_text())
        chain.send_signal(signal.SIGINT)
        said = chain.stderr.read()
    assert "interrupted by SIGINT in [1/1] a; the same command goes on" in said
    assert (tmp_path / "saved").exists()


def test_stages_that_do_not_need_one_another_are_made_together(tmp_path, monkeypatch):
    """Each of two waits for what the other leaves; the third for both, and has the whole machine."""
    shares = []
    monkeypatch.setattr(chains, "_share", lambda *share: shares.append(share) or {})
    wait = "import os, time; os.makedirs('{0}/{1}'); open('{0}/{1}/out', 'w').write('made')\n"
    wait += "while not os.path.exists('{0}/{2}/out'): time.sleep(0.01)"
    pair = [
        Stage(a, ("-c", wait.format(tmp_path, a, b)), (), "out") for a, b in (("first", "second"), ("second", "first"))
    ]
    last = write("last", "3", reads=["first", "second"])(tmp_path)
    records = run_chain(tmp_path, [*pair, last], jobs=2)
    assert list(records) == ["first", "second", "last"] and all(each["result"] for each in records.values())
    assert records["last"]["inputs"] == {name: records[name]["result"] for name in ("first", "second")}
    assert shares[:2] == [(0, 2), (1, 2)] and shares[2][1] == 1


def test_where_one_fails_the_others_save(tmp_path, capsys):
    hold = Stage("a", ("-c", SLEEPS.replace("{0}", str(tmp_path))), (), "out")
    log = tmp_path / "logs" / "a.log"
    fails = f"import os, time\nwhile not os.path.getsize('{log}'): time.sleep(0.01)\nraise SystemExit(3)"
    with pytest.raises(MinillmError, match=r"\[2/3\] b failed; the same command goes on"):
        run_chain(tmp_path, [hold, Stage("b", ("-c", fails), (), "out"), write("c", "1")(tmp_path)], jobs=2)
    assert (tmp_path / "saved").exists() and not (tmp_path / "c").exists()
    out = capsys.readouterr().out
    assert "Waiting for stage a to save" in out and "The end of" not in out  # which the error says


@pytest.mark.parametrize(("seen", "shares"), [(None, ["0,2", "1"]), ("4,5,7", ["4,7", "5"])])
def test_each_has_its_share_of_cores_and_gpus(monkeypatch, seen, shares):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    found = [chains._share(number, 2) for number in range(2)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in found] == shares
    assert {share["OMP_NUM_THREADS"] for share in found} == {"2"}
    assert chains._share(0, 4) == {"OMP_NUM_THREADS": "1"}  # all would see the same GPU anyhow
    assert chains._share(0, 1) == {}


def until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SLEEPS = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.5)
    open("{0}/saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
print(os.getpid(), flush=True)
time.sleep(20)
"""
HOLD = f"""
import sys
from pathlib import Path
from minillm.experiments.stages import Stage, run_chain
run_chain(Path(sys.argv[1]), [Stage("a", ("-c", {SLEEPS!r}.replace("{{0}}", sys.argv[1])), (), "out")])
"""


class Done:
    pid, returncode = os.getpid(), 0

    def poll(self):
        return 0


def test_killed_training_is_resumed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(child.subprocess, "Popen", lambda command, **_: calls.append(command) or Done())
    stage = Stage("a", ("train.py", "seed=0"), (), "student")
    for resumed in (False, True):
        (tmp_path / "a" / "student").mkdir(parents=True, exist_ok=True)
        run_chain(tmp_path, [stage])
        assert (calls[-1][-1] == "resume=auto") is resumed
        (tmp_path / "a" / "config.yaml").touch()
        (tmp_path / "chain.json").unlink()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": 1}', '{"a": {"command": [], "inputs": {}, "result": null}}', "[" * 5000]
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "chain.json").write_text(text)
    for read in (begun_on, lambda folder: run_chain(folder, stages(tmp_path, write("one", "1")))):
        with pytest.raises(ConfigError, match=r"chain.json: damaged.*; delete it"):
            read(tmp_path)
