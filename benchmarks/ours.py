"""MiniLLM steps of this package on the benchmark's models, inside Lightning's trainer as train.py runs them."""

import time
from types import SimpleNamespace

from benchmarks.common import DEVICE, synchronize
from benchmarks.measure import Allocated, Memory
from benchmarks.models import make_model, make_prompts

PROMPT = 32


def train(settings: dict) -> dict:
    """Seconds of each rollout with its inner epochs, alpha 0 and no corpus, and memory above the loaded models.

    Args:
        settings: n prompts, tokens an answer, rounds, inner_epochs; regime and linear_loss override their defaults,
            alpha is 0, the objective MiniLLM, `models` (names in benchmarks.models) or `shapes` (of student and
            teacher) are student and teacher there unless given; `profiled` asks the allocator for the memory, not the
            system (on a GPU it is always asked).
    """
    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    from minillm.common.machine import tune
    from minillm.common.types import PromptBatch, TrainBatch
    from minillm.models import LanguageModel, Pair
    from minillm.objectives import MiniLLM, PretrainLoss
    from minillm.objectives.linear_loss import LinearLoss
    from minillm.rollout import Sampler
    from minillm.train.on_policy import OnPolicyDistillation
    from minillm.train.optim import Optim
    from minillm.train.regime import OnPolicy
    from minillm.train.start import SupervisedStart

    tune()
    n, rounds, epochs = settings["n"], settings["rounds"], settings["inner_epochs"]
    if "shapes" in settings:
        student, teacher = (shape.random_model().to(DEVICE) for shape in settings["shapes"])
    else:
        student, teacher = (make_model(name, device=DEVICE) for name in settings.get("models", ("student", "teacher")))
    rows = student.config.vocab_size
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=None)
    pair = Pair(student, LanguageModel(teacher).frozen(), tokenizer, rows, stop_ids=(rows,))
    module = OnPolicyDistillation(
        pair,
        settings.get("objective", MiniLLM()),
        Sampler(alpha=settings.get("alpha", 0.0), max_new_tokens=settings["tokens"], batch_size=n),
        PretrainLoss(coefficient=0.0),
        LinearLoss(**settings.get("linear_loss", {})),
        Optim(learning_rate=1e-5),
        OnPolicy(
            rollouts=n, minibatch_size=n, inner_epochs=epochs, max_steps=rounds * epochs, **settings.get("regime", {})
        ),
        SupervisedStart(),
        seed=0,
    )
    ids = make_prompts(n, PROMPT) % rows
    mask = torch.ones_like(ids, dtype=torch.bool)
    batches = [TrainBatch(PromptBatch(ids, mask, torch.arange(n), index)) for index in range(rounds)]

    class Clock(L.Callback):
        def __init__(self):
            self.rounds, self.phases, self.losses = [], [], []

        def on_train_batch_start(self, *args):
            synchronize()
            self.began = time.perf_counter()

        def on_train_batch_end(self, trainer, module, *args):
            synchronize()
            self.rounds.append(time.perf_counter() - self.began)
            self.phases.append(dict(module.phases.seconds))
            self.losses.append(module.metrics["train/loss"])

    clock = Clock()
    trainer = L.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    watch = Allocated() if settings.get("profiled") and DEVICE == "cpu" else Memory()
    with watch as memory:
        trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))
    figures = {"rounds": clock.rounds, "phases": clock.phases, "losses": clock.losses}
    return figures | {"memory_gb": memory.above_gb}
