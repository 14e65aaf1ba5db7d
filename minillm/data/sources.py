"""The config group `data`: where prompts and corpus come from and how they are written."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minillm.common.errors import ConfigError, DataError, check
from minillm.common.hub import hub_id
from minillm.common.lazy import lazy
from minillm.data.records import BUILTIN, TEACHER_KEYS, Dropped, Record, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minillm.data.corpus import Corpus
    from minillm.data.documents import Documents
    from minillm.data.prompts import PromptSet
    from minillm.models import Pair

corpus, prompts, templates = (lazy(f"minillm.data.{name}") for name in ("corpus", "prompts", "templates"))


@dataclass(frozen=True)
class Sources:
    """Files as in `read_records` and `read_documents`; lengths in tokens.

    val_file null holds `val_size` prompts out of train_file (always the same ones). With a val_file, `val_size` null
    takes all of it and a number its first prompts. No validation prompt is ever trained on. `bos`,
    `date`: see `prompt_encoder`. `teacher_system`, `teacher_context`: texts, or names of .txt or .md files, for records
    without a key of that name, see `Record.for_teacher`; `{reference}` in the context is the record's first reference,
    and records without one are dropped. `teacher_template_arguments` None: those of the student. `teacher_cache`: see
    `minillm.models.cached`.

    On-policy the student answers the share `on_policy` of the prompts; the others have the answers of the data (lambda
    of GKD, arXiv 2306.13649). The share `replay` gives way to prompts of the last `replay_size` rollouts with their
    answers (DistiLLM, arXiv 2402.03898).
    """

    train_file: str = "builtin"
    val_file: str | None = "builtin:validation"
    corpus_file: str | None = "pydoc_topics"
    template: Literal["paper", "chat"] = "paper"
    system: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    teacher_system: str | None = None
    teacher_context: str | None = None
    teacher_template_arguments: dict[str, Any] | None = None
    date: str | None = None
    bos: bool | None = None
    max_prompt_tokens: int = 256
    max_response_tokens: int = 256
    max_tokens: int | None = None
    val_size: int | None = None
    block_size: int = 512
    teacher_cache: str | None = None
    on_policy: float = 1.0
    replay: float = 0.0
    replay_size: int = 4

    def __post_init__(self):
        sizes = {key: getattr(self, key) for key in ("max_prompt_tokens", "max_response_tokens", "val_size")}
        check(
            *((size is None or size > 0, f"{key}={size}: wanted a positive number") for key, size in sizes.items()),
            (
                self.max_tokens is None or self.max_tokens > self.max_prompt_tokens,
                f"max_tokens={self.max_tokens}: wanted more than max_prompt_tokens={self.max_prompt_tokens}, or null",
            ),
            (0 <= self.on_policy <= 1, f"on_policy={self.on_policy}: wanted a share of the prompts in [0, 1]"),
            (
                self.replay == 0 or 0 < self.replay < self.on_policy,
                f"replay={self.replay}: wanted 0, or a share of the prompts below on_policy={self.on_policy}",
            ),
            (self.replay_size > 0, f"replay_size={self.replay_size}: wanted a positive number of rollouts"),
            (self.block_size > 1, f"block_size={self.block_size}: wanted at least 2 tokens"),
            (
                self.val_file is not None or self.val_size is not None,
                "val_size=null with val_file=null: wanted the number of training prompts to hold out",
            ),
            (
                self.template == "chat"
                or (self.system is None and not self.template_arguments and not self.teacher_template_arguments),
                "system/template_arguments: only the chat template takes them; set data.template=chat",
            ),
            *(
                (
                    not _is_file(text) or Path(text).is_file(),
                    f"{key}={text}: wanted a text, or a .txt or .md file that is there",
                )
                for key in TEACHER_KEYS
                if (text := getattr(self, key))
            ),
            (
                self.date is None or _is_date(self.date),
                f"date={self.date}: wanted YYYY-MM-DD, or null: the day on which the run begins",
            ),
            (
                self.template == "paper" or not self.bos,
                "bos=true: a chat template writes bos itself; wanted null, or data.template=paper",
            ),
        )

    @property
    def longest(self) -> int:
        """The longest a prompt with its reference may be, in tokens."""
        together = self.max_prompt_tokens + self.max_response_tokens
        return together if self.max_tokens is None else min(self.max_tokens, together)

    def begun(self, tokenizer: PreTrainedTokenizerBase, before: str | None = None) -> Sources:
        """With the date fixed where the chat template asks for one: that of an earlier beginning, or today."""
        if self.date or self.template != "chat" or not templates.asks_for_date(tokenizer):
            return self
        return replace(self, date=before or datetime.date.today().isoformat())

    def front(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The tokens that are put before a prompt; a chat template writes its own."""
        ids = templates.front_ids(tokenizer, self.bos) if self.template == "paper" else []
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    def missing(self, *, corpus: bool) -> list[str]:
        """Files that are named and are not there, before anything is read; with `corpus` that one too."""
        named = {key: getattr(self, key) for key in ("train_file", "val_file", "corpus_file")[: 2 + corpus]}
        return [
            f"{key}={file}: no such file or directory"
            for key, file in named.items()
            if file not in (None, "pydoc_topics", *BUILTIN)
            and not hub_id(file, "dataset")
            and not Path(file).expanduser().exists()
        ]

    def records(self, teachers: Sequence[str] | None = None) -> tuple[list[Record], list[Record]]:
        """(train, validation), read without a model; all rows of a val_file. Raises DataError, see `read_records`."""
        train = read_records(self.train_file, teachers)
        if self.val_file is not None:
            return train, read_records(self.val_file, teachers)
        held_out = sorted(random.Random(0).sample(range(len(train)), min(self.val_size, len(train))))
        return train, [train[row] for row in held_out]

    def prompts(
        self, train: list[Record], validation: list[Record], pair: Pair, *, answered: bool = False
    ) -> tuple[PromptSet, PromptSet]:
        """(train, validation) of what `records` has read; with `answered` training prompts without a response are
        dropped. Raises DataError, ConfigError: see `build_prompts` and `prompt_encoder`."""
        used = validation[: self.val_size]
        train_prompts = self._build(train, pair, "training prompts", exclude=used, answered=answered, teacher=True)
        val_prompts = self._build(used, pair, "validation prompts", teacher=True)
        beyond = Counter({prompts.BEYOND: len(validation) - len(used)})
        return train_prompts, replace(val_prompts, dropped=val_prompts.dropped + beyond)

    def evaluation_prompts(self, records: list[Record], pair: Pair, name: str, *, teacher: bool = False) -> PromptSet:
        """`teacher`: also those that the teacher sees."""
        return self._build(records, pair, name, teacher=teacher)

    def corpus(self, documents: Documents, pair: Pair) -> Corpus:
        """The packed corpus of L_PT. Raises DataError, see `build_corpus`."""
        return corpus.build_corpus(documents, pair.tokenizer, block_size=self.block_size, n_vocab=pair.n_vocab)

    def _build(
        self, records: list[Record], pair: Pair, name: str, *, teacher: bool = False, **options: Any
    ) -> PromptSet:
        def encoder(tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any]) -> templates.Encoder:
            how = dict(bos=self.bos, date=self.date)
            return templates.prompt_encoder(tokenizer, self.template, self.system, arguments, **how)

        texts = {key: _text(getattr(self, key)) for key in TEACHER_KEYS}
        given = [*texts.values(), self.teacher_template_arguments]
        given += [getattr(record, key) for record in records for key in TEACHER_KEYS]
        theirs, separate = None, teacher and pair.teacher_tokenizer is not None
        if teacher and (separate or any(each is not None for each in given)):
            arguments = self.teacher_template_arguments
            tokenizer = pair.teacher_tokenizer if separate else pair.tokenizer
            try:
                plain = encoder(tokenizer, self.template_arguments if arguments is None else arguments)
            except ConfigError as error:
                whose = "of the teacher's own tokenizer: " if separate else ""
                raise ConfigError(f"{whose}{each}" for each in error.problems) from error
            theirs = partial(self._for_teacher, texts, plain)
        lengths = {key: getattr(self, key) for key in ("max_prompt_tokens", "max_response_tokens", "max_tokens")}
        options |= dict(pad_id=pair.pad_id, n_vocab=pair.n_vocab, name=name, teacher=theirs)
        options |= dict(n_teacher=pair.teacher.n_vocab) if separate else {}
        encode = encoder(pair.tokenizer, self.template_arguments)
        built = prompts.build_prompts(records, encode, pair.tokenizer, **lengths, **options)
        named = [record.teacher for record in built.records]
        return built if None in named else replace(built, teachers=tuple(map(list(pair.teachers).index, named)))

    def _for_teacher(
        self, texts: dict[str, str | None], encode: templates.Encoder, records: Sequence[Record]
    ) -> list[list[int] | Dropped]:
        """An Encoder of what the teacher sees."""
        made: list[Record | Dropped] = []
        for record in records:
            own = {key: text for key, text in texts.items() if getattr(record, key) is None and text is not None}
            if "{reference}" in own.get("teacher_context", ""):
                if not record.references:
                    made.append(Dropped(prompts.NO_RESPONSE))
                    continue
                own["teacher_context"] = own["teacher_context"].replace("{reference}", record.references[0])
            made.append(replace(record, **own).for_teacher(system_turn=self.template == "chat"))
        ids = iter(encode([each for each in made if isinstance(each, Record)]))
        return [next(ids) if isinstance(each, Record) else each for each in made]


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_file(text: str) -> bool:
    return text.endswith((".txt", ".md")) and "\n" not in text


def _text(given: str | None) -> str | None:
    """Itself, or what the file holds that it names. Raises DataError: the file cannot be read."""
    if given is None or not _is_file(given):
        return given
    try:
        return Path(given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{given}: cannot be read ({error})") from error


def training_keys(sources: Sources | None) -> list[str]:
    """Keys that only training reads, given in the config of a job that does not train."""
    keys = "train_file val_file val_size corpus_file block_size max_response_tokens max_tokens teacher_cache".split()
    keys += [*TEACHER_KEYS, "teacher_template_arguments", "on_policy", "replay", "replay_size"]
    return [key for key in keys if sources and getattr(sources, key) != getattr(Sources(), key)]
