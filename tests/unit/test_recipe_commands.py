"""The chain's commands: values arrive as they are, and every local file that a stage reads is one of its inputs."""

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from minillm.chain import stages_of, with_settings
from tests.conf.test_compose import CONF

SYSTEM = "Tu es \u00e9l\u00e8ve.\nSay \"yes\", don't say 'no' = [a, {b: c}] \\\\ #"
PLAIN = {
    "pair": "narrow", "model": {"student": None, "teacher": None}, "seeds": [0], "methods": ["sft", "kd", "seqkd"],
    "teacher": None, "tests": ["t.jsonl"],
    "test_seeds": [10, 20], "answer_tokens": None, "answer_limit": None, "test_tokens": None, "test_limit": 7,
    "test_batch_size": 64, "overrides": [], "teacher_overrides": [], "run": {"name": "x", "dir": "runs/x"},
}  # fmt: skip
DATA = {
    "train_file": "a.jsonl", "val_file": "b.jsonl", "template": "chat", "max_prompt_tokens": 24, "system": None,
    "bos": None, "date": None, "template_arguments": {},
}  # fmt: skip


def values(stage):
    words = OverridesParser.create().parse_overrides([word for word in stage.command if "=" in word])
    return {each.key_or_group: each.value() for each in words}


def test_text_and_paths_arrive_as_they_are():
    folder = "/data/my files (\u00e9), [1]=a's/{x}"
    plain = PLAIN | {"tests": [f"{folder}/t.jsonl"], "run": {"name": "x", "dir": folder}}
    arguments = {"enable_thinking": False, "date": SYSTEM, "tools": {"names": ["a b", SYSTEM]}}
    data = DATA | {"train_file": f"{folder}/a.jsonl", "system": SYSTEM, "template_arguments": arguments}
    found = {stage.name: values(stage) for stage in stages_of(plain, data, 32)}
    teacher = f"{folder}/teacher/student"
    assert found["answers"] | {"teacher": teacher, "data.file": f"{folder}/a.jsonl"} == found["answers"]
    assert found["test"] | {"teacher": teacher, "data.files": plain["tests"], "limit": 7} == found["test"]
    assert found["test"]["models"] == [teacher, *(f"{folder}/{name}-0/student" for name in plain["methods"])]
    for name in ("answers", "test"):
        assert found[name]["data.system"] == SYSTEM and found[name]["data.template_arguments.date"] == SYSTEM
        assert found[name]["data.template_arguments.enable_thinking"] is False
        assert found[name]["data.template_arguments.tools.names"] == ["a b", SYSTEM]
    assert found["answers"]["limit"] is None
    assert found["seqkd-0"]["data.train_file"] == f"{folder}/answers/answers.jsonl"
    assert found["kd-0"]["model.teacher.source"] == teacher


def planned(plain, run_dir):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = with_settings(stages_of(plain | {"run": {"name": "x", "dir": str(run_dir)}}, DATA, 32), run_dir)
    return {stage.name: stage for stage in found}


def test_every_local_file_is_an_input(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir = tmp_path / "run"
    (run_dir / "task").mkdir(parents=True)  # in the chain's directory, but no stage's
    for name in ("train.jsonl", "teacher.gguf", "corpus.txt", "run/task/val.jsonl", "config.json"):
        (tmp_path / name).touch()
    (tmp_path / "tokenizer").mkdir()
    keys = ["train_file='~/train.jsonl'", f"val_file={run_dir}/task/val.jsonl", "corpus_file='~/corpus.txt'"]
    plain = PLAIN | {
        "methods": ["sft", "kd"],
        "teacher": "~/teacher.gguf",
        "overrides": [*(f"data.{key}" for key in keys), "pair.student.tokenizer='~/tokenizer'"],
    }
    found = planned(plain, run_dir)
    files = {"~/train.jsonl", f"{run_dir}/task/val.jsonl", "~/tokenizer"}
    assert set(found["sft-0"].reads) == files  # it trains on no corpus
    assert set(found["kd-0"].reads) == files | {"~/teacher.gguf"}
    assert {"~/teacher.gguf", "sft-0", "kd-0"} <= set(found["test"].reads)

    (run_dir / "start-0" / "student").mkdir(parents=True)
    plain |= {"methods": ["minillm"], "overrides": [f"data.{key}" for key in keys]}
    found = planned(plain | {"teacher_overrides": [f"model.teacher.adapter={tmp_path}"]}, run_dir)["minillm-0"]
    assert set(found.reads) == {
        "~/teacher.gguf", "start-0", "~/train.jsonl", f"{run_dir}/task/val.jsonl", "~/corpus.txt", str(tmp_path),
    }  # fmt: skip
    assert found.settings["model"]["student"] == f"{run_dir}/start-0/student"
