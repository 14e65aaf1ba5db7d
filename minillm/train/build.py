"""From checked settings to (module, datamodule, trainer), with models and data loaded."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch

from minillm.common.checks import construct
from minillm.common.console import say
from minillm.common.errors import ConfigError
from minillm.common.files import write_whole
from minillm.common.loggers import MetricsCSV
from minillm.common.machine import choose_precision, usable_memory
from minillm.common.read import read_json, read_settings
from minillm.common.saved import CheckpointFile, checkpoints_in, newest_good
from minillm.common.stored import write_config
from minillm.data import PromptSet, read_documents
from minillm.data.datamodule import DistillationDataModule, SupervisedDataModule
from minillm.models import ModelPair, Pair
from minillm.parallel import agree, barrier, check_shared, environment, lightning_strategy, on_first
from minillm.train import preview as preflight
from minillm.train.callbacks import Interruption
from minillm.train.loaded import check_lengths, check_monitor, check_split
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.regime import Supervised
from minillm.train.resume import (
    BACK,
    DATA,
    NUMBERS,
    check_weights,
    compare_data,
    compare_settings,
    data_digests,
    numbers_of,
)
from minillm.train.rules import check_writable
from minillm.train.settings import Settings
from minillm.train.supervised import SupervisedDistillation

log = logging.getLogger(__name__)
SIZES = "sizes.json"  # in the run directory


@dataclass(frozen=True)
class Run:
    module: OnPolicyDistillation | SupervisedDistillation
    datamodule: DistillationDataModule | SupervisedDataModule
    trainer: L.Trainer
    ckpt_path: Path | None


def build(settings: Settings, pair: Pair | None = None) -> Run:
    """Load the models, unless a `pair` is given, and the data, make the trainer, write the resolved config into the run
    directory.

    Raises:
        ModelError, DataError, ConfigError: see `newest_good`, `compare_settings`, `ModelPair.load` and `Sources`.
    """
    plain, run_dir, strategy = copy.deepcopy(settings.plain), settings.run_dir, settings.strategy
    on_first(partial(check_writable, run_dir))
    check_shared(run_dir)
    precision = choose_precision(plain["trainer"]["precision"], plain["trainer"].get("accelerator", "auto"))
    trainer = construct(
        plain["trainer"] | {"precision": precision},
        strategy=lightning_strategy(strategy),
        devices=strategy.devices_here,
        num_nodes=strategy.num_nodes,
        max_epochs=-1,
        logger=MetricsCSV(run_dir / "metrics.csv"),
        callbacks=[Interruption(), *settings.callbacks.values()],
        plugins=[CheckpointFile(), environment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )
    device = trainer.strategy.root_device
    numbers = numbers_of(settings.model, device, precision)
    ckpt_path = on_first(partial(_go_on_from, run_dir, plain, numbers)) if plain["resume"] else None
    # Files first: a mistyped name should not cost the download of a teacher.
    records = settings.data.records()
    documents = read_documents(settings.data.corpus_file) if settings.regulariser.on else None
    log.info("%s", describe_precision(settings.model, device, precision))
    # Parts of weights go to their devices one after the other, once the trainer has started; whole ones go now.
    pair = pair or settings.model.load(device, plain["seed"], keep_on_cpu=strategy.sharded)
    before = (read_settings(run_dir) or {}) if ckpt_path else {}
    settings = replace(settings, data=agree(settings.data.begun(pair.tokenizer, before.get("data.date"))))
    plain["data"]["date"] = settings.data.date
    check_lengths(settings, pair)
    check_split(settings, pair)
    supervised = isinstance(settings.regime, Supervised)
    train_prompts, val_prompts = settings.data.prompts(*records, pair, answered=supervised)
    check_monitor(settings, pair, val_prompts)
    sizes = on_first(partial(_sizes, run_dir if ckpt_path else None, settings, pair, train_prompts, precision, device))
    settings = sizes.fill(settings)
    trainer.accumulate_grad_batches = settings.accumulated
    corpus = None if documents is None else settings.data.corpus(documents, pair)
    digests = data_digests(train_prompts, val_prompts, corpus, pair.tokenizer.chat_template)
    if ckpt_path:
        compare_data(run_dir, digests)
    make = _supervised if supervised else _on_policy
    module, datamodule = make(settings, pair, train_prompts, val_prompts, corpus, plain["seed"])
    if ckpt_path:
        check_weights(ckpt_path, module)

    def compared(page: preflight.Preflight) -> preflight.Comparison:
        return preflight.Comparison(page, settings, pair, train_prompts, plain["seed"], run_dir)

    def begin() -> preflight.Preflight | None:
        page = None
        if ckpt_path is None:
            page = preflight.begin(settings, plain, pair, train_prompts, val_prompts, corpus, precision)
        if page and not strategy.sharded:
            page = compared(page).now(precision)
            preflight.show(page)
        if plain["logger"].get("_target_"):
            name = plain["run"]["name"]
            trainer.loggers = [*trainer.loggers, construct(plain["logger"], run_dir=run_dir, name=name, settings=plain)]
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(run_dir / "config.yaml", plain)
        write_whole(run_dir / DATA, json.dumps(digests, indent=2) + "\n")
        write_whole(run_dir / NUMBERS, json.dumps(numbers, indent=2) + "\n")
        write_whole(run_dir / SIZES, json.dumps(asdict(sizes), indent=2) + "\n")
        if page and not strategy.sharded:
            preflight.write(page, run_dir)
        return page

    # Only now, with everything loaded, is the run directory taken: a mistake can be mended under the same run.name. All
    # ranks have looked into it by then.
    barrier()
    if (page := on_first(begin)) and strategy.sharded:
        trainer.callbacks.append(compared(page))
    return Run(module, datamodule, trainer, ckpt_path)


def _go_on_from(run_dir: Path, plain: dict, numbers: dict[str, str]) -> Path | None:
    """The checkpoint; None where there is none. By one rank: it puts damaged ones out of the way."""
    folder = run_dir / "checkpoints"
    if not checkpoints_in(folder):
        return None
    compare_settings(run_dir, plain, numbers)
    file = newest_good(folder)
    say(f"The run goes on from {file}")
    return file


def _sizes(
    before: Path | None, settings: Settings, pair: Pair, train: PromptSet, precision: str, device: torch.device
) -> preflight.AutoSizes:
    """What `auto` stands for here; in a run that goes on what it stood for `before`, so that it rounds as it did."""
    if before and (stored := read_json(before / SIZES, BACK)):
        return preflight.AutoSizes.of(stored, before / SIZES)
    memory = None if device.type == "cpu" else usable_memory(device)
    return preflight.choose_sizes(settings, pair, train, precision, memory)


def _on_policy(settings: Settings, pair: Pair, train_prompts, val_prompts, corpus, seed: int):
    start, regime = settings.start, settings.regime
    if start.responses == "reference" and start.steps and not train_prompts.has_references:
        raise ConfigError(
            "start.responses=reference: not every training prompt has a reference; use start.responses=teacher"
        )
    datamodule = DistillationDataModule(
        train_prompts,
        val_prompts,
        corpus,
        rollouts=regime.rollouts,
        steps_per_rollout=regime.steps_per_rollout,
        corpus_batch_size=settings.regulariser.batch_size,
        seed=seed,
    )
    module = OnPolicyDistillation(
        pair,
        settings.objective,
        settings.sampler,
        settings.regulariser,
        settings.linear_loss,
        settings.optim,
        regime,
        start,
        seed,
    )
    return module, datamodule


def _supervised(settings: Settings, pair: Pair, train_prompts, val_prompts, corpus, seed: int):
    regime = settings.regime
    datamodule = SupervisedDataModule(
        train_prompts,
        val_prompts,
        minibatch_size=regime.minibatch_size,
        microbatches=settings.accumulated * settings.strategy.data_parallel_size,
        seed=seed,
    )
    n_steps = regime.steps(len(train_prompts))
    module = SupervisedDistillation(pair, settings.objective, settings.linear_loss, settings.optim, regime, n_steps)
    return module, datamodule


def describe_precision(model: ModelPair, device: torch.device, precision: str) -> str:
    """One line: where, weights of which type, products of which precision, and the keys that change it."""
    student, teacher = (str(dtype).removeprefix("torch.") for dtype in model.dtypes(device).values())
    weights = f"student {student}" + (", frozen, adapters float32" if model.lora else "")
    if model.teacher is not None:
        weights += f"; teacher {teacher}" + (f", body in {model.teacher.bits} bits" if model.teacher.bits else "")
    return f"On {device}: products in {precision} (trainer.precision); weights (model.dtype): {weights}"
