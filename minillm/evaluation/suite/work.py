"""How each unit is made: one loaded model, with the teacher where there is one, or the judge.

Axes: B answers, R their positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.common.console import say
from minillm.data import PromptSet, Record
from minillm.evaluation import Answer, answer_prompts, reference_losses
from minillm.evaluation.judge.judge import Item
from minillm.evaluation.metrics import exact_match, label_probabilities, position_means, reference_length, rouge_l
from minillm.evaluation.prefixes import Sample, divergence, prefix_kl, sample_answers, sample_mask
from minillm.evaluation.suite.settings import Suite
from minillm.evaluation.suite.units import Store, Unit, answers
from minillm.evaluation.zero_shot import choice_labels, label_logprobs, word_tokens
from minillm.models import Checkpoint, LanguageModel, Pair, pair_of, solo

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load(suite: Suite, source: str) -> Loaded:
    network, tokenizer = Checkpoint(source).load(suite.dtype, suite.attention)
    return network.to(suite.device).eval(), tokenizer


def pair_for(suite: Suite, source: str, loaded: Loaded, teacher: Loaded | None) -> Pair:
    """The model with its teacher; the teacher itself alone."""
    if teacher is None or source == suite.teacher:
        return solo(*loaded)
    pair = pair_of(loaded[0], teacher[0], loaded[1], teacher[1])
    if suite.sources.template == "chat" and not pair.vocabulary.same_template:
        say(f"{source}: prompts are written with its own chat template; the teacher has another one.")
    return pair


@dataclass
class Bench:
    """One model at work."""

    suite: Suite
    store: Store
    source: str
    pair: Pair
    _prompts: dict[str, PromptSet] = field(default_factory=dict)

    @cached_property
    def _student(self) -> LanguageModel:
        return LanguageModel(self.pair.student, self.pair.n_vocab)

    def make(self, unit: Unit) -> dict:
        return getattr(self, f"_{unit.kind}")(unit)

    def _model(self, unit: Unit) -> dict:
        return {"parameters": self.pair.student.num_parameters()}

    def _calibration(self, unit: Unit) -> dict:
        calibration, records = self.suite.tasks[unit.of]
        prompts = self._encoded(records, unit.of)
        words = word_tokens(calibration.words, self.pair.tokenizer, self.pair.n_vocab)
        probabilities = label_probabilities(label_logprobs(self._student, prompts, words))
        return {
            "ids": [record.id for record in prompts.records],
            "probabilities": probabilities.tolist(),
            "labels": choice_labels(prompts, calibration.words).tolist(),
            "dropped": prompts.dropped.total(),
        }

    def _references(self, unit: Unit) -> dict:
        prompts = self._prompts_of(unit.of)
        if not prompts.has_references:
            return {"rows": []}
        if prompts.references_cut:
            limit = f"data.max_response_tokens={self.suite.sources.max_response_tokens}"
            say(f"{unit.of}: {prompts.references_cut} references are cut at {limit} for the loss.")
        columns = ([record.id for record in prompts.records], *reference_losses(self._student, prompts))
        return {"rows": [dict(zip(("id", "loss", "tokens"), row, strict=True)) for row in zip(*columns, strict=True)]}

    def _answers(self, unit: Unit) -> dict:
        prompts = self._prompts_of(unit.of)
        rows = self._rows(prompts, unit)
        if not rows:
            return {"rows": [], "position": None}
        limit, seeds = self.suite.measures.decodings[unit.decoding], self.suite.seeds
        records = [prompts.records[row] for row in rows]
        found = answer_prompts(
            self._student,
            prompts,
            self.pair.tokenizer,
            seeds=None if seeds == (None,) else seeds,
            rows=rows,
            no_repeat_ngram_size=limit,
            max_new_tokens=self.suite.max_new_tokens,
            batch_size=self.suite.batch_size,
            stop_ids=self.pair.stop_ids,
        )
        made = [self._row(answer, records[at % len(rows)]) for at, answer in enumerate(found)]
        position = None
        # Under a limit on n-grams answers are not the model's own samples, over which a KL is a mean.
        if self.pair.teacher is not None and not limit:
            samples = [Sample(rows[at % len(rows)], answer.tokens) for at, answer in enumerate(found)]
            position = self._add_divergence(unit, prompts, samples, made)
        return {"rows": made, "position": position}

    def _add_divergence(self, unit: Unit, prompts: PromptSet, samples: list[Sample], made: list[dict]) -> dict:
        """Both KLs by position; into the rows both KLs, and log q and log p of the tokens that are shown."""
        found, position = divergence(self._student, self.pair.teacher, prompts, samples), {}
        for name, values_BR in (("reverse_kl", found.reverse_kl_BR), ("forward_kl", found.forward_kl_BR)):
            position[name] = asdict(position_means(values_BR, sample_mask(samples)))
            for row, total in zip(made, values_BR.sum(-1).tolist(), strict=True):
                row[name] = total
        if unit.decoding == self.suite.measures.plain:
            shown = {record.id for record in self.suite.records[unit.of][: self.suite.measures.token_rows]}
            for at, row in enumerate(made):
                if row["id"] in shown and row["seed"] == self.suite.seeds[0]:
                    tokens = samples[at].tokens
                    row["pieces"] = pieces(self.pair.tokenizer, tokens)
                    row["log_q"] = found.student_logprobs_BR[at, : len(tokens)].tolist()
                    row["log_p"] = found.teacher_logprobs_BR[at, : len(tokens)].tolist()
        return position

    def _row(self, answer: Answer, record: Record) -> dict:
        references = record.references
        kept = {name: getattr(answer, name) for name in ("id", "seed", "answer", "tokens", "truncated")}
        return kept | {
            "rouge_l": rouge_l(answer.answer, references) if references else None,
            "exact_match": exact_match(answer.answer, references) if references else None,
            "reference_length": reference_length(references, self._encode) if references else None,
            "reverse_kl": None,
            "forward_kl": None,
        }

    def _encode(self, text: str) -> list[int]:
        return self.pair.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _exposure(self, unit: Unit) -> dict:
        prompts = self._prompts_of(unit.of)
        rows = self._rows(prompts, unit, self.suite.measures.exposure.limit)
        sides = {"student": self._sample(self._student, prompts, rows), "teacher": self._given(unit, prompts, rows)}
        return {name: self._kl(prompts, samples) for name, samples in sides.items()}

    def _given(self, unit: Unit, prompts: PromptSet, rows: list[int]) -> list[Sample]:
        """The teacher's samples: they are the same for all students with these prompts, tokens and ends."""
        depends = [prompts.digest(), self.pair.n_vocab, self.pair.stop_ids, rows]
        key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
        mine = Unit("samples", key, unit.of, chunk=unit.chunk)
        if mine not in self.store:
            samples = self._sample(self.pair.teacher, prompts, rows)
            self.store.write(mine, {"samples": [asdict(sample) for sample in samples]})
        return [Sample(each["prompt"], tuple(each["tokens"])) for each in self.store.read(mine)["samples"]]

    def _sample(self, model: LanguageModel, prompts: PromptSet, rows: list[int]) -> list[Sample]:
        exposure = self.suite.measures.exposure
        return sample_answers(
            model,
            prompts,
            seed=exposure.seed,
            n_samples=exposure.samples,
            rows=rows,
            max_new_tokens=self.suite.max_new_tokens,
            batch_size=self.suite.batch_size,
            stop_ids=self.pair.stop_ids,
        )

    def _kl(self, prompts: PromptSet, samples: list[Sample]) -> dict:
        kl_BR = prefix_kl(self._student, self.pair.teacher, prompts, samples).kl_BR
        return {
            "prompt": [sample.prompt for sample in samples],
            "kl": [_short(values_R[: len(sample.tokens)]) for values_R, sample in zip(kl_BR, samples, strict=True)],
        }

    def _prompts_of(self, file: str) -> PromptSet:
        if file not in self._prompts:
            prompts = self._encoded(self.suite.records[file], file)
            if not prompts.has_references:
                say(f"{file}: not every prompt has a reference; Rouge-L and what else needs one are left out.")
            self._prompts[file] = prompts
        return self._prompts[file]

    def _encoded(self, records: list[Record], of: str) -> PromptSet:
        prompts = self.suite.sources.evaluation_prompts(records, self.pair, of)
        if prompts.dropped:
            reasons = ", ".join(f"{n} {reason}" for reason, n in prompts.dropped.items())
            say(f"{self.source}, {of}: {len(prompts)} prompts of {len(records)} (left out: {reasons})")
        return prompts

    def _rows(self, prompts: PromptSet, unit: Unit, limit: int | None = None) -> list[int]:
        """Those of the prompts whose records are in the unit's chunk; long prompts have been dropped."""
        start, stop = unit.chunk * self.suite.chunk, (unit.chunk + 1) * self.suite.chunk
        inside = {record.id for record in self.suite.records[unit.of][:limit][start:stop]}
        return [row for row, record in enumerate(prompts.records) if record.id in inside]


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """The text of each token, so that together they are the text of all; a character that several tokens make belongs
    to its last."""
    out, done = [], 0
    for n in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:n], clean_up_tokenization_spaces=False)
        whole = len(text) if n == len(tokens) else len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        out.append(text[done:whole])
        done = max(done, whole)
    return out


