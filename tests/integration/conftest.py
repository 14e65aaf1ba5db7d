"""A tiny pair, prompts and a corpus on disk, as a user would have them."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir

from minillm.evaluation.suite import check_suite, run_suite
from tests.conf.test_compose import CONF
from tests.integration.evaluations import BRIEF, command, options
from tests.tiny import WORDS, make_model, make_tokenizer, write_texts


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name, seed, layers in (("student", 1, 1), ("teacher", 2, 2)):
        make_model(seed=seed, layers=layers, dtype=torch.float32).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    write_texts(folder)
    return folder


@pytest.fixture(scope="session")
def overrides(world):
    """A run of 3 rollouts with 2 optimizer steps each, after 2 supervised steps; its page is test_preflight_page's."""
    return [
        f"model.student={world}/student", f"model.teacher={world}/teacher", "model.dtype=float32",
        f"data.train_file={world}/train.jsonl", f"data.val_file={world}/val.jsonl",
        f"data.corpus_file={world}/corpus.txt",
        "data.block_size=8", "data.template=chat", "sampler.max_new_tokens=6", "regime.rollouts=4",
        "regime.minibatch_size=2", "regime.microbatch_tokens=64", "regime.inner_epochs=1", "regime.max_steps=6",
        "regulariser.batch_size=3", "start.steps=2", "start.minibatch_size=2", "start.learning_rate=1e-3",
        "optim.learning_rate=1e-3", "optim.warmup_steps=2", "callbacks.validation.every=2",
        "callbacks.validation.max_new_tokens=6", "callbacks.checkpoints.every=2",
        "callbacks.checkpoints.monitor=reverse_kl", "preflight=false", "callbacks.report=null",
    ]  # fmt: skip


SUPERVISED = [
    "regime=supervised", "objective=sft", "regulariser=none", "start.steps=0", "regime.minibatch_size=4",
    "regime.microbatch_size=2", "regime.epochs=null", "regime.max_steps=5",
]  # fmt: skip


@pytest.fixture(scope="session")
def supervised(overrides):
    absent = ("regime.rollouts", "regime.microbatch_tokens", "regime.inner_epochs")
    ours = {key.split("=")[0] for key in SUPERVISED}
    return SUPERVISED + [key for key in overrides if not key.startswith(absent) and key.split("=")[0] not in ours]


@pytest.fixture(scope="session")
def place(world, tmp_path_factory):
    """Two students and a teacher, 12 and 5 prompts, 7 labelled rows."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("one", "two"):
        make_model(seed=1 if name == "one" else 4, layers=1, dtype=torch.float32).save_pretrained(
            folder / name / "student"
        )
        make_tokenizer().save_pretrained(folder / name / "student")
    rows = [{"text": f"{WORDS[i]} {WORDS[i + 1]}", "label": i % 2} for i in range(7)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def checked(world, place):
    def make(run_dir, *more):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return check_suite(compose("evaluate", options(world, place, run_dir, *more)))

    return make


@pytest.fixture(scope="session")
def whole(checked, tmp_path_factory):
    """The directory of an undisturbed run; tests copy it before they change it."""
    run_dir = tmp_path_factory.mktemp("whole")
    run_suite(checked(run_dir))
    return run_dir


@pytest.fixture(scope="session")
def brief(checked, tmp_path_factory):
    """The same with few prompts, one seed and one decoding."""
    run_dir = tmp_path_factory.mktemp("brief")
    run_suite(checked(run_dir, *BRIEF))
    return run_dir


@pytest.fixture(scope="session")
def undisturbed(world, place, tmp_path_factory):
    """By the command, with as many threads: they decide how sums are rounded."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = command(world, place, run_dir, *BRIEF)
    assert process.wait() == 0, process.stderr
    return run_dir
