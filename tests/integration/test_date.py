"""A chat template that writes the day: one date in a run, in an evaluation, in a teacher's answers, in a chain."""

import datetime
import json
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoTokenizer

import minillm.data.sources
import minillm.evaluation.suite.run
from minillm.chain import stages_of
from minillm.common.errors import ConfigError
from minillm.common.stored import read_config
from minillm.data import Sources
from minillm.evaluation.generation import check_generation, generate
from minillm.evaluation.suite import check_suite, run_suite
from minillm.experiments.stages import begun_on
from tests.conf.test_compose import CONF, composed
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model
from tests.tokenizers import CHAT, byte_level

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHAT


@pytest.fixture
def day(monkeypatch):
    """Sets the day on which commands begin."""

    def begin_on(text):
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(text)

        monkeypatch.setattr(minillm.data.sources, "datetime", SimpleNamespace(date=Day))

    begin_on("2024-02-28")
    return begin_on


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dated")
    for name, seed in (("student", 1), ("teacher", 2)):
        make_model(vocabulary=260, seed=seed, layers=1, dtype=torch.float32).save_pretrained(folder / name)
        tokenizer = byte_level()
        tokenizer.chat_template = DATED
        tokenizer.save_pretrained(folder / name)
    for name, first, n in (("train", 0, 8), ("val", 8, 4)):
        lines = [json.dumps({"instruction": f"Say {i}", "output": f"ok {i}"}) for i in range(first, first + n)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def run_of(dated, overrides):
    """The options of a run on the dated pair."""
    files = [f"data.train_file={dated}/train.jsonl", f"data.val_file={dated}/val.jsonl"]
    pair = [f"model.student={dated}/student", f"model.teacher={dated}/teacher"]
    return [*overrides, *pair, *files, "regulariser=none", "sampler.max_new_tokens=4"]


def job(config, *options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*options, "run.name=test"])


def evaluation(dated, run_dir, *more):
    asked = [f"data.files=[{dated}/val.jsonl]", f"models=[{dated}/student]", f"run.dir={run_dir}"]
    return check_suite(job("evaluate", *asked, "seeds=[1]", "max_new_tokens=3", "chunk=2", *more))


def first_prompt(dated, run):
    return AutoTokenizer.from_pretrained(dated / "student").decode(run.datamodule.train_prompts.prompt_ids[0])


def test_a_run_keeps_its_date_when_it_goes_on(tmp_path, dated, run_of, day):
    whole = train(tmp_path / "whole", run_of)
    assert first_prompt(dated, whole).startswith("28 Feb 2024\n")
    with pytest.raises(Killed):
        train(tmp_path / "cut", run_of, kill_after=2)
    assert read_config(tmp_path / "cut" / "config.yaml")["data"]["date"] == "2024-02-28"
    day("2024-02-29")
    resumed = train(tmp_path / "cut", run_of, resume="auto")
    assert first_prompt(dated, resumed).startswith("28 Feb 2024\n")
    mine, theirs = resumed.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    with pytest.raises(ConfigError, match="data.date='2024-02-29': the run was made with '2024-02-28'"):
        train(tmp_path / "cut", [*run_of, "data.date=2024-02-29"], resume="auto")


def test_a_template_without_a_date_gets_none(tmp_path, overrides):
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=1)
    assert read_config(tmp_path / "config.yaml")["data"]["date"] is None


def test_another_template_is_named_and_not_the_file(tmp_path, dated, run_of, day):
    tokenizer = byte_level()
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path / "tokens")
    student = make_model(vocabulary=260, seed=1, layers=1, dtype=torch.float32)
    student.save_pretrained(tmp_path / "tokens")
    options = [*run_of, f"model.student={tmp_path}/tokens"]
    with pytest.raises(Killed):
        train(tmp_path / "run", options, kill_after=2)
    tokenizer.chat_template = "New: " + DATED
    tokenizer.save_pretrained(tmp_path / "tokens")
    with pytest.raises(ConfigError, match="another chat template than the run"):
        train(tmp_path / "run", options, resume="auto")