def judged(suite: Suite, store: Store, unit: Unit) -> dict:
    """The ratings of all answers of a model to a file; nothing where a prompt has no reference. Counts of what was paid
    for are said, not kept: they are others when the work is stopped and goes on."""
    records = {record.id: record for record in suite.records[unit.of]}
    rows = [row for own in answers(suite, store, unit.source, unit.of, unit.decoding).values() for row in own]
    if not all(records[row["id"]].references for row in rows):
        return {"rows": [], "counts": {}}
    items = [
        Item(row["id"], records[row["id"]].conversation, records[row["id"]].references[0], row["answer"])
        for row in rows
    ]
    ratings = suite.measures.judge.rate(items)
    counts = ratings.counts()
    say(f"{unit}: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    if failure := ratings.first_failure():
        say(f"{unit}: failed with {failure}.")
    kept = ("id", "outcome", "answer", "reference")
    return {
        "rows": [
            {"seed": row["seed"]} | {name: getattr(rating, name) for name in kept}
            for row, rating in zip(rows, ratings.items, strict=True)
        ],
        "counts": {name: n for name, n in counts.items() if name not in ("asked", "from_cache")},
    }


def _short(values_R: Tensor) -> list[float]:
    return [float(f"{value:.9g}") for value in values_R.tolist()]  # all digits of float32
