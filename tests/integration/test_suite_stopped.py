"""The whole evaluation stopped, killed, shared by processes and begun otherwise: it ends the same or is refused."""

import json
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
from minillm.evaluation.suite.units import Store, Unit, file_name
from tests.conftest import make_model
from tests.integration.evaluations import BRIEF, begun, command, results, same


def test_stopped_work_goes_on_and_ends_the_same(whole, checked, tmp_path, monkeypatch):
    made, real = [], Store.write

    def write(store, unit, result):
        made.append(unit)
        if len(made) in (30, 61):
            raise KeyboardInterrupt
        real(store, unit, result)

    monkeypatch.setattr(Store, "write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_suite(checked(tmp_path))
        assert not (tmp_path / "metrics.json").exists()
    run_suite(checked(tmp_path))
    assert same(tmp_path, whole)
    assert (
        len(made) == len(set(made)) + 2 == len(list((whole / "units").iterdir())) + 2
    )  # nothing twice but what was cut


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_work(whole, checked, tmp_path, monkeypatch, size):
    """One after the other, the first at the end: it puts together what all have made."""
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: size)
    suite = begun(checked(tmp_path))
    for rank in reversed(range(size)):
        monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda rank=rank: rank)
        before = {file.name for file in tmp_path.glob("units/*")}
        assert bool(run_suite(suite)) == (rank == 0)
        assert len({file.name for file in tmp_path.glob("units/*")} - before) > 20
    assert same(tmp_path, whole)


def test_a_finished_run_shows_its_tables_and_loads_no_model(whole, checked, monkeypatch, capsys):
    monkeypatch.setattr(minillm.evaluation.suite.run, "load", lambda *_: pytest.fail("loaded"))
    assert run_suite(checked(whole)) == results(whole)
    shown = capsys.readouterr().out
    assert "metrics.json is already there" in shown and "Rouge-L, decoding no_repeat_ngram_1" in shown