def test_an_evaluation_keeps_its_date_and_its_units_depend_on_it(tmp_path, dated, day):
    run_suite(suite := evaluation(dated, tmp_path / "whole"))
    assert suite.sources.date == suite.settings["data"]["date"] == "2024-02-28"
    run_suite(evaluation(dated, tmp_path / "cut"))
    (tmp_path / "cut" / "metrics.json").unlink()
    gone = next(file for file in (tmp_path / "cut" / "units").iterdir() if file.name.startswith("answers"))
    gone.unlink()
    day("2024-02-29")
    run_suite(evaluation(dated, tmp_path / "cut"))
    for name in ("answers.jsonl", "metrics.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    run_suite(evaluation(dated, tmp_path / "later"))
    units = [{file.name for file in (tmp_path / name / "units").glob("answers*")} for name in ("whole", "later")]
    assert units[0] and not units[0] & units[1]


def test_answers_of_a_teacher_keep_their_date(tmp_path, dated, day, monkeypatch):
    def work():
        file, teacher = f"data.file={dated}/train.jsonl", f"teacher={dated}/teacher"
        options = ("max_new_tokens=4", "chunk=3", "batch_size=3", f"run.dir={tmp_path}")
        return check_generation(job("generate", teacher, file, *options))

    monkeypatch.setattr(minillm.evaluation.suite.run, "started_processes", lambda: 2)
    assert generate(work()) is None  # half of the units
    made = {file.name for file in (tmp_path / "units").iterdir()}
    day("2024-02-29")
    monkeypatch.setattr(minillm.evaluation.suite.run, "rank", lambda: 1)
    assert generate(work()) is not None
    assert json.loads((tmp_path / "settings.json").read_text())["data"]["date"] == "2024-02-28"
    units = {file.name for file in (tmp_path / "units").iterdir()}
    assert made < units and len(units) == 3  # of the same name, and so of the same date


def test_the_note_names_the_date_that_a_model_was_trained_with(tmp_path, dated, run_of, day):
    train(tmp_path / "run", [*run_of, "callbacks.checkpoints.every=null", "regime.max_steps=2"])
    day("2024-02-29")
    options = (f"models=[{tmp_path}/run/student]", f"data.files=[{dated}/val.jsonl]", "seeds=[1]", "max_new_tokens=3")
    (note,) = check_suite(job("evaluate", *options, f"run.dir={tmp_path}/eval")).notes
    assert note.endswith("to change that give data.date='2024-02-28'")


def test_all_stages_of_a_chain_have_one_date(tmp_path):
    with initialize_config_dir(str(CONF / "chain"), version_base="1.3"):
        cfg = compose("chain", ["pair=qwen3_0b6", f"tests=[{tmp_path}/t.jsonl]", "run.dir=runs/x", "run.name=x"])
    plain = OmegaConf.to_container(cfg, resolve=True)
    data = OmegaConf.to_container(composed("recipe=sft", "pair=qwen3_0b6").data, resolve=True) | {"date": "2024-02-28"}
    stages = stages_of(plain, data, 8)
    assert all("data.date='2024-02-28'" in stage.command for stage in stages)
    assert begun_on(tmp_path) is None
    settings = {"sft-0": {}, "test": {"data": {"date": "2024-02-28"}}}
    records = {name: {"command": [], "settings": each, "inputs": {}, "result": None} for name, each in settings.items()}
    (tmp_path / "chain.json").write_text(json.dumps(records))
    assert begun_on(tmp_path) == "2024-02-28"


def test_a_wrong_date_is_refused():
    for text in ("today", "2024-02-30", "28.02.2024", "20240228"):
        with pytest.raises(ConfigError, match=f"date={text}: wanted YYYY-MM-DD, or null"):
            Sources(template="chat", date=text)
