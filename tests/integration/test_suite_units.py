"""An evaluation that is stopped, shared by processes, grown or changed: it ends as if it had been made at once, and
measures nothing twice."""

import shutil
import signal
import time

import datasets
import pytest
import torch

import minillm.evaluation.suite.run
import minillm.evaluation.suite.work
from minillm.common.errors import ConfigError, DataError
from minillm.evaluation.suite import run_suite
from minillm.evaluation.suite.units import Store, Unit, units_of
from tests.integration.evaluations import ALONE, BRIEF, command, results, same
from tests.tiny import make_model


@pytest.fixture
def made(monkeypatch):
    """The units that are written."""
    found, real = [], Store.write

    def write(store, unit, result):
        found.append(unit)
        real(store, unit, result)

    monkeypatch.setattr(Store, "write", write)
    return found


@pytest.fixture
def copy(brief, tmp_path):
    return shutil.copytree(brief, tmp_path / "run")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(minillm.evaluation.suite.work, "load", lambda *_: pytest.fail("loaded"))


def units(run_dir):
    return {file.name: file.stat().st_mtime_ns for file in (run_dir / "units").iterdir()}


def test_stopped_work_goes_on_and_ends_the_same(brief, checked, tmp_path, monkeypatch):
    made, real = [], Store.write

    def write(store, unit, result):
        made.append(unit)
        if len(made) in (9, 21):
            raise KeyboardInterrupt
        real(store, unit, result)

    monkeypatch.setattr(Store, "write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_suite(checked(tmp_path, *BRIEF))
        assert not (tmp_path / "metrics.json").exists()
    run_suite(checked(tmp_path, *BRIEF))
    assert same(tmp_path, brief)
    assert len(made) == len(set(made)) + 2 == len(units(brief)) + 2  # nothing twice but what was cut


def test_processes_share_the_work(brief, checked, tmp_path, monkeypatch):
    """One after the other, the first at the end: it puts together what all have made."""
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    suite = checked(tmp_path, *BRIEF)
    for rank in (1, 0):
        monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda rank=rank: rank)
        before = {file.name for file in tmp_path.glob("units/*")}
        assert bool(run_suite(suite)) == (rank == 0)
        assert len({file.name for file in tmp_path.glob("units/*")} - before) > 8
    assert same(tmp_path, brief)


def test_a_directory_that_is_not_shared_is_named(checked, tmp_path, monkeypatch):
    """The first of two processes, which never sees what the other has made."""
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    with pytest.raises(DataError, match=f"all nodes must share run.dir={tmp_path}"):
        run_suite(checked(tmp_path, *ALONE))


def test_grown_is_as_made_at_once(brief, checked, world, place, tmp_path, made):
    less = [f"models=[{place}/one/student]", f"data.files=[{world}/val.jsonl]", "suite.exposure=null"]
    run_suite(checked(tmp_path, *BRIEF, *less))
    first = units(tmp_path)
    run_suite(checked(tmp_path, *BRIEF))
    assert same(tmp_path, brief) and units(tmp_path).items() > first.items()  # nothing is written again, nothing goes
    assert units(tmp_path).keys() == units(brief).keys() and len(made) == len(set(made)) == len(units(brief))


@pytest.mark.usefixtures("no_model")
def test_what_is_left_out_and_taken_in_again_is_not_measured_again(brief, checked, place, copy, made):
    found = run_suite(checked(copy, *BRIEF, f"models=[{place}/two/student]", "suite.exposure=null"))
    assert f"{place}/one/student" not in found["models"] and found["exposure"] == {}
    run_suite(checked(copy, *BRIEF))
    assert same(copy, brief) and made == []


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ("suite.token_rows=1", {"answers"}),
        ("suite.decodings.plain=2", {"answers"}),
        ("suite.exposure.samples=3", {"exposure"}),
        ("suite.exposure.limit=3", {"exposure"}),
        ("suite.calibration_limit=3", {"calibration"}),
        ("suite.calibration.sst2.instruction='Which is {text}?'", {"calibration"}),
        *((each, None) for each in (
            "seeds=[2]", "max_new_tokens=5", "batch_size=3", "chunk=4", "dtype=float32", "attention=eager",
            "teacher=null", "data.max_prompt_tokens=200", "limit=3",
        )),
    ],
)  # fmt: skip
def test_another_value_makes_its_own_units_anew(checked, place, tmp_path, change, kinds):
    def names(*more):
        suite = checked(tmp_path, *BRIEF, *more)
        return {Store(suite).file(unit): unit for unit in units_of(suite, f"{place}/one/student")}

    before, now = names(), names(change)
    new = {unit.kind for name, unit in now.items() if name not in before}
    assert new == (kinds or {unit.kind for unit in now.values()})


