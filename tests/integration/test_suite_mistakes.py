"""The whole evaluation with a judge, and with mistakes, which are told before any work."""

import json

import pytest
import torch

from minillm.common.errors import (
    ConfigError,
    DataError,
    Interrupted,
    JudgeError,
    ModelError,
    NonFiniteError,
    StorageError,
)
from minillm.evaluation.judge.judge import Judge
from minillm.evaluation.suite import run_suite
from minillm.evaluation.suite.work import Bench
from minillm.models import Checkpoint
from tests.chat_server import KEY, failure, reply, serving
from tests.conftest import make_model, make_tokenizer
from tests.integration.evaluations import BRIEF


def test_a_judge_rates_all_answers_and_its_key_is_in_no_file(checked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def says(body):
        return reply("I cannot." if "[Instruction]\nthe to\n" in body["messages"][0]["content"] else "4 4")

    with serving(otherwise=says) as (chat, url):
        judge = [f"suite.judge.base_url={url}", "suite.judge.model=m", f"suite.judge.cache_dir={tmp_path}/cache"]
        judge += ["suite.judge.key_variable=JUDGE_API_KEY", "suite.judge.asks=1", "limit=4", "seeds=[1,2]"]
        with pytest.raises(ConfigError, match="suite.judge"):
            checked(tmp_path / "other", *judge, "suite.judge.asks=0")
        found = run_suite(checked(tmp_path / "run", *judge))
        n = len(chat.requests)
        assert {headers["Authorization"] for _, headers, _ in chat.requests} == {f"Bearer {KEY}"}
        (tmp_path / "run" / "metrics.json").unlink()
        for file in (tmp_path / "run" / "units").glob("judge-*"):
            file.unlink()
        assert run_suite(checked(tmp_path / "run", *judge)) == found and len(chat.requests) == n  # all in the cache
        (tmp_path / "run" / "metrics.json").unlink()
        monkeypatch.setattr(Judge, "rate", lambda *_: pytest.fail("asked"))
        assert run_suite(checked(tmp_path / "run", *judge)) == found
    counts = [by_model for files in found["judge"].values() for each in files.values() for by_model in each.values()]
    assert {each["items"] for each in counts} == {8} and all(each["rated"] + each["malformed"] == 8 for each in counts)
    assert sum(each["malformed"] for each in counts) > 0 and "asked" not in counts[0]
    for files in found["answers"].values():
        for by_model in files.values():
            assert {row["figures"]["judge"]["mean"] for row in by_model.values()} == {100}
    assert KEY not in capsys.readouterr().out
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or KEY not in file.read_text()


def test_a_judge_that_rejects_all_leaves_the_run_unfinished_and_some_failures_are_told(
    checked, place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    options = [*BRIEF, f"models=[{place}/one/student]", "suite.teacher_row=false", "suite.exposure=null"]
    options += ["suite.calibration.sst2.file=null", "suite.judge.model=m", "suite.judge.key_variable=JUDGE_API_KEY"]
    options += [f"suite.judge.cache_dir={tmp_path}/cache", "suite.judge.concurrency=1"]
    with serving(otherwise=lambda body: failure(400, "no such option")) as (chat, url):
        with pytest.raises(JudgeError, match="no such option.*the same command asks again"):
            run_suite(checked(tmp_path / "run", *options, f"suite.judge.base_url={url}"))
        assert not (tmp_path / "run" / "metrics.json").exists()
        chat.script[:] = [reply("4 4"), failure(400, "too long")]
        chat.otherwise = lambda body: reply("4 4")
        run_suite(checked(tmp_path / "run", *options, f"suite.judge.base_url={url}"))
    said = " ".join(capsys.readouterr().out.split())
    assert "too long" in said and "(1 of the 1 that failed)" in said


def test_mistakes_come_in_one_message_before_a_model_is_loaded(checked, world, place, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "load", lambda *_: pytest.fail("loaded"))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "label": 3}\n')
    with pytest.raises(ConfigError) as caught:
        checked(
            tmp_path / "run", f"models=[{place}/one,{place}/two/student,{place}/two/student/]", "chunk=0",
            "seeds=[1,1]", "data.max_response_tokens=32",
            f"data.files=[{tmp_path}/empty.jsonl]", "run.name=", f"suite.calibration.sst2.file={tmp_path}/labels.jsonl",
            "suite.token_rows=-1", "suite.judge.model=m", "suite.exposure.samples=0", "+suite.decodings.x=-2",
        )  # fmt: skip
    text = str(caught.value)
    assert "is for training" not in text
    for part in (
        "run.name='': wanted a relative path",
        f"models: source={place}/one: no config.json inside; did you mean {place}/one/student?",
        f"models: {place}/two/student/ is there already, as {place}/two/student; wanted each once",
        "chunk=0: wanted a positive number", "seeds=[1, 1]: wanted different", "empty.jsonl: no records",
        "label 3 has no word; words=['red', 'blue']", "suite.judge.base_url=null with suite.judge.model=m",
        "suite.exposure.samples=0",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path / "run", "suite.calibration.sst2.words=[red,nowhere]", "max_new_tokens=5000")
    text = str(caught.value)
    assert text.count("'nowhere' is unknown to the tokenizer") == 3 and text.count("2048 positions; lower them") == 3
    chat, long = tmp_path / "chat.jsonl", tmp_path / "long.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": role, "content": "the"} for role in ("system", "user")]}))
    long.write_text(json.dumps({"instruction": "the " * 300}))
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path / "run", f"data.files=[{chat},{long}]", "data.template=paper")
    text = str(caught.value)
    assert text.count("chat.jsonl:1: a conversation of several turns") == 3
    assert text.count("long.jsonl: none of 1 prompts is left") == 3
    with pytest.raises(ConfigError, match="wanted a list of different files"):
        checked(tmp_path / "run", f"data.files=[{long},{tmp_path}/../{tmp_path.name}/long.jsonl]")
    with pytest.raises(ConfigError, match="no such key; did you mean token_rows"):
        checked(tmp_path / "run", "+suite.token_row=1")


