"""Validation on held-out prompts: reverse KL on the student's own samples, Rouge-L, loss, length, diversity."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from minillm.common.console import say, show_figures, show_samples
from minillm.common.errors import Interrupted, StorageError, check
from minillm.common.files import write_whole
from minillm.data import PromptSet
from minillm.evaluation.answers import Answer, answer_prompts, is_uniform, reference_losses, span_figures, summarise
from minillm.evaluation.metrics import figures_at, paired_change
from minillm.models import LanguageModel
from minillm.parallel import on_first
from minillm.train.callbacks.boundary import BoundaryCallback
from minillm.train.loggers import STEP, log_row

# The table leaves out what a run does not measure.
COLUMNS = {"reverse_kl_per_byte": "KL a byte", "dropped": "dropped", "reverse_kl": "reverse KL",
           "reverse_kl_sampled": "sampled KL", "rouge_l": "Rouge-L", "loss": "ref.\nloss", "length": "length",
           "truncated": "truncated", "distinct_4": "distinct-4", "tokens": "tokens"}  # fmt: skip
_STATE = ("stages", "samples", "kl", "newest_step", "owed", "made")  # in checkpoints
_SHOWN = 2  # answers after each stage


class Validation(BoundaryCallback):
    """Measures the student as given (`raw`), after the supervised start (`start`), every `every` steps, at the end
    (`last`).

    The stream of random numbers is that of `seed` (eval_seed), the same for all seeds and stages. Where the prompts
    have no references there is no loss, and Rouge-L is against the teacher's greedy answers, if it is here. A
    student that gives all tokens the same probability has the figure `uniform` only and is never the best. With several
    teachers each figure is there for the prompts of each too, `<figure>_<name>`.

    Args:
        every: optimizer steps between validations; None for raw, start and end only.
        max_new_tokens: the fixed cap on answers. batch_size: rows decoded at a time.
        greedy: answer greedily too; Rouge-L and the answers on the screen are then of those, all else of the samples.
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
        greedy: bool = False,
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
        self.greedy = greedy
        self.figures = figures_at(figures or ())
        self._columns = COLUMNS | {figure.key: figure.heading or figure.key for figure in self.figures}
        self.stages: dict[str, dict[str, float]] = {}  # raw, start, and the newest as last
        self.samples: dict[str, list[str]] = {}  # answers of the stages to the first prompts
        self.kl: dict[str, list[tuple[float, int]]] = {}  # (reverse KL, tokens) of each answer of the stages
        self.newest_step: int | None = None  # MiniLLM's optimizer step of the newest figures
        self.rouge_against: str | None = None
        self.owed: str | None = None  # a stage that was due when a signal asked the run to stop
        self.made = 0  # validations so far

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in (*_STATE, "rouge_against")}  # that one for the export

    def load_state_dict(self, state: dict) -> None:
        for name in _STATE:
            setattr(self, name, state[name])

    @property
    def newest(self) -> dict[str, float]:
        return self.stages["last"]

    def is_of(self, module) -> bool:
        """Whether the newest figures are of the module's weights as they are now, after the start."""
        return not module.in_start and self.owed is None and self.newest_step == module.step

    def setup(self, trainer, module, stage) -> None:
        self._prompts, self._pair, self._module = trainer.datamodule.val_prompts, module.pair, module
        self._teachers = sorted({record.teacher for record in self._prompts.records} - {None})  # if there are several
        if self._pair.teacher and not self._pair.teacher.exact:
            say(
                "The teacher's server lists some tokens only: in place of the exact KL, val/reverse_kl_sampled is the "
                "mean of log q - log p over the student's samples."
            )
        self._separate = module.pair.teacher_tokenizer is not None
        greedy = "the teacher's greedy answers" if self._pair.teacher_here is not None else None
        self.rouge_against = "the references" if self._prompts.has_references else greedy

    @cached_property
    def teacher_answers(self) -> list[Answer]:
        """Greedy, under the same cap; none without a teacher that is in this process."""
        return [] if self._pair.teacher_here is None else self._answer(self._pair.teacher, None)

    @cached_property
    def _references(self) -> list[tuple[str, ...]] | None:
        if self.rouge_against is None:
            say("The validation prompts have no references and no teacher is here: no Rouge-L is measured.")
            return None
        of = " is that of greedy answers and" if self.greedy else ""
        say(f"Rouge-L{of} is measured against {self.rouge_against}.")
        if self._prompts.has_references:
            return [record.references for record in self._prompts.records]
        return [(answer.answer,) for answer in self.teacher_answers]

    def _answer(self, model: LanguageModel, seeds: list[int] | None) -> list[Answer]:
        pair, own = self._pair, {}
        tokenizer, stops = pair.tokens_of(model)
        if seeds is not None:  # greedy answers are texts only
            own = {"spans": pair} if self._separate else {"teacher": pair.teacher}
        with self._module.whole_weights():
            sizes = dict(max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
            around = dict(stop_ids=stops, group=self._module.group, interrupt=self._module.interrupt)
            models = dict(seeds=seeds, asking=self._module.asking, **own)
            return answer_prompts(model, self._seen_by(model), tokenizer, **models, **sizes, **around)

    def _seen_by(self, model: LanguageModel) -> PromptSet:
        return self._prompts.for_teacher if model is self._pair.teacher else self._prompts

    def _figures(self, model: LanguageModel, answers: list[Answer], greedy: list[Answer] | None = None) -> dict:
        losses, tokens, figures, student = None, None, {}, model is not self._pair.teacher
        # References are of the student's tokens.
        if self._prompts.has_references and (student or not self._separate):
            with self._module.whole_weights():
                losses, tokens = reference_losses(model, self._seen_by(model), self._module.group)
        for name in (None, *self._teachers):
            rows = [row for row, record in enumerate(self._prompts.records) if name in (None, record.teacher)]
            of = [each and [each[row] for row in rows] for each in (answers, self._references, losses, tokens, greedy)]
            found = summarise(*of[:2], self.figures) | ({} if losses is None else {"loss": sum(of[2]) / sum(of[3])})
            if greedy and self._references:
                found["rouge_l"] = summarise(of[4], of[1])["rouge_l"]
            figures |= {f"{key}_{name}" if name else key: value for key, value in found.items()}
        if self._separate and student:
            figures |= span_figures(answers)
        return figures

    @cached_property
    def _teacher_figures(self) -> dict[str, float]:
        return self._figures(self._pair.teacher, self.teacher_answers)

    def on_train_start(self, trainer, module) -> None:
        if "raw" not in self.stages:
            self.owed = "raw"
        if self.owed is None:
            return
        self.measure(trainer, module, self.owed)
        stage, self.owed = self.owed, None
        if stage == "raw" and not module.in_start and "start" in module.stages:
            for figures in (self.stages, self.samples, self.kl):
                figures["start"] = figures["raw"]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not module.at_boundary:
            return
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

    def measure(self, trainer, module, stage: str) -> None:
        """Answer, summarise, log, write samples/<stage>.jsonl. Raises StorageError where that cannot be written."""
        say(f"Validation, {stage}: {len(self._prompts)} held-out prompts ...")
        if module.average is not None:  # another teacher each time
            stale = ("teacher_answers", "_teacher_figures", *(() if self._prompts.has_references else ("_references",)))
            for name in stale:
                vars(self).pop(name, None)
        answers = self._answer(module.model, [self.seed])
        greedy = self._answer(module.model, None) if self.greedy else None
        figures = self._figures(module.model, answers, greedy)
        if is_uniform(answers, self._pair.n_vocab):
            say(
                f"WARNING: the student gives all {self._pair.n_vocab} tokens the same probability, so that this "
                "validation has no figures and cannot be the best. Try a smaller optim.learning_rate"
            )
            figures = {"uniform": 1.0}
        texts = [answer.answer for answer in greedy or answers]
        for name in {stage, "last"} & {"raw", "start", "last"}:
            self.stages[name], self.samples[name] = figures, texts[: self.n_samples]
            self.kl[name] = [(answer.reverse_kl, len(answer.tokens)) for answer in answers]
        self.newest_step = module.step
        self.made += 1
        rows = {"student": figures} | self._teacher_row() | self._by_teacher(figures)
        show_figures(f"Validation, {stage}", rows, self._columns)
        if "overlap_mass" in figures:
            say(
                f"Entropy {figures['entropy']:.3g} nats a token, the teacher's {figures['teacher_entropy']:.3g}; "
                f"{figures['overlap_mass']:.0%} of the student's probability is on tokens that both find likely."
            )
        if stage in ("raw", "start"):
            self._show_samples(f"Answers so far, {stage} included", min(_SHOWN, self.n_samples), ("raw", "start"))
        rows = [
            answer.row() | {"references": of.references}
            for answer, of in zip(answers, self._prompts.records, strict=True)
        ]
        for name, others in (("greedy", greedy), ("teacher", self.teacher_answers)):
            if others:
                rows = [row | {name: other.answer} for row, other in zip(rows, others, strict=True)]
        on_first(lambda: self._write(rows, stage))
        log_row(trainer, {f"val/{k}": v for k, v in figures.items()} | {STEP: module.start_step + module.step})
        columns = self._texts() | {"student": texts}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                data = list(map(list, zip(*columns.values(), strict=True)))
                logger.log_table("val/samples", columns=list(columns), data=data)

    def _write(self, rows: list[dict], stage: str) -> None:
        file = self.run_dir / "samples" / f"{stage.replace(' ', '_')}.jsonl"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError as error:
            problem = f"{file} cannot be written ({error.strerror or error})"
            raise StorageError(f"{problem}. Make room, then the same command with resume=auto") from error

    def on_train_end(self, trainer, module) -> None:
        self._show_samples("The same held-out prompts at every stage", self.n_samples, ("raw", "start", "last"))

    def _show_samples(self, title: str, n: int, stages: tuple[str, ...]) -> None:
        columns = self._texts() | {name: self.samples[name] for name in stages if name in self.samples}
        show_samples(title, list(columns), list(zip(*(texts[:n] for texts in columns.values()), strict=True)))

    def show_stages(self, best: dict | None) -> None:
        """The figures of the stages, and those of the `best` validation."""
        rows = {name: self.stages[name] for name in ("raw", "start", "last") if name in self.stages}
        if best:
            rows["best"] = best["figures"]
        rows |= self._teacher_row() | self._by_teacher(self.newest)
        show_figures("Figures of all stages", rows, self._columns)

    def change(self) -> str:
        """How the reverse KL changed from stage to stage, in words; empty where no stage has another one."""
        stages = [name for name in ("raw", "start", "last") if None not in chain(*self.kl.get(name, [(None,)]))]
        changes = [
            f"{change:+.3f} [{low:+.3f}, {high:+.3f}] from {before} to {after}"
            for before, after in pairwise(stages)
            if self.kl[before] != self.kl[after]
            for change, low, high in [paired_change(self.kl[before], self.kl[after])]
        ]
        paired = f"(95% intervals, paired over {len(self._prompts)} prompts)"
        return f"Reverse KL, nats a token: {'; '.join(changes)} {paired}." if changes else ""

    def _by_teacher(self, figures: dict[str, float]) -> dict[str, dict[str, float]]:
        """The student's figures on the prompts of each of several teachers."""
        own = {name: {key: f"{key}_{name}" for key in self._columns} for name in self._teachers}
        return {
            f"on {name}": {key: figures[figure] for key, figure in keys.items() if figure in figures}
            for name, keys in own.items()
        }

    def final_figures(self) -> dict[str, float]:
        """Flat names for metrics.json: val/<figure>_raw, val/<figure>_start, val/<figure>, val/teacher_<figure>."""
        suffixes = {"raw": "_raw", "start": "_start", "last": ""}
        figures = {f"val/{k}{suffixes[s]}": v for s, stage in self.stages.items() for k, v in stage.items()}
        teacher = self._teacher_row().get("teacher", {})
        return figures | {f"val/teacher_{name}": value for name, value in teacher.items()}

    def _teacher_row(self) -> dict[str, dict[str, float]]:
        return {} if self._pair.teacher_here is None else {"teacher": self._teacher_figures}

    def _texts(self) -> dict[str, list[str]]:
        """Prompts, and the teacher's answers to them."""
        prompts = {"prompt": [record.conversation for record in self._prompts.records]}
        return prompts | ({"teacher": [a.answer for a in self.teacher_answers]} if self._pair.teacher_here else {})
