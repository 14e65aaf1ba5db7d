"""The runs of the paper: all are there, say what was published, and train one after the other on small models."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoConfig

from minillm.common.checks import construct
from minillm.common.errors import ConfigError, ModelError
from minillm.evaluation.generation import check_generation, generate
from minillm.models import Architecture
from minillm.objectives import CrossEntropy, MiniLLM
from minillm.train.build import build
from minillm.train.regime import OnPolicy, Supervised
from minillm.train.settings import check_config
from tests.conf.test_compose import CONF
from tests.tiny import WORDS, make_tokenizer

STAGES = ["teacher", "start", "sft", "kd", "seqkd", "minillm", "minillm_nopt"]
# Student: its learning rate and epochs; the run of its teacher, learning rate and epochs. Those of the published runs;
# where there are none (the teacher of Qwen2.5, and all from Qwen3 on) what the comments of the yamls say.
PUBLISHED = {
    "gpt2_120m": (5e-4, 20, "gpt2_1b5_teacher", 5e-5, 10),
    "gpt2_340m": (1e-4, 20, "gpt2_1b5_teacher", 5e-5, 10),
    "gpt2_760m": (1e-4, 10, "gpt2_1b5_teacher", 5e-5, 10),
    "opt_1b3": (5e-5, 10, "opt_13b_teacher", 1e-5, 10),
    "opt_2b7": (5e-5, 10, "opt_13b_teacher", 1e-5, 10),
    "opt_6b7": (1e-5, 10, "opt_13b_teacher", 1e-5, 10),
    "llama_7b": (1e-5, 10, "llama_13b_teacher", 1e-5, 10),
    "qwen25_1b5": (1e-5, 10, "qwen25_7b_teacher", 1e-5, 10),
    "qwen3_0b6": (1e-5, 10, "qwen3_4b_teacher", 1e-5, 10),
    "llama32_1b": (1e-5, 10, "llama31_8b_teacher", 1e-5, 10),
}
SOURCES = {  # student and teacher before any training
    "gpt2_120m": ("openai-community/gpt2", "openai-community/gpt2-xl"),
    "gpt2_340m": ("openai-community/gpt2-medium", "openai-community/gpt2-xl"),
    "gpt2_760m": ("openai-community/gpt2-large", "openai-community/gpt2-xl"),
    "opt_1b3": ("facebook/opt-1.3b", "facebook/opt-13b"),
    "opt_2b7": ("facebook/opt-2.7b", "facebook/opt-13b"),
    "opt_6b7": ("facebook/opt-6.7b", "facebook/opt-13b"),
    "llama_7b": ("huggyllama/llama-7b", "huggyllama/llama-13b"),
    "qwen25_1b5": ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"),
    "qwen3_0b6": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"),
    "llama32_1b": ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B"),
}
EXPERIMENTS = [(student, stage) for student in PUBLISHED for stage in STAGES]


def stage_of(pair, recipe, *overrides):
    """As `python train.py recipe=<recipe> pair=<pair>`, in the working directory."""
    words = [f"recipe={recipe}", f"pair={pair}", "run.dir=runs/${run.name}", "logger=csv", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", words)


@pytest.mark.some(4)
@pytest.mark.parametrize(("student", "stage"), EXPERIMENTS)
def test_every_stage_is_what_was_published(student, stage):
    cfg = stage_of(student, stage)
    made = check_config(cfg)
    rate, epochs, teacher_run, teacher_rate, teacher_epochs = PUBLISHED[student]
    own, teacher = SOURCES[student]
    trained = f"runs/{teacher_run}/student"
    answers = f"runs/{teacher_run.removesuffix('_teacher')}_answers/answers.jsonl"
    optim, regime = made.optim, made.regime
    assert cfg.run.name == (teacher_run if stage == "teacher" else f"{student}_{stage}")
    assert made.callbacks["checkpoints"].monitor == ("loss" if stage == "start" else "rouge_l")
    assert made.data.train_file == (answers if stage == "seqkd" else "databricks/databricks-dolly-15k")
    assert (made.data.val_file, made.data.val_size) == ("databricks/databricks-dolly-15k", 1000)
    assert (made.data.max_prompt_tokens, made.data.longest, made.data.block_size) == (256, 512, 512)
    assert made.data.template == ("chat" if student == "qwen3_0b6" else "paper")
    assert optim.grad_clip == 1.0 and optim.eps == 1e-8 and made.start.steps == 0
    if "minillm" in stage:
        assert (made.model.student.source, made.model.teacher.source) == (f"runs/{student}_start/student", trained)
        assert (optim.learning_rate, optim.schedule, optim.warmup_steps, tuple(optim.betas), optim.weight_decay) == (
            5e-6, "constant", 100, (0.9, 0.95), 1e-6
        )  # fmt: skip
        assert isinstance(regime, OnPolicy) and isinstance(made.objective, MiniLLM)
        assert (regime.rollouts, regime.minibatch_size, regime.inner_epochs, regime.max_steps) == (256, 64, 4, 5000)
        assert made.sampler.alpha == 0.2 and made.regulariser.coefficient == (0.0 if stage == "minillm_nopt" else 1.0)
        return
    first, last = (teacher_rate, teacher_epochs) if stage == "teacher" else (rate, epochs)
    assert (optim.learning_rate, optim.schedule, optim.min_learning_rate) == (first, "cosine", 1e-7)
    assert (optim.warmup_steps, tuple(optim.betas), optim.weight_decay) == (0, (0.9, 0.999), 1e-2)
    assert isinstance(regime, Supervised) and isinstance(made.objective, CrossEntropy) and not made.regulariser.on
    assert (regime.minibatch_size, regime.epochs, regime.max_steps) == (32, last, None)
    assert made.model.student.source == (teacher if stage == "teacher" else own)
    assert (made.model.teacher and made.model.teacher.source) == (trained if "kd" in stage else None)
    assert made.objective.kd_ratio == (0.5 if "kd" in stage else 0.0)


def test_all_are_there_and_a_stage_is_a_recipe():
    there = {file.stem for file in CONF.glob("pair/*.yaml")}
    assert len(EXPERIMENTS) == 70 and there == {*PUBLISHED, "llama_7b_lora", "narrow", "smollm2", "base", "own"}
    assert {file.stem for file in CONF.glob("recipe/*.yaml")} == {*STAGES, "opd", "opsd", "context", "spans"}


@pytest.mark.some(2)
@pytest.mark.parametrize("student", [*PUBLISHED, "narrow", "smollm2"])
def test_without_a_corpus_none_is_read(student):
    files = ["data.train_file=a.jsonl", "data.val_file=b.jsonl"]
    on, off = (check_config(stage_of(student, stage, *files)) for stage in ("minillm", "minillm_nopt"))
    assert on.regulariser.on and not off.regulariser.on


def test_what_was_published_for_adapters():
    sft, start, minillm = (check_config(stage_of("llama_7b_lora", stage)) for stage in ("sft", "start", "minillm"))
    for made in (sft, start):
        assert (made.optim.learning_rate, made.regime.epochs) == (5e-4, 20)
    assert (minillm.optim.learning_rate, minillm.regime.minibatch_size) == (5e-6, 256)
    assert all(made.model.lora.rank == 16 for made in (sft, start, minillm))
    assert minillm.model.student.source == "runs/llama_7b_lora_start/student"


@pytest.mark.parametrize("folder", ["experiment", "recipe", "pair", "model", "checkpoint"])
def test_sizes_are_global(folder):
    """How many devices there are is said in conf/strategy/ and nowhere else; they change nothing but speed."""
    for file in CONF.glob(f"{folder}/*.yaml"):
        text = re.sub("#.*", "", file.read_text())
        assert not re.search("device|node|strategy|world|rank|accumulat|gpu", text.lower()), file


def test_what_a_user_changes_in_an_experiment():
    own = ["model.student=other/place", "model.teacher.source=owner/teacher", "model.teacher.offload=true"]
    own += ["regime.minibatch_size=256", "objective=reference", "regulariser=pretrain", "data=builtin"]
    made = check_config(stage_of("gpt2_120m", "minillm", *own))
    assert made.model.student.source == "other/place" and made.model.student.architecture is None
    assert made.model.teacher.source == "owner/teacher" and made.model.teacher.architecture.layers == 48
    assert made.model.teacher.offload and made.objective.gamma == 0.95 and made.regulariser.kd_ratio == 0.0
    assert made.regime.minibatch_size == 256 and made.data.val_file == "builtin:validation"
    assert check_config(stage_of("gpt2_120m", "sft", "model.student=a/b")).model.student.source == "a/b"
    assert check_config(stage_of("gpt2_120m", "seqkd")).objective.kd_ratio == 0.5


# -- all seven stages of a pair in a row, on random models of the same families ------------------------------------


def shrink(stated: Architecture) -> Architecture:
    """Depth, grouped heads, tied or own head, an own head width and unequal padding of vocabularies are kept apart."""
    return replace(
        stated,
        layers=2 if stated.layers > 30 else 1,
        width=16,
        heads=4,
        kv_heads=2 if stated.kv_heads < stated.heads else 4,
        ffn=32,
        vocabulary=40 + (stated.vocabulary == 152064),
        head_dim=8 if stated.head_dim else None,
    )


def on_small_models(cfg, folder):
    """Hub models become random ones of the same family; what earlier stages wrote stays where the experiment says."""
    for node in filter(None, (cfg.model.student, cfg.model.teacher)):
        small = shrink(construct(OmegaConf.to_container(node.architecture)))
        for name in ("layers", "width", "heads", "kv_heads", "ffn", "vocabulary", "head_dim"):
            OmegaConf.update(node.architecture, name, getattr(small, name), force_add=True)
        if not node.source.startswith("runs/"):
            place = folder / node.source.replace("/", "--")
            if not place.exists():
                torch.manual_seed(len(node.source))
                small.random_model().save_pretrained(place)
                make_tokenizer().save_pretrained(place)
            node.source = str(place)
    return cfg


@pytest.fixture
def data(tmp_path):
    rows = [
        {"instruction": f"{WORDS[i]} {WORDS[i + 3]}", "input": "", "output": f"{WORDS[i + 1]} {WORDS[i + 2]}"}
        for i in range(8)
    ]
    for name, part in (("train", rows[:6]), ("val", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "corpus.txt").write_text(" ".join(WORDS * 4))
    return tmp_path


SMALL = {
    "all": ["data.val_file=val.jsonl", "data.corpus_file=corpus.txt", "data.block_size=8", "trainer.precision=32-true",
            "model.dtype=float32", "callbacks.validation.max_new_tokens=4", "callbacks.validation.batch_size=2",
            "preflight=false"],
    Supervised: ["regime.epochs=null", "regime.max_steps=2", "regime.minibatch_size=2", "regime.microbatch_size=1"],
    OnPolicy: ["regime.rollouts=2", "regime.minibatch_size=2", "regime.max_steps=2", "sampler.max_new_tokens=4"],
}  # fmt: skip


def let_answer(teacher_run, chat):
    """As the README says to between KD and SeqKD."""
    template = (
        ["data.template=chat", "+data.template_arguments.enable_thinking=false"] if chat else ["data.template=paper"]
    )
    name = teacher_run.replace("_teacher", "_answers")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("generate", [f"teacher=runs/{teacher_run}/student", "data.file=train.jsonl", f"run.name={name}",
                                   f"run.dir=runs/{name}", "max_new_tokens=4", *template])  # fmt: skip
    assert generate(check_generation(cfg)).exists()


@pytest.mark.slow
@pytest.mark.parametrize("student", PUBLISHED)
def test_all_stages_of_a_pair_train_in_a_row(student, data, monkeypatch):
    monkeypatch.chdir(data)
    for stage in STAGES:
        if stage == "seqkd":
            let_answer(PUBLISHED[student][2], chat=student == "qwen3_0b6")
        regime = OnPolicy if "minillm" in stage else Supervised
        sizes = [*SMALL["all"], *SMALL[regime]] + ["regulariser.batch_size=2"] * (stage == "minillm")
        files = [] if stage == "seqkd" else ["data.train_file=train.jsonl"]
        cfg = on_small_models(stage_of(student, stage, *sizes, *files), data / "hub")
        run = build(check_config(cfg))
        run.trainer.fit(run.module, run.datamodule)
        assert run.module.step == 2
        with open(f"runs/{cfg.run.name}/metrics.csv", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["train/loss"]]
        assert rows and all(math.isfinite(float(row["train/loss"])) for row in rows)
        assert all(float(row["optim/grad_norm"]) > 0 for row in rows)
        assert ("train/pretrain" in rows[0]) == (stage == "minillm")
        made = AutoConfig.from_pretrained(f"runs/{cfg.run.name}/student")
        assert Architecture.of(made) == construct(OmegaConf.to_container(cfg.model.student.architecture))
        assert (run.module.pair.teacher is None) == (stage in ("teacher", "start", "sft"))


def test_what_an_earlier_stage_left_is_looked_for_and_compared(data, monkeypatch):
    monkeypatch.chdir(data)
    cfg = on_small_models(stage_of("gpt2_120m", "kd", *SMALL["all"], "data.train_file=train.jsonl"), data / "hub")
    with pytest.raises(ConfigError, match=r"model.teacher.source=runs/gpt2_1b5_teacher/student: no such file"):
        build(check_config(cfg))
    # The shape of the student stands where the teacher's should be.
    shutil.copytree(cfg.model.student.source, data / "runs" / "gpt2_1b5_teacher" / "student")
    with pytest.raises(ModelError, match=r"runs/gpt2_1b5_teacher/student is not of the .*layers: 2 stated, 1 found"):
        build(check_config(cfg))
