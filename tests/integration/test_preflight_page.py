"""The page in a run: it changes no number, is written once, and a pair that cannot work stops before it."""

import logging
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import minillm.common.machine
from minillm.common.errors import MinillmError, ModelError
from minillm.train.build import build
from minillm.train.preview.begin import Preview
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model, make_tokenizer


@pytest.fixture(scope="session")
def overrides(overrides):
    return [*overrides, "preflight=true"]


def prepared(run_dir, overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "logger=csv", f"run.dir={run_dir}", "run.name=test"])
    run = build(check_config(cfg))
    run.module.trainer = run.trainer
    run.trainer.strategy.connect(run.module)
    for callback in run.trainer.callbacks:
        if isinstance(callback, Preview):
            callback.on_fit_start(run.trainer, run.module)
    return run


def save(folder, *, tokenizer=None, **options):
    make_model(dtype=torch.float32, **options).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def test_the_page_changes_no_number_of_the_run(tmp_path, overrides):
    on, off = (train(tmp_path / value, [*overrides, f"preflight={value}"]) for value in ("true", "false"))
    mine, theirs = on.module.state_dict(), off.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert rows(tmp_path / "true") == rows(tmp_path / "false")
    for sample in ("raw.jsonl", "step_6.jsonl"):
        texts = [(tmp_path / value / "samples" / sample).read_text() for value in ("true", "false")]
        assert texts[0] == texts[1]
    assert not list((tmp_path / "false").glob("preflight*"))


def test_memory_is_counted_with_the_precision_that_was_chosen(tmp_path, overrides, monkeypatch):
    def update(name, *options):
        prepared(tmp_path / name, [*overrides, *options])
        page = (tmp_path / name / "preflight.md").read_text().splitlines()
        return [line for line in page if line.startswith("| update")]

    full, half = update("full"), update("half", "trainer.precision=bf16-mixed")
    monkeypatch.setattr(minillm.common.machine, "has_bfloat16", lambda device: True)
    assert update("auto", "trainer.precision=auto") == half != full


def test_the_page_is_of_this_run(tmp_path, overrides, capsys):
    prepared(tmp_path / "run", overrides)
    page = (tmp_path / "run" / "preflight.md").read_text()
    source = overrides[0].split("=")[1]
    assert f"| source | {source} |" in page and "| model | llama, 1 layers" in page
    assert "| training | 12 of 12 prompts" in page and "| validation | 5 of 5 prompts" in page
    assert " blocks of 8 tokens" in page and "on 8 answers of the student" in page
    screen = " ".join(capsys.readouterr().out.split())
    assert "| time | about " in page and "rollouts " in page and "validation " in page
    assert "Preflight" in screen and "2 supervised, then 6 optimizer steps of 2 answers, in 3 rollouts of 4" in screen


def test_a_resumed_run_keeps_the_page_of_its_beginning(tmp_path, overrides, capsys):
    with pytest.raises(Killed):
        train(tmp_path, overrides, kill_after=2)
    (tmp_path / "preflight.md").write_text("of the beginning")
    capsys.readouterr()
    train(tmp_path, overrides, resume="auto")
    assert "Preflight" not in capsys.readouterr().out
    assert (tmp_path / "preflight.md").read_text() == "of the beginning"


def test_without_the_page_its_warnings_are_logged(tmp_path, overrides, capsys, caplog):
    with caplog.at_level(logging.WARNING, logger="minillm.train.preview.begin"):
        prepared(tmp_path, [*overrides, "regime.rollouts=20", "preflight=false"])
    assert "12 training prompts for rounds of 20" in caplog.text and "Preflight" not in capsys.readouterr().out


def test_a_monitor_that_needs_references_is_told_where_they_are_missing(tmp_path, world, overrides):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "fish bird"}\n')
    page = tmp_path / "run" / "preflight.md"
    monitored = [*overrides, f"data.val_file={bare}", "callbacks.checkpoints.monitor=rouge_l"]
    prepared(tmp_path / "run", monitored)
    assert "Rouge-L is against the teacher's greedy answers" in page.read_text()
    (tmp_path / "run" / "config.yaml").unlink()
    prepared(tmp_path / "run", [*monitored, "callbacks.record.export=last"])
    assert "Rouge-L" not in page.read_text()


def reordered(words, eos="</s>"):
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, unk_token="<unk>")


def words():
    vocabulary = make_tokenizer().get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def other_tokenizer(tmp_path):
    swapped = {"cat": "dog", "dog": "cat"}
    return save(tmp_path / "other", tokenizer=reordered([swapped.get(word, word) for word in words()]))


def other_end(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "cat"
    return save(tmp_path / "end", tokenizer=tokenizer)


def other_words_and_end(tmp_path):
    """As of another family."""
    return save(tmp_path / "family", tokenizer=reordered(words()[::-1], eos="tree"))


def no_template(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    return save(tmp_path / "base", tokenizer=tokenizer)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("side", "make", "texts"),
    [
        (
            "teacher",
            other_tokenizer,
            ["2 of the first 31 tokens differ", "'cat' and 'dog'", "31 tokens, 31 rows", "one family"],
        ),
        ("teacher", other_end, ["'</s>' (id 0) and 'cat'", "agree on eos_token"]),
        ("teacher", other_words_and_end, ["tokens differ", "end an answer differently"]),
        ("student", no_template, ["data.template=chat: this tokenizer has no chat template; set data.template=paper"]),
    ],
)
def test_a_pair_that_cannot_work_stops_with_what_to_change(tmp_path, overrides, side, make, texts):
    run_dir = tmp_path / "run"
    with pytest.raises(MinillmError) as caught:
        prepared(run_dir, [*overrides, f"model.{side}={make(tmp_path)}"])
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    assert not run_dir.exists()  # the name is free for another try


def test_a_model_that_is_refused_before_the_first_step_leaves_the_name_free(tmp_path, overrides, monkeypatch):
    monkeypatch.setattr("minillm.rollout.consistency._exceeds", lambda *_: True)
    with pytest.raises(ModelError, match="decoding and training are two models"):
        train(tmp_path / "run", overrides)
    assert not list((tmp_path / "run").iterdir())
    monkeypatch.undo()
    prepared(tmp_path / "run", overrides)


def test_padded_vocabularies_work_and_are_told(tmp_path, overrides):
    teacher = save(tmp_path / "padded", vocabulary=40)
    prepared(tmp_path / "run", [*overrides, f"model.teacher={teacher}"])
    page = (tmp_path / "run" / "preflight.md").read_text()
    assert "| tokens | 31 in 31 rows | 31 in 40 rows, 9 cut |" in page


def test_a_teacher_without_a_template_is_told(tmp_path, overrides):
    teacher = no_template(tmp_path)
    prepared(tmp_path / "run", [*overrides, f"model.teacher={teacher}"])
    page = (tmp_path / "run" / "preflight.md").read_text()
    assert "- The teacher has no chat template" in page


def test_a_prompt_file_with_nothing_left_stops_with_what_to_change(tmp_path, world, overrides):
    shutil.copy(world / "val.jsonl", tmp_path / "same.jsonl")
    for options, reason in (
        (["data.max_prompt_tokens=2"], "none of 12 prompts is left (12 longer than 2 tokens); change data.max_prompt"),
        ([f"data.train_file={tmp_path}/same.jsonl"], "none of 5 prompts is left (5 also a validation prompt)"),
    ):
        with pytest.raises(MinillmError) as caught:
            prepared(tmp_path / "run", [*overrides, *options])
        assert f"training prompts: {reason}" in str(caught.value) and not (tmp_path / "run").exists()
