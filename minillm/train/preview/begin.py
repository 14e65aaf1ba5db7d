"""Before the first step of a run: the page is made of what is loaded, and completed by a few answers of the models."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace

import lightning as L
import torch

from minillm.common.console import progress
from minillm.common.errors import ModelError
from minillm.common.seeding import seed_for
from minillm.common.types import PromptBatch, Rollout
from minillm.data import Corpus, PromptSet, rows_at
from minillm.data.prompts import pad
from minillm.models import LanguageModel, Pair, Teachers
from minillm.objectives.linear_loss import LinearLoss
from minillm.planning import measure
from minillm.rollout import Sampler, decode, rollout_divergence
from minillm.rollout.consistency import Consistency, check_consistency
from minillm.train.preview.memory import CPU, case_of, sizes_of
from minillm.train.preview.page import Page, page_of
from minillm.train.preview.time import Pace, mean_length, seconds_of, time_line
from minillm.train.resume import BEGUN
from minillm.train.settings import Settings
from minillm.train.student import TrainingModule

log = logging.getLogger(__name__)
SAMPLES, TOKENS = 8, 32  # answers whose KL is on the page, and their tokens
_ROWS, _ANSWER, _LONG = 8, 12, 512  # of the check that decoding and update are one model


def begin(
    settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet, corpus: Corpus | None, precision: str
) -> Preview | None:
    """The callback that shows the page of a run that begins; with preflight=false None, and the page's warnings are
    logged."""
    sizes = dict(prompt=train.longest, answer=settings.answer_tokens, half=precision == "bf16-mixed")
    page = page_of(settings, pair, train, validation, corpus, measure(case_of(settings, *sizes_of(pair), **sizes)))
    if settings.plain["preflight"]:
        return Preview(page, settings, pair, train, validation)
    for text in page.warnings:
        log.warning(text)
    return None


class Preview(L.Callback):
    """Completes the `page` by a few answers of the models, shows it and writes it into the run's directory."""

    def __init__(self, page: Page, settings: Settings, pair: Pair, train: PromptSet, validation: PromptSet):
        self.page, self.settings, self.pair, self.train, self.validation = page, settings, pair, train, validation

    def on_fit_start(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Raises ModelError: see `check_consistency`. The run's name is free again then."""
        models = {"student": module.model} | (self.pair.teachers if self.pair.teacher_here else {})
        if not self.settings.strategy.sharded:  # compiling for these few shapes would change those that follow
            models = {side: type(each)(each.network, each.n_vocab) for side, each in models.items()}
        half = torch.autocast(module.device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed")
        try:
            with progress("Looking at both models"):
                with module.asking(), module.whole_weights(), half:
                    self._compare(models)
                with module.asking(), half:
                    self._time(models, module)
        except ModelError:  # nothing is trained: the same command, with what is mended, makes this run
            if trainer.is_global_zero:
                for name in ("config.yaml", BEGUN, "metrics.csv"):
                    (self.settings.run_dir / name).unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            self.page.show()
            self.page.write(self.settings.run_dir)

    def _compare(self, models: dict[str, LanguageModel]) -> None:
        """Put on the page whether decoding and update are one model, and how far apart the models are."""
        settings, regime, pair, page = self.settings, self.settings.regime, self.pair, self.page
        longest = self.train.longest + settings.answer_tokens
        longest = longest if regime.rollouts else min(longest, settings.data.longest)
        tokens = regime.microbatch_tokens if regime.rollouts else regime.microbatch_size * longest
        found = {side: self._consistency(side, model, longest, tokens) for side, model in models.items()}
        texts = [
            f"{side} mean {each.mean:+.1g}, largest {each.largest:.1g} on {each.tokens:,} tokens"
            for side, each in found.items()
        ]
        page.lines["log-ratio"] = f"update against decoding, same weights, in nats: {'; '.join(texts)}"
        page.figures["consistency"] = {side: asdict(each) for side, each in found.items()}
        seed, n_new = settings.plain["seed"], settings.answer_tokens
        self.answers = first_answers(models["student"], pair, self.train, seed, n_new)
        if pair.teacher_tokenizer is not None:
            why = "not measured: student and teacher have other tokens; validation has the reverse KL a byte"
            page.lines["agreement"] = why
        elif pair.teacher is not None and pair.teacher.exact:
            teacher = models.get("teacher", pair.teacher)
            if pair.teacher_names:
                teacher = Teachers({name: models[name] for name in pair.teacher_names})
            found = agreement(models["student"], teacher, self.answers, max_tokens=tokens)
            page.add_agreement(*found, n_vocab=pair.n_vocab)

    def _time(self, models: dict[str, LanguageModel], module: TrainingModule) -> None:
        """Put on the page how long the run will take. Not where pieces cannot be timed alone: shards, a teacher or
        sampler of another process, shapes that compile."""
        settings, pair, sampler, regime = self.settings, self.pair, self.settings.sampler, self.settings.regime
        served = pair.teacher is not None and pair.teacher.served
        other = regime.rollouts and type(sampler) is not Sampler
        if served or other or settings.strategy.sharded or settings.model.compile:
            return
        answers, rows = self.answers, self.answers.records_B.tolist()
        n_rows = min(sampler.batch_size, -(-(regime.rollouts or CPU.rows) // settings.strategy.data_parallel_size))
        student = Pace.of(models.pop("student"), self.train, rows, n_rows)
        teacher = next((Pace.of(each, self.train.for_teacher, rows, n_rows) for each in models.values()), Pace())
        if not regime.rollouts:
            prompts = self.train.batch(rows, with_references=True).to(module.device)
            answers = prompts.answered(prompts.reference_ids_BR, prompts.reference_mask_BR)
        lengths_B = answers.prompt_mask_BP.sum(1) + answers.response_mask_BR.sum(1)
        n_tokens = len(answers) * int(lengths_B.max())  # shorter rows are padded, far more than among rows of a run
        update = module.rehearse(answers) / n_tokens * (module.group.size if regime.rollouts else 1)  # ranks share rows
        likely, most = (
            seconds_of(settings, student, teacher, update, self.train, self.validation, length)
            for length in (lambda longest: mean_length(self.answers, pair.stop_ids, longest), float)
        )
        self.page.lines["time"] = time_line(likely, most)
        self.page.figures["time"] = {"likely": likely, "most": most}

    def _consistency(self, side: str, model: LanguageModel, longest: int, max_tokens: int) -> Consistency:
        """See `check_consistency`; on some training prompts, and on a row that is longer than every window of attention
        that a row of `longest` tokens, prompt and answer, can reach."""
        settings, pair, prompts = self.settings, self.pair, self.train if side == "student" else self.train.for_teacher
        seed, n_new = settings.plain["seed"], min(_ANSWER, settings.answer_tokens)
        rows = rows_at(seed_for(seed, "consistency"), 0, min(_ROWS - 1, len(prompts)), len(prompts))
        reachable = [window + _ANSWER for window in model.windows if window < longest]
        n_long = max(1, min(longest - n_new, max([_LONG, *reachable])))
        text = max(prompts.prompt_ids, key=len)
        long = (text * -(-n_long // len(text)))[:n_long]
        ids_BP, mask_BP = pad([*(prompts.prompt_ids[row] for row in rows), long], pair.pad_id, left=True)
        return check_consistency(
            model,
            PromptBatch(ids_BP, mask_BP, torch.arange(len(ids_BP))).to(model.device),
            seeds=[seed_for(seed, "consistency", row) for row in range(len(ids_BP))],
            stop_ids=(model.n_vocab,),  # none: few tokens would leave the mean KL to chance
            pad_id=pair.pad_id,
            max_new_tokens=n_new,
            max_tokens=max_tokens,
            temperature=settings.sampler.temperature if settings.regime.rollouts else 1.0,
            training=side == "student",
        )


def first_answers(student: LanguageModel, pair: Pair, prompts: PromptSet, seed: int, max_new_tokens: int) -> Rollout:
    """Sample up to 8 answers of at most 32 tokens, or `max_new_tokens`. No global random state is read or changed."""
    rows = rows_at(seed_for(seed, "preflight prompts"), 0, min(SAMPLES, len(prompts)), len(prompts))
    rollout = decode(
        student,
        None,
        prompts.batch(rows).to(student.device),
        seeds=[seed_for(seed, "preflight", row) for row in rows],
        batch_size=SAMPLES,
        stop_ids=pair.stop_ids,
        pad_id=pair.pad_id,
        max_new_tokens=min(TOKENS, max_new_tokens),
    )
    return replace(rollout, records_B=torch.tensor(rows))


def agreement(
    student: LanguageModel, teacher: LanguageModel, rollout: Rollout, *, max_tokens: int
) -> tuple[float, float, int, int]:
    """KL[student || teacher] and KL[teacher || student] on answers of the student, exact over the shared vocabulary, in
    nats a token; the number of answers and of their tokens. max_tokens: through the models at a time."""
    n_tokens = int(rollout.response_mask_BR.sum())
    found = rollout_divergence(student, teacher, rollout, LinearLoss(), max_tokens=max_tokens)
    reverse, forward = (each.sum().item() / n_tokens for each in (found.reverse_kl_BR, found.forward_kl_BR))
    return reverse, forward, len(rollout), n_tokens
