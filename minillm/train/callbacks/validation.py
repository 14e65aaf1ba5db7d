"""Validation on held-out prompts: reverse KL on the student's own samples, Rouge-L, loss, length, diversity."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from minillm.common.console import say, show_figures, show_samples
from minillm.common.errors import Interrupted, StorageError, check
from minillm.common.files import write_whole
from minillm.common.loggers import STEP
from minillm.evaluation import Answer, answer_prompts, is_uniform, reference_loss, summarise
from minillm.evaluation.metrics import figures_at
from minillm.models import LanguageModel
from minillm.train.callbacks.boundary import BoundaryCallback

COLUMNS = {
    "reverse_kl": "reverse KL",
    "rouge_l": "Rouge-L",
    "loss": "loss",
    "length": "length",
    "truncated": "truncated",
    "distinct_4": "distinct-4",
    "tokens": "tokens",
}  # on the screen; figures of one's own follow


class Validation(BoundaryCallback):
    """Measures the student as given (`raw`), after the supervised start (`start`), every `every` steps, and at the end.

    The stream of random numbers is that of `seed` (eval_seed), the same for all seeds and stages. Where the prompts
    have no references there is no loss, and Rouge-L is against the teacher's greedy answers, if there is a teacher.

    A student that gives all tokens the same probability has no figures but `uniform`: guessing can look better than it
    began, and must not be chosen as the best.

    Args:
        every: optimizer steps between validations; None for raw, start and end only.
        max_new_tokens: the fixed cap on answers. batch_size: rows decoded at a time.
        n_samples: prompts whose answers are shown at the end. figures: import paths of figures of one's own.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        seed: int,
        every: int | None = 100,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        n_samples: int = 5,
        figures: list[str] | None = None,
    ):
        check(
            (max_new_tokens > 0, f"max_new_tokens={max_new_tokens}: wanted a positive number of tokens"),
            (batch_size > 0, f"batch_size={batch_size}: wanted a positive number of rows"),
            (n_samples >= 0, f"n_samples={n_samples}: wanted 0 or more"),
        )
        super().__init__(every)
        self.run_dir, self.seed = Path(run_dir), seed
        self.max_new_tokens, self.batch_size, self.n_samples = max_new_tokens, batch_size, n_samples
        self.figures = figures_at(figures or ())
        self._columns = COLUMNS | {figure.key: figure.heading or figure.key for figure in self.figures}
        self.stages: dict[str, dict[str, float]] = {}  # raw, start, and the newest as end
        self.samples: dict[str, list[str]] = {}  # answers of the stages to the first prompts
        self.newest_step: int | None = None  # MiniLLM's optimizer step of the newest figures
        self.owed: str | None = None  # a stage that was due when a signal asked the run to stop
        self._unwritten: dict[str, str] = {}  # by the name of their file, samples that a full disk did not take

    def state_dict(self) -> dict:
        return {
            "stages": self.stages,
            "samples": self.samples,
            "newest_step": self.newest_step,
            "owed": self.owed,
            "unwritten": self._unwritten,
        }

    def load_state_dict(self, state: dict) -> None:
        self.stages, self.samples, self.newest_step = state["stages"], state["samples"], state["newest_step"]
        self.owed, self._unwritten = state["owed"], dict(state.get("unwritten", {}))

    @property
    def newest(self) -> dict[str, float]:
        return self.stages["end"]

    def setup(self, trainer, module, stage) -> None:
        self._prompts, self._pair, self._module = trainer.datamodule.val_prompts, module.pair, module

    @cached_property
    def teacher_answers(self) -> list[Answer]:
        """Greedy, under the same cap; none without a teacher."""
        return [] if self._pair.teacher is None else self._answer(self._pair.teacher, None)

    @cached_property
    def _references(self) -> list[tuple[str, ...]] | None:
        if self._prompts.has_references:
            say("Rouge-L is measured against the references of the validation file.")
            return [record.references for record in self._prompts.records]
        if self._pair.teacher is None:
            say("The validation prompts have no references and there is no teacher: no Rouge-L is measured.")
            return None
        say("The validation prompts have no references: Rouge-L is measured against the teacher's greedy answers.")
        return [(answer.answer,) for answer in self.teacher_answers]

    def _answer(self, model: LanguageModel, seed: int | None, teacher: LanguageModel | None = None) -> list[Answer]:
        with self._module.whole_weights():
            return answer_prompts(
                model,
                self._prompts,
                self._pair.tokenizer,
                seeds=None if seed is None else [seed],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                stop_ids=self._pair.stop_ids,
                teacher=teacher,
                group=self._module.group,
                interrupt=self._module.interrupt,
            )

    def _loss(self, model: LanguageModel) -> float:
        with self._module.whole_weights():
            return reference_loss(model, self._prompts, self._module.group)

    def on_train_start(self, trainer, module) -> None:
        if "raw" not in self.stages:
            self.owed = "raw"
        if self.owed is None:
            return
        self.measure(trainer, module, self.owed)
        stage, self.owed = self.owed, None
        if stage == "raw" and not module.in_start and "start" in module.stages:
            self._remember("start", self.stages["raw"], self.samples["raw"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
        self._write_waiting()
        if "start" in module.stages and not module.in_start and "start" not in self.stages:
            self.owed = "start"
        elif self.due(module) or trainer.should_stop:
            self.owed = f"step {module.step}"
        if self.owed is not None:
            # The module raises it again behind the last callback; the resumed run measures before anything else.
            with suppress(Interrupted):
                module.interrupt()
                self.measure(trainer, module, self.owed)
                self.owed = None

    def on_exception(self, trainer, module, exception) -> None:
        self._write_waiting()

    def measure(self, trainer, module, stage: str) -> None:
        """Answer, summarise, log, write samples/<stage>.jsonl."""
        say(
            f"Validation, {stage}: {len(self._prompts)} held-out prompts, at most {self.max_new_tokens} tokens each ..."
        )
        answers = self._answer(module.model, self.seed, self._pair.teacher)
        figures = summarise(answers, self._references, self.figures)
        if self._prompts.has_references:
            figures["loss"] = self._loss(module.model)
        if is_uniform(answers, self._pair.n_vocab):
            say(
                f"WARNING: the student gives all {self._pair.n_vocab} tokens the same probability, so that this "
                "validation has no figures and cannot be the best. If it was not so before training, try a smaller "
                "optim.learning_rate"
            )
            figures = {"uniform": 1.0}
        samples = [answer.answer for answer in answers[: self.n_samples]]
        for name in {stage, "end"} & {"raw", "start", "end"}:
            self._remember(name, figures, samples)
        self.newest_step = module.step
        show_figures(f"Validation, {stage}", {"student": figures} | self._teacher_row("teacher"), self._columns)
        self._write(answers, self.teacher_answers, stage)
        step = module.start_step + module.step
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in figures.items()} | {STEP: step}, step)
            if isinstance(logger, WandbLogger):
                columns = self._teacher_columns() | {"student": [answer.answer for answer in answers]}
                rows = list(map(list, zip(*columns.values(), strict=True)))
                logger.log_table("val/samples", columns=list(columns), data=rows)

    def on_train_end(self, trainer, module) -> None:
        self._write_waiting(must=True)
        stages = [name for name in ("raw", "start", "end") if name in self.stages]
        columns = {name: texts[: self.n_samples] for name, texts in self._teacher_columns().items()}
        columns |= {name: self.samples[name] for name in stages}
        rows = list(zip(*columns.values(), strict=True))
        show_samples(f"The same {len(rows)} held-out prompts at every stage", list(columns), rows)
        figures = {name: self.stages[name] for name in stages} | self._teacher_row("teacher (greedy)")
        show_figures("Figures of all stages", figures, self._columns)

    def final_figures(self) -> dict[str, float]:
        """Flat names for metrics.json: val/<figure>_raw, val/<figure>_start, val/<figure>, val/teacher_<figure>."""
        suffixes = {"raw": "_raw", "start": "_start", "end": ""}
        figures = {f"val/{k}{suffixes[s]}": v for s, stage in self.stages.items() for k, v in stage.items()}
        teacher = self._teacher_row("teacher").get("teacher", {})
        return figures | {f"val/teacher_{name}": value for name, value in teacher.items()}

    def _teacher_row(self, name: str) -> dict[str, dict[str, float]]:
        return {} if self._pair.teacher is None else {name: self._teacher_figures}

    def _teacher_columns(self) -> dict[str, list[str]]:
        prompts = {"prompt": [record.conversation for record in self._prompts.records]}
        return prompts | ({"teacher": [a.answer for a in self.teacher_answers]} if self._pair.teacher else {})

    @cached_property
    def _teacher_figures(self) -> dict[str, float]:
        figures = summarise(self.teacher_answers, self._references, self.figures)
        if self._prompts.has_references:
            figures["loss"] = self._loss(self._pair.teacher)
        return figures

    def _remember(self, stage: str, figures: dict[str, float], samples: list[str]) -> None:
        self.stages[stage], self.samples[stage] = figures, samples

    @rank_zero_only
    def _write(self, answers: list[Answer], teacher: list[Answer], stage: str) -> None:
        rows = [answer.row() for answer in answers]
        if teacher:
            rows = [row | {"teacher": given.answer} for row, given in zip(rows, teacher, strict=True)]
        name = f"{stage.replace(' ', '_')}.jsonl"
        self._unwritten[name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._write_waiting(new=name)

    @rank_zero_only
    def _write_waiting(self, new: str | None = None, must: bool = False) -> None:
        """Try all that waits. Of failures only that of the `new` one is said, or with `must` the first is an error."""
        for name, text in list(self._unwritten.items()):
            file = self.run_dir / "samples" / name
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, text)
                del self._unwritten[name]
            except OSError as error:
                problem = f"{file} cannot be written ({error.strerror or error})"
                if must:
                    raise StorageError(f"{problem}. Make room, then the same command with resume=auto") from error
                if name == new:
                    say(f"WARNING: {problem}; tried again at each boundary")
