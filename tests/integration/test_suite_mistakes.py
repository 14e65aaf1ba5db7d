"""The whole evaluation with a judge, and with mistakes, which are told before any work."""

import json

import pytest
import torch

import minillm.evaluation.suite.run
from minillm.common.errors import ConfigError, DataError, JudgeError, ModelError
from minillm.evaluation.suite import run_suite
from minillm.evaluation.suite.work import Bench
from minillm.models import Checkpoint
from tests.chat_server import KEY, failure, reply, serving
from tests.integration.evaluations import ALONE
from tests.tiny import make_model, make_tokenizer


@pytest.fixture
def judge(place, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    judge = [*ALONE, f"models=[{place}/one/student]", "suite.judge.model=m", "suite.judge.key_variable=JUDGE_API_KEY"]
    return [*judge, f"suite.judge.cache_dir={tmp_path}/cache", "suite.judge.concurrency=1", "suite.judge.retries=0"]


def test_a_judge_is_added_asked_again_and_its_key_is_in_no_file(checked, judge, tmp_path, capsys):
    judge, run = [*judge, "seeds=[1,2]"], tmp_path / "run"
    run_suite(checked(run, *ALONE, *judge[-1:]))
    with serving(reply("I cannot."), failure(400, "too long"), otherwise=lambda body: reply("4 4")) as (chat, url):
        judge.append(f"suite.judge.base_url={url}")
        with pytest.raises(ConfigError, match="suite.judge"):
            checked(run, *judge, "suite.judge.asks=0")
        found = run_suite(checked(run, *judge, "suite.judge.asks=1"))
        assert {headers["Authorization"] for _, headers, _ in chat.requests} == {f"Bearer {KEY}"}
        counts = _counts(found)
        assert counts["items"] == 16 == counts["rated"] + 2 and (counts["malformed"], counts["failed"]) == (1, 1)
        assert "asked" not in counts and "too long" in capsys.readouterr().out
        n = len(chat.requests)
        again = run_suite(checked(run, *judge, "suite.judge.asks=2"))
        assert _counts(again)["rated"] == 16 and len(chat.requests) == n + 2  # only what had no scores
        # Made again, or with fewer asks: what is in the cache counts, and nothing is sent.
        (run / "metrics.json").unlink()
        assert run_suite(checked(run, *judge, "suite.judge.asks=2")) == again
        assert run_suite(checked(run, *judge, "suite.judge.asks=1"))["judge"] == again["judge"]
        assert len(chat.requests) == n + 2
    for by_model in again["answers"]["plain"].values():
        assert {row["figures"]["judge"]["mean"] for row in by_model.values()} == {100}
    assert KEY not in capsys.readouterr().out
    assert not [file for file in run.rglob("*") if file.is_file() and KEY in file.read_text()]


def _counts(found):
    every = [each for by_model in found["judge"]["plain"].values() for each in by_model.values()]
    return {name: sum(each[name] for each in every) for name in every[0]}


def test_a_judge_that_rejects_all_leaves_the_run_unfinished(checked, judge, tmp_path, monkeypatch):
    """And the first of several processes alone asks it."""
    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    with serving(otherwise=lambda body: failure(400, "no such option")) as (chat, url):
        suite = checked(tmp_path / "run", *judge, f"suite.judge.base_url={url}", "suite.judge.give_up=2")
        with monkeypatch.context() as patch:
            patch.setattr(minillm.evaluation.suite.run, "rank", lambda: 1)
            run_suite(suite)
        assert not chat.requests
        with pytest.raises(JudgeError, match="no such option.*the same command asks again"):
            run_suite(suite)
        assert not (tmp_path / "run" / "metrics.json").exists()


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
        f"{place}/two/student/']: wanted each once",
        "chunk=0: wanted a positive number", "seeds=[1, 1]: wanted different", "empty.jsonl: no records",
        "wanted an integer from 0 to 1 (words=['red', 'blue']), got 3",
        "suite.judge.base_url=null, but suite.judge.model is given", "suite.exposure.samples=0",
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


def test_a_mistake_in_the_middle_of_the_work_names_the_unit(checked, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "_answers", lambda *_: (_ for _ in ()).throw(DataError("row 3")))
    with pytest.raises(DataError, match="^row 3$"):
        run_suite(checked(tmp_path, *ALONE, f"models=[{place}/one/student]"))
    said = "".join(capsys.readouterr().out.split())
    assert f"answersof{place}/one/student," in said and "val.jsonl,plain,chunk1:failed." in said


def test_weights_that_are_not_finite_are_told_with_their_model(checked, place, tmp_path):
    network = make_model(seed=1, layers=1, dtype=torch.float32)
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    network.save_pretrained(tmp_path / "broken")
    make_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="broken: its logits are not finite"):
        run_suite(checked(tmp_path / "run", *ALONE, f"models=[{tmp_path}/broken]"))


def test_a_model_of_another_vocabulary_is_refused_before_the_work(checked, place, tmp_path):
    make_model(vocabulary=33, seed=1, layers=1, dtype=torch.float32).save_pretrained(tmp_path / "other")
    other = make_tokenizer(("猫", "犬"))
    other.eos_token = "cat"
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="other with teacher .*end an answer differently"):
        checked(tmp_path / "run", f"models=[{place}/one/student,{tmp_path}/other]")
