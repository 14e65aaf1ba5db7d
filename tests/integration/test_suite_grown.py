"""An evaluation that goes on with more models, files and measures: it ends as if it had been made at once, and measures
nothing twice."""

import shutil

import pytest
import torch

import minillm.evaluation.suite.run
from minillm.common.errors import ConfigError, DataError
from minillm.evaluation.suite import run_suite
from minillm.evaluation.suite.grown import told
from minillm.evaluation.suite.units import Store
from tests.chat_server import failure, reply, serving
from tests.conftest import make_model
from tests.integration.evaluations import BRIEF, begun, results, same


@pytest.fixture
def made(monkeypatch):
    """The units that are written."""
    found, real = [], Store.write

    def write(store, unit, result):
        found.append(unit)
        real(store, unit, result)

    monkeypatch.setattr(Store, "write", write)
    return found


def units(run_dir):
    return {file.name: file.stat().st_mtime_ns for file in (run_dir / "units").iterdir()}


@pytest.mark.parametrize(
    ("less", "said"),
    [
        (["models=[{place}/one/student]"], "Changed since: models with {place}/two/student."),
        (["data.files=[{world}/val.jsonl]"], "Changed since: data.files with {world}/train.jsonl."),
        (["suite.calibration.sst2.file=null"], "suite.calibration.sst2.file={place}/choices.jsonl added."),
        (["~suite.decodings.no_repeat_ngram_1"], "Changed since: suite.decodings.no_repeat_ngram_1=1 added."),
        (["suite.exposure=null", "suite.reference_loss=false"], "suite.reference_loss was False, is True now"),
    ],
)
def test_grown_is_as_made_at_once(whole, checked, world, place, tmp_path, made, capsys, less, said):
    run_suite(checked(tmp_path, *(each.format(world=world, place=place) for each in less)))
    first = units(tmp_path)
    capsys.readouterr()
    run_suite(checked(tmp_path))
    assert said.format(world=world, place=place) in "".join(capsys.readouterr().out.split("\n")).replace("  ", " ")
    assert same(tmp_path, whole) and (tmp_path / "settings.json").read_bytes() == (whole / "settings.json").read_bytes()
    assert units(tmp_path).items() > first.items()  # nothing is written again, nothing goes
    assert units(tmp_path).keys() == units(whole).keys() and len(made) == len(set(made)) == len(units(whole))


def test_what_is_left_out_and_taken_in_again_is_not_measured_again(whole, checked, place, tmp_path, made, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(minillm.evaluation.suite.run, "load", lambda *_: pytest.fail("loaded"))
    found = run_suite(checked(tmp_path / "run", f"models=[{place}/two/student]", "suite.exposure=null"))
    assert f"{place}/one/student" not in found["models"] and found["exposure"] == {}
    run_suite(checked(tmp_path / "run"))
    assert same(tmp_path / "run", whole) and made == []


def test_other_content_under_a_name_that_comes_back_is_measured(checked, place, world, tmp_path, made):
    copy, file = tmp_path / "three" / "student", tmp_path / "text.jsonl"
    shutil.copytree(place / "two" / "student", copy)
    file.write_text('{"instruction": "name"}\n')
    with_both = [f"models=[{place}/one/student,{copy}]", f"data.files=[{world}/val.jsonl,{file}]", *BRIEF]
    without = [f"models=[{place}/one/student]", f"data.files=[{world}/val.jsonl]", *BRIEF]
    run_suite(checked(tmp_path / "run", *with_both))
    make_model(seed=9, layers=1, dtype=torch.float32).save_pretrained(copy)
    file.write_text('{"instruction": "list"}\n')
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path / "run", *with_both)
    assert len(caught.value.problems) == 2 and f"{copy} has other content now; " in str(caught.value)
    run_suite(checked(tmp_path / "run", *without))
    del made[:]
    run_suite(checked(tmp_path / "run", *with_both))
    assert {unit.source for unit in made if unit.of == f"{world}/val.jsonl"} == {str(copy)}
    assert {unit.source for unit in made if unit.of == str(file) and unit.kind == "answers"} == {
        f"{world}/teacher", f"{place}/one/student", str(copy),
    }  # fmt: skip
    run_suite(checked(tmp_path / "once", *with_both))
    assert same(tmp_path / "run", tmp_path / "once")


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ("suite.decodings.no_repeat_ngram_1=2", {"answers"}),
        ("suite.token_rows=1", {"answers"}),
        ("suite.exposure.samples=3", {"exposure", "samples"}),
        ("suite.exposure.limit=4", {"exposure", "samples"}),
        ("suite.calibration_limit=5", {"calibration"}),
        ("suite.calibration.sst2.instruction='Which is {text}?'", {"calibration"}),
    ],
)
def test_another_value_makes_its_own_units_anew(whole, checked, tmp_path, made, change, kinds):
    shutil.copytree(whole, tmp_path / "run")
    found = run_suite(checked(tmp_path / "run", change))
    assert {unit.kind for unit in made} == kinds and len({unit.decoding for unit in made}) == 1
    assert found["settings"] != results(whole)["settings"]
    if "token_rows" in change:
        assert {unit.chunk for unit in made} == {0}  # the others show no tokens either way