def test_other_content_under_the_same_name_is_measured(checked, place, world, tmp_path, made):
    copy, file = tmp_path / "three" / "student", tmp_path / "text.jsonl"
    shutil.copytree(place / "two" / "student", copy)
    file.write_text('{"instruction": "name"}\n')
    options = [f"models=[{place}/one/student,{copy}]", f"data.files=[{world}/val.jsonl,{file}]", *ALONE]
    run_suite(checked(tmp_path / "run", *options))
    make_model(seed=9, layers=1, dtype=torch.float32).save_pretrained(copy)
    file.write_text('{"instruction": "list"}\n')
    del made[:]
    run_suite(checked(tmp_path / "run", *options))
    assert {unit.source for unit in made if unit.of == f"{world}/val.jsonl"} == {str(copy)}
    assert {unit.source for unit in made if unit.of == str(file)} == {f"{place}/one/student", str(copy)}
    run_suite(checked(tmp_path / "once", *options))
    assert same(tmp_path / "run", tmp_path / "once")


def test_a_data_set_of_the_hub_is_known_by_its_records(checked, place, tmp_path, monkeypatch):
    rows = [{"instruction": "name", "response": "a cat"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))

    def name():
        suite = checked(tmp_path, "data.files=[owner/set]", f"models=[{place}/one/student]")
        return Store(suite).file(Unit("answers", f"{place}/one/student", "owner/set", "plain"))

    before = name()
    assert name() == before
    rows[0]["response"] = "a dog"
    assert name() != before


@pytest.mark.usefixtures("no_model")
def test_a_finished_run_shows_its_tables_and_what_is_lost_is_made_again(brief, checked, copy, capsys):
    more = ["devices=1", "device=cpu", "suite.judge.concurrency=2"]  # nothing that is measured
    assert run_suite(checked(copy, *BRIEF, *more)) == results(brief)
    shown = capsys.readouterr().out
    assert "metrics.json is already there" in shown and "Rouge-L, decoding plain" in shown
    for name in ("answers.jsonl", "metrics.json"):
        (copy / name).unlink()
        run_suite(checked(copy, *BRIEF))
        assert same(copy, brief)
    (copy / "metrics.json").write_text('{"settings":')
    run_suite(checked(copy, *BRIEF))
    assert same(copy, brief)
    (copy / "metrics.json").unlink()
    unit = next((copy / "units").glob("answers-*"))
    unit.write_text(unit.read_text()[:99])
    with pytest.raises(DataError, match=f"{unit.name}: damaged .* delete it, and the same command makes it again"):
        run_suite(checked(copy, *BRIEF))


def test_another_jobs_directory_is_left_alone(checked, tmp_path):
    for damaged in ("{", "[1]"):
        (tmp_path / "settings.json").write_text(damaged)
        with pytest.raises(ConfigError, match="settings.json: damaged"):
            checked(tmp_path)
    (tmp_path / "settings.json").write_text('{"teacher": "x", "data": {"file": "y"}}')  # generate.py's
    with pytest.raises(ConfigError, match="run.name=test: .* holds another run; choose another name"):
        checked(tmp_path)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("fails", ["settings.json", "answers.jsonl", "metrics.json"])
def test_killed_in_between_no_metrics_pass_for_complete(brief, checked, place, copy, monkeypatch, fails):
    real = minillm.evaluation.suite.run.write_whole

    def killed(file, text):
        if file.name == fails:
            raise KeyboardInterrupt
        real(file, text)

    less = f"models=[{place}/one/student]"
    with monkeypatch.context() as patch:
        patch.setattr(minillm.evaluation.suite.run, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            run_suite(checked(copy, *BRIEF, less))
    assert not (copy / "metrics.json").exists()
    run_suite(checked(copy, *BRIEF))
    assert same(copy, brief)


def test_killed_at_any_moment_it_ends_the_same(undisturbed, world, place, tmp_path):
    run_dir, kills = tmp_path / "run", 0
    for wanted in (1, 6, 11):  # of 21: the last kill comes long before the end
        process = command(world, place, run_dir, *BRIEF)
        while process.poll() is None and len(list(run_dir.glob("units/[!.]*"))) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills == 3 and not (run_dir / "metrics.json").exists()
    last = command(world, place, run_dir, *BRIEF)
    assert last.wait() == 0 and "units of work are already there" in last.stdout and same(run_dir, undisturbed)


def test_two_processes_of_its_own(undisturbed, world, place, tmp_path):
    process = command(world, place, tmp_path / "run", *BRIEF, "devices=2")
    assert process.wait() == 0, process.stderr
    assert same(tmp_path / "run", undisturbed) and process.stdout.count("Exposure bias") == 1
