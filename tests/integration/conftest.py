"""A tiny pair, prompts and a corpus on disk, as a user would have them."""

import pytest
import torch

from tests.conftest import make_model, make_tokenizer, write_texts


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
    """A run of 3 rollouts with 2 optimizer steps each, after 2 supervised steps."""
    return [
        f"model.student={world}/student", f"model.teacher={world}/teacher", "model.dtype=float32",
        f"data.train_file={world}/train.jsonl", f"data.val_file={world}/val.jsonl",
        f"data.corpus_file={world}/corpus.txt",
        "data.block_size=8", "data.template=chat", "sampler.max_new_tokens=6", "regime.rollouts=4",
        "regime.minibatch_size=2", "regime.microbatch_tokens=64", "regime.inner_epochs=1", "regime.max_steps=6",
        "regulariser.batch_size=3", "start.steps=2", "start.minibatch_size=2", "start.learning_rate=1e-3",
        "optim.learning_rate=1e-3", "optim.warmup_steps=2", "callbacks.validation.every=2",
        "callbacks.validation.max_new_tokens=6", "callbacks.checkpoints.every=2",
        "callbacks.checkpoints.monitor=reverse_kl",
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
