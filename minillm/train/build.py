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

import minillm
from minillm.common.checks import construct
from minillm.common.files import write_whole
from minillm.common.machine import choose_precision, usable_memory
from minillm.common.read import read_settings
from minillm.common.stored import write_config
from minillm.data import Corpus, PromptSet, read_documents
from minillm.data.datamodule import DistillationDataModule, SupervisedDataModule
from minillm.models import Pair
from minillm.models.cached import CachedTeacher
from minillm.models.digest import weights_digest
from minillm.objectives import START
from minillm.parallel import agree, barrier, check_shared, environment, lightning_strategy, on_first
from minillm.rollout.stored import Stored
from minillm.train import resume
from minillm.train.callbacks import Interruption, Rows
from minillm.train.directory import CheckpointFile
from minillm.train.loaded import check_lengths, check_references
from minillm.train.loggers import MetricsCSV
from minillm.train.on_policy import OnPolicyDistillation
from minillm.train.preview.begin import begin
from minillm.train.preview.memory import AutoSizes, choose_sizes
from minillm.train.regime import Supervised
from minillm.train.rules import check_writable
from minillm.train.settings import Settings
from minillm.train.supervised import SupervisedDistillation

log = logging.getLogger(__name__)


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
        ModelError, DataError, ConfigError: see `resume.go_on_from`, `ModelPair.load` and `Sources`.
    """
    plain, run_dir, strategy = copy.deepcopy(settings.plain), settings.run_dir, settings.strategy
    on_first(partial(check_writable, run_dir))
    check_shared(run_dir)
    precision = choose_precision(plain["trainer"]["precision"], plain["trainer"].get("accelerator", "auto"))
    trainer = _trainer(settings, precision)
    device = trainer.strategy.root_device
    numbers = resume.numbers_of(settings.model, device, precision)
    ckpt_path = on_first(partial(resume.go_on_from, run_dir, plain, numbers)) if plain["resume"] else None
    # Files first: a mistyped name should not cost the download of a teacher.
    records = settings.data.records((pair or settings.model).teacher_names)
    documents = read_documents(settings.data.corpus_file) if settings.regulariser.on else None
    log.info("On %s: %s", device, ", ".join(f"{key}: {value}" for key, value in numbers.items()))
    # Shards go to their devices one after the other, once the trainer has started; whole weights go now.
    pair = pair or settings.model.load(device, plain["seed"], keep_on_cpu=strategy.sharded)
    before = (read_settings(run_dir) or {}) if ckpt_path else {}
    settings = replace(settings, data=agree(settings.data.begun(pair.tokenizer, before.get("data.date"))))
    plain["data"]["date"] = settings.data.date
    check_lengths(settings, pair)
    supervised = isinstance(settings.regime, Supervised)
    train_prompts, val_prompts = settings.data.prompts(*records, pair, answered=supervised)
    check_references(settings, pair, train_prompts, val_prompts)
    sizes = on_first(partial(_sizes, run_dir if ckpt_path else None, settings, pair, train_prompts, precision, device))
    settings = sizes.fill(settings)
    trainer.accumulate_grad_batches = settings.accumulated
    corpus = None if documents is None else settings.data.corpus(documents, pair)
    digests = resume.data_digests(train_prompts, val_prompts, corpus, pair.tokenizer.chat_template)
    # What of the student's weights is in no checkpoint must be the same again.
    whole = START in settings.objective.needs or settings.model.own_teacher
    if whole or settings.model.lora:
        trained = frozenset(name for name, each in pair.student.named_parameters() if each.requires_grad)
        digests["model.student"] = weights_digest(pair.student, without=frozenset() if whole else trained)
    if pair.reference is not None:
        digests["model.reference"] = weights_digest(pair.reference.network)
    if pair.teacher is not None and pair.teacher.served:
        digests["model.teacher"] = pair.teacher.digest
    if pair.teacher is not None and not pair.teacher.exact:
        pair.teacher.list_tokens(settings.objective.teacher_tokens)
    settings.sampler.begin(pair)
    module, datamodule = _parts(settings, pair, train_prompts, val_prompts, corpus)
    if ckpt_path:
        resume.compare_data(run_dir, digests)
        resume.check_weights(ckpt_path, module)
    elif page := begin(settings, pair, train_prompts, val_prompts, corpus, precision):
        trainer.callbacks.append(page)
    found = {"version": minillm.__version__, "numbers": numbers, "data": digests, "sizes": asdict(sizes)}

    def take() -> None:
        if plain["logger"].get("_target_"):
            name = plain["run"]["name"]
            trainer.loggers = [*trainer.loggers, construct(plain["logger"], run_dir=run_dir, name=name, settings=plain)]
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(run_dir / "config.yaml", plain)
        write_whole(run_dir / resume.BEGUN, json.dumps(found, indent=2) + "\n")

    # Only now, with everything loaded, is the run directory taken: a mistake can be mended under the same run.name. All
    # ranks have looked into it by then.
    barrier()
    on_first(take)
    return Run(module, datamodule, trainer, ckpt_path)


def _trainer(settings: Settings, precision: str) -> L.Trainer:
    strategy, run_dir = settings.strategy, settings.run_dir
    return construct(
        settings.plain["trainer"] | {"precision": precision},
        strategy=lightning_strategy(strategy),
        devices=strategy.devices_here,
        num_nodes=strategy.num_nodes,
        max_epochs=-1,
        logger=MetricsCSV(run_dir / "metrics.csv"),
        callbacks=[Interruption(), Rows(), *settings.callbacks.values()],
        plugins=[CheckpointFile(), environment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )


def _sizes(
    before: Path | None, settings: Settings, pair: Pair, train: PromptSet, precision: str, device: torch.device
) -> AutoSizes:
    """What `auto` stands for here; in a run that goes on what it stood for `before`, so that it rounds as it did."""
    if before and (stored := resume.begun(before).get("sizes")):
        return AutoSizes.stored(stored, before / resume.BEGUN)
    memory = None if device.type == "cpu" else usable_memory(device)
    return choose_sizes(settings, pair, train, precision, memory)


def _parts(settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet, corpus: Corpus | None) -> tuple:
    """(module, datamodule)."""
    regime, seed = settings.regime, settings.plain["seed"]
    if isinstance(regime, Supervised):
        microbatches = settings.accumulated * settings.strategy.data_parallel_size
        sizes = dict(minibatch_size=regime.minibatch_size, microbatches=microbatches)
        parts = (pair, settings.objective, settings.linear_loss, settings.optim, regime, regime.steps(len(train)))
        cache = settings.data.teacher_cache
        teacher = CachedTeacher(pair.teacher, cache) if cache and settings.objective.needs else pair.teacher
        module = SupervisedDistillation(*parts, teacher=teacher)
        return module, SupervisedDataModule(train, validation, **sizes, seed=seed)
    datamodule = DistillationDataModule(
        train,
        validation,
        corpus,
        rollouts=regime.rollouts,
        answers_per_prompt=settings.sampler.answers_per_prompt,
        steps_per_rollout=regime.steps_per_rollout,
        corpus_batch_size=settings.regulariser.batch_size,
        seed=seed,
    )
    names = ("objective", "sampler", "regulariser", "linear_loss", "optim", "regime", "start")
    data = settings.data
    stored = Stored(data.on_policy, data.replay, data.replay_size, settings.sampler.answers_per_prompt, seed)
    groups = (getattr(settings, name) for name in names)
    return OnPolicyDistillation(pair, *groups, seed, settings.reward, stored), datamodule
