"""How each unit is made: by one loaded model, with the teacher where there is one.

Axes: B answers, R their positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.common.console import say
from minillm.data import PromptSet, Record
from minillm.evaluation.answers import (
    Answer,
    Sample,
    answer_prompts,
    divergence,
    prefix_kl,
    reference_losses,
    sample_answers,
    sample_mask,
)
from minillm.evaluation.metrics import exact_match, label_probabilities, position_means, rouge_l
from minillm.evaluation.suite.settings import Suite
from minillm.evaluation.suite.units import Store, Unit
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

    store: Store
    source: str
    pair: Pair
    _prompts: dict[str, PromptSet] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:
        return self.store.suite

    @cached_property
    def _student(self) -> LanguageModel:
        return LanguageModel(self.pair.student, self.pair.n_vocab)

    def make(self, unit: Unit) -> dict:
        return getattr(self, f"_{unit.kind}")(unit)

    def _calibration(self, unit: Unit) -> dict:
        calibration, records = self.suite.tasks[unit.of]
        prompts = self._encoded(records, unit.of)
        words = word_tokens(calibration.words, self.pair.tokenizer, self.pair.n_vocab)
        probabilities = label_probabilities(label_logprobs(self._student, prompts, words))
        return {
            "probabilities": probabilities.tolist(),
            "labels": choice_labels(prompts, calibration.words).tolist(),
            "dropped": prompts.dropped.total(),
        }

    def _references(self, unit: Unit) -> dict:
        prompts = self._prompts_of(unit.of)
        if not prompts.has_references:
            return {"losses": [], "tokens": []}
        if prompts.references_cut:
            limit = f"data.max_response_tokens={self.suite.sources.max_response_tokens}"
            say(f"{unit.of}: {prompts.references_cut} references are cut at {limit} for the loss.")
        return dict(zip(("losses", "tokens"), reference_losses(self._student, prompts), strict=True))

    def _answers(self, unit: Unit) -> dict:
        prompts = self._prompts_of(unit.of)
        rows = self._rows(prompts, unit)
        made = {"parameters": self.pair.student.num_parameters(), "rows": [], "position": None}
        if not rows:
            return made
        limit, seeds = self.suite.measures.decodings[unit.decoding], self.suite.seeds
        found = answer_prompts(
            self._student,
            prompts,
            self.pair.tokenizer,
            seeds=None if None in seeds else seeds,
            rows=rows,
            temperature=self.suite.temperature,
            no_repeat_ngram_size=limit,
            **self._decoding,
        )
        places = [rows[at % len(rows)] for at in range(len(found))]
        made["rows"] = [
            self._row(answer, prompts.records[row].references) for answer, row in zip(found, places, strict=True)
        ]
        # Under a limit on n-grams answers are not the model's own samples, over which a KL is a mean.
        if self.pair.teacher is not None and not limit:
            samples = [Sample(row, answer.tokens) for answer, row in zip(found, places, strict=True)]
            made["position"] = self._add_divergence(unit, prompts, samples, made["rows"])
        return made

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

    def _row(self, answer: Answer, references: Sequence[str]) -> dict:
        kept = {name: getattr(answer, name) for name in ("id", "seed", "answer", "tokens", "truncated")}
        return kept | {
            "rouge_l": rouge_l(answer.answer, references) if references else None,
            "exact_match": exact_match(answer.answer, references) if references else None,
            "reference_length": min(map(self._n_tokens, references), default=None),
            "reverse_kl": None,
            "forward_kl": None,
        }

    def _n_tokens(self, text: str) -> int:
        return len(self.pair.tokenizer(text, add_special_tokens=False)["input_ids"])

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
        if not self.store.file(mine).exists():
            samples = self._sample(self.pair.teacher, prompts, rows)
            self.store.write(mine, {"samples": [asdict(sample) for sample in samples]})
        return [Sample(each["prompt"], tuple(each["tokens"])) for each in self.store.read(mine)["samples"]]

    def _sample(self, model: LanguageModel, prompts: PromptSet, rows: list[int]) -> list[Sample]:
        exposure = self.suite.measures.exposure
        return sample_answers(
            model, prompts, seed=exposure.seed, n_samples=exposure.samples, rows=rows, **self._decoding
        )

    @property
    def _decoding(self) -> dict[str, Any]:
        sizes = {"max_new_tokens": self.suite.max_new_tokens, "batch_size": self.suite.batch_size}
        return sizes | {"stop_ids": self.pair.stop_ids}

    def _kl(self, prompts: PromptSet, samples: list[Sample]) -> dict:
        kl_BR = prefix_kl(self._student, self.pair.teacher, prompts, samples).kl_BR
        return {
            "prompt": [sample.prompt for sample in samples],
            "kl": [
                [float(f"{value:.9g}") for value in values_R[: len(sample.tokens)].tolist()]  # all digits of float32
                for values_R, sample in zip(kl_BR, samples, strict=True)
            ],
        }

    def _prompts_of(self, file: str) -> PromptSet:
        if file not in self._prompts:
            prompts = self._encoded(self.suite.records[file], file)
            if not prompts.has_references and not self.suite.as_teacher:
                say(f"{file}: not every prompt has a reference; Rouge-L and what else needs one are left out.")
            self._prompts[file] = prompts
        return self._prompts[file]

    def _encoded(self, records: list[Record], of: str) -> PromptSet:
        suite = self.suite
        prompts = suite.sources.evaluation_prompts(records, self.pair, of, teacher=suite.as_teacher).for_teacher
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