def test_how_it_is_measured_may_not_change(whole, checked, world, place):
    for change, key in (
        ("max_new_tokens=5", "max_new_tokens"), ("chunk=4", "chunk"), ("batch_size=3", "batch_size"),
        ("limit=4", "limit"), ("dtype=float32", "dtype"), ("attention=eager", "attention"), ("teacher=null", "teacher"),
        ("data.max_prompt_tokens=200", "data.max_prompt_tokens"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{key} was .* was begun otherwise") as caught:
            checked(whole, change, f"models=[{place}/one/student]", f"data.files=[{world}/val.jsonl]")
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize("fails", ["settings.json", "answers.jsonl", "tokens.jsonl", "metrics.json"])
def test_killed_in_between_no_metrics_pass_for_complete(whole, checked, place, tmp_path, monkeypatch, fails):
    shutil.copytree(whole, tmp_path / "run")
    real = minillm.evaluation.suite.run.write_whole

    def killed(file, text):
        if file.name == fails:
            raise KeyboardInterrupt
        real(file, text)

    less = f"models=[{place}/one/student]"
    with monkeypatch.context() as patch:
        patch.setattr(minillm.evaluation.suite.run, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            run_suite(checked(tmp_path / "run", less))
    assert not (tmp_path / "run" / "metrics.json").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "back")
    assert len(run_suite(checked(tmp_path / "run", less))["models"]) == 2
    run_suite(checked(tmp_path / "back"))
    run_suite(checked(tmp_path / "run"))
    assert same(tmp_path / "run", whole) and same(tmp_path / "back", whole)


def test_a_judge_is_added_and_asked_again(checked, tmp_path, made, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    says = {"now": reply("I cannot.")}
    brief = ["limit=4", *BRIEF]
    with serving(otherwise=lambda body: says["now"]) as (chat, url):
        judge = [f"suite.judge.base_url={url}", "suite.judge.model=m", f"suite.judge.cache_dir={tmp_path}/cache"]
        judge += ["suite.judge.key_variable=null", "suite.judge.asks=1", "suite.judge.retries=0", *brief]
        judge += ["suite.judge.give_up=1000"]
        run_suite(checked(tmp_path / "run", *brief))
        del made[:]
        found = run_suite(checked(tmp_path / "run", *judge))
        assert {unit.kind for unit in made} == {"judge"}
        assert "Changed since: suite.judge added." in capsys.readouterr().out
        n, counts = len(chat.requests), _counts(found)
        assert counts["malformed"] == counts["items"] > 0 and counts["rated"] == 0
        run_suite(checked(tmp_path / "once", *judge))
        assert same(tmp_path / "run", tmp_path / "once") and len(chat.requests) == n  # from the cache
        says["now"] = failure(500)
        failed = run_suite(checked(tmp_path / "run", *judge, "suite.judge.asks=2"))
        assert _counts(failed)["failed"] == counts["items"]
        says["now"] = reply("4 2")
        assert run_suite(checked(tmp_path / "run", *judge, "suite.judge.asks=2")) == failed  # it is finished
        n = len(chat.requests)
        rated = run_suite(checked(tmp_path / "run", *judge, "suite.judge.asks=3"))
        assert _counts(rated)["rated"] == counts["items"] and len(chat.requests) <= n + counts["items"]
        assert "suite.judge.asks was 2, is 3 now" in capsys.readouterr().out


def _counts(found):
    every = [by_model for files in found["judge"].values() for each in files.values() for by_model in each.values()]
    return {name: sum(each[name] for each in every) for name in every[0]}


def test_the_first_of_several_processes_alone_asks_the_judge(checked, tmp_path, made, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    with serving() as (chat, url):
        judge = [f"suite.judge.base_url={url}", "suite.judge.model=m", f"suite.judge.cache_dir={tmp_path}/cache"]
        suite = begun(checked(tmp_path / "run", *judge, "suite.judge.key_variable=null", "limit=4", *BRIEF))
        monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda: 1)
        run_suite(suite)
        assert made and not chat.requests and not [unit for unit in made if unit.kind == "judge"]
        monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda: 0)
        assert _counts(run_suite(suite))["rated"] > 0 and chat.requests


def test_a_directory_that_is_not_shared_is_named(checked, tmp_path, monkeypatch):
    """The first of two processes, which never sees what the other has made."""
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    with pytest.raises(DataError, match=f"all nodes must share run.dir={tmp_path}"):
        run_suite(checked(tmp_path, "limit=4", *BRIEF))
    monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda: 1)
    monkeypatch.setattr(
        minillm.evaluation.suite.run, "on_first", lambda work: False
    )  # the first one has begun, elsewhere
    monkeypatch.setattr(minillm.evaluation.suite.run, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DataError, match="settings.json: is not there"):
        run_suite(checked(tmp_path / "elsewhere", "limit=4", *BRIEF))


def test_changes_are_told_in_a_line():
    def settings(models, files, **suite):
        return {"models": models, "data": {"files": files}, "suite": suite}

    before = settings(["a", "b"], ["f", "g"], exposure={"samples": 3}, judge=None, decodings={"plain": 0, "x": 6})
    now = settings(["c", "b"], ["g", "f"], exposure=None, judge={"model": "m"}, decodings={"x": 5, "plain": 0})
    assert told(before, now) == (
        "models with c; models without a; data.files in another order; suite.exposure left out; suite.judge added; "
        "suite.decodings.x was 6, is 5 now"
    )
    assert told(before, before) == ""