def test_what_is_lost_of_a_finished_run_is_made_again_from_its_units(whole, checked, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(minillm.evaluation.suite.run, "load", lambda *_: pytest.fail("loaded"))
    for name in ("answers.jsonl", "metrics.json"):
        (tmp_path / "run" / name).unlink()
        run_suite(checked(tmp_path / "run"))
        assert same(tmp_path / "run", whole)
    (tmp_path / "run" / "metrics.json").write_text('{"settings":')
    run_suite(checked(tmp_path / "run"))
    assert same(tmp_path / "run", whole)
    for damaged in ("{", "[1]"):
        (tmp_path / "run" / "settings.json").write_text(damaged)
        with pytest.raises(ConfigError, match="settings.json: damaged"):
            checked(tmp_path / "run")
    for other in ('{"teacher": "x", "data": {"file": "y"}}', '{"content": 1}'):  # the first is generate.py's
        (tmp_path / "run" / "settings.json").write_text(other)
        with pytest.raises(ConfigError, match=r"settings.json: is of another job .* choose another run.name"):
            checked(tmp_path / "run")


def test_what_to_type_after_a_stop_is_the_whole_name(checked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(minillm.evaluation.suite.run, "_work", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_suite(checked(tmp_path / "a" / "b", "run.name=a/b"))
    assert "the same command with run.name=a/b goes on" in " ".join(capsys.readouterr().out.split())


def test_two_commands_do_not_measure_into_one_run(checked, place, tmp_path, monkeypatch):
    """The second begins and ends while the first is at work."""
    mine, other = ([*BRIEF, "limit=2", f"models=[{place}/{name}/student]"] for name in ("one", "two"))
    first, work = checked(tmp_path, *mine), minillm.evaluation.suite.run._work

    def interrupted(suite, store):
        work(suite, store)
        if suite is first:
            run_suite(checked(tmp_path, *other))

    monkeypatch.setattr(minillm.evaluation.suite.run, "_work", interrupted)
    with pytest.raises(DataError, match="another command measures into"):
        run_suite(first)
    assert f"{place}/two/student" in results(tmp_path)["models"]
    assert run_suite(checked(tmp_path, *mine))["models"].keys() == {*first.models}


def test_other_settings_data_and_weights_are_refused(whole, checked, world, place, tmp_path):
    with pytest.raises(ConfigError, match=r"seeds was \[1, 2\], is \[1\] now; .* choose another run.name"):
        checked(whole, "seeds=[1]")
    checked(whole, "devices=1", "device=cpu", "suite.judge.concurrency=2")  # nothing that is measured
    copy = tmp_path / "two" / "student"
    shutil.copytree(place / "two" / "student", copy)
    text = tmp_path / "text.jsonl"
    text.write_text('{"instruction": "name"}\n')
    run = tmp_path / "run"
    more = [f"models=[{copy}]", f"data.files=[{text}]", "seeds=[1]"]
    run_suite(checked(run, *more))
    text.write_text('{"instruction": "list"}\n')
    make_model(seed=9, layers=1, dtype=torch.float32).save_pretrained(copy)
    with pytest.raises(ConfigError) as caught:
        checked(run, *more)
    assert len(caught.value.problems) == 2 and f"{text} has other content now" in str(caught.value)
    (run / "settings.json").unlink()
    with pytest.raises(ConfigError, match="already holds another run"):
        checked(run, *more)


def test_units_of_different_numbers_of_threads_are_named(checked, place, tmp_path, monkeypatch):
    """Sums are rounded otherwise, so that figures are of two roundings."""
    options = [*BRIEF, "limit=2", "suite.exposure=null", f"models=[{place}/one/student]", "suite.calibration_limit=2"]
    assert run_suite(checked(tmp_path, *options))["notes"] == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    (note,) = run_suite(checked(tmp_path, *options, f"models=[{place}/one/student,{place}/two/student]"))["notes"]
    assert "5 CPU threads" in note and "OMP_NUM_THREADS" in note


def test_a_data_set_of_the_hub_is_known_by_its_records(checked, place, tmp_path, monkeypatch):
    rows = [{"instruction": "name", "response": "a cat"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    options = ["data.files=[owner/set]", f"models=[{place}/one/student]"]
    suite = begun(checked(tmp_path, *options))
    assert suite.settings["content"]["owner/set"] == checked(tmp_path, *options).settings["content"]["owner/set"]
    unit = Unit("answers", f"{place}/one/student", "owner/set", "plain")
    before = file_name(suite, unit)
    rows[0]["response"] = "a dog"
    with pytest.raises(ConfigError, match="owner/set has other content now"):
        checked(tmp_path, *options)
    assert file_name(checked(tmp_path / "other", *options), unit) != before


def test_a_damaged_unit_and_answers_that_do_not_fit_are_named(whole, checked, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    unit = next((tmp_path / "run" / "units").glob("answers-*"))
    text = unit.read_text()
    unit.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=f"{unit.name}: damaged .* delete it, and the same command makes it again"):
        run_suite(checked(tmp_path / "run"))
    cut = json.loads(text)
    cut["made"]["rows"].pop()
    unit.write_text(json.dumps(cut))
    with pytest.raises(DataError, match="answers, but not one to each of the"):
        run_suite(checked(tmp_path / "run"))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(undisturbed, world, place, tmp_path):
    run_dir, kills = tmp_path / "run", 0
    for wanted in (1, 20, 45):
        process = command(world, place, run_dir)
        while process.poll() is None and len(list(run_dir.glob("units/[!.]*"))) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills == 3 and not (run_dir / "metrics.json").exists()
    last = command(world, place, run_dir)
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0 and "units of work are already there" in said and same(run_dir, undisturbed)


@pytest.mark.slow
def test_two_processes_of_its_own(undisturbed, world, place, tmp_path):
    process = command(world, place, tmp_path / "run", "devices=2")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert same(tmp_path / "run", undisturbed) and said.count("Exposure bias") == 1