def test_a_mistake_in_the_middle_of_the_work_names_the_unit(checked, place, tmp_path, monkeypatch):
    def fails(self, unit):
        raise error

    one = f"{place}/one/student"
    options = [*BRIEF, f"models=[{one}]", "suite.teacher_row=false", "limit=4"]
    monkeypatch.setattr(Bench, "_exposure", fails)
    for error in (DataError("row 3"), NonFiniteError("kl: NaN"), ConfigError(["one", "two"]), StorageError("full")):
        with pytest.raises(type(error)) as caught:
            run_suite(checked(tmp_path / type(error).__name__, *options))
        assert str(caught.value).count(f"exposure of {one}, ") == len(getattr(error, "problems", ["one"]))
        assert "val.jsonl, chunk 1: " in str(caught.value)
    error = Interrupted("SIGTERM")
    with pytest.raises(Interrupted, match="^interrupted by SIGTERM"):
        run_suite(checked(tmp_path / "interrupted", *options))


def test_weights_that_are_not_finite_are_told_with_their_model(checked, place, tmp_path):
    network = make_model(seed=1, layers=1, dtype=torch.float32)
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    network.save_pretrained(tmp_path / "broken")
    make_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match=r"broken with teacher .*/teacher: .*broken: its logits are not finite"):
        run_suite(checked(tmp_path / "run", *BRIEF, f"models=[{tmp_path}/broken]", "suite.teacher_row=false"))


def test_a_model_of_another_vocabulary_is_refused_before_the_work(checked, place, tmp_path):
    make_model(vocabulary=33, seed=1, layers=1, dtype=torch.float32).save_pretrained(tmp_path / "other")
    other = make_tokenizer(("猫", "犬"))
    other.eos_token = "cat"
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="other with teacher .*end an answer differently"):
        checked(tmp_path / "run", f"models=[{place}/one/student,{tmp_path}/other]")
