"""Loaded models: a student and its teacher, or several teachers, checked against one another. Axes: H hidden width."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from minillm.common.errors import ConfigError, ModelError
from minillm.common.lazy import lazy
from minillm.models.checkpoint import Checkpoint
from minillm.models.vocabulary import Vocabulary, compare_vocabularies, separate_vocabularies, stop_ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from minillm.models.language_model import LanguageModel
    from minillm.models.served import ServedTokenizer
else:
    torch, losses = lazy("torch"), lazy("minillm.losses")


class Teachers:
    """Several teachers by name, in the place of one `LanguageModel`. Rows of prompts and rollouts have the number of
    theirs (`teachers_B`): its place among the sorted names."""

    served, exact = False, True
    body_away = staticmethod(nullcontext)

    def __init__(self, models: Mapping[str, LanguageModel]):
        self.by_name = dict(sorted(models.items()))
        networks = [each.network for each in self.by_name.values()]
        self.device = networks[0].device
        self.width = max(each.get_output_embeddings().weight.shape[1] for each in networks)
        self.mixed = len(set(map(type, networks))) > 1


def one_of(model: Any, number: int | None) -> Any:
    """The teacher of that number; a model that is not several is itself. Raises ConfigError: rows have no number."""
    if not isinstance(model, Teachers):
        return model
    if number is None:
        raise ConfigError("model.teachers: a sampler's rows have no teachers_B; make rollouts by prompts.answered")
    return list(model.by_name.values())[number]


def kept_states(model: Any, hidden: Tensor) -> Tensor:
    """A teacher's hidden states [..., H] as a rollout keeps them: those of several teachers have the widest one's width
    and one type (under autocast the last norm of some families gives float32)."""
    if not isinstance(model, Teachers):
        return hidden
    hidden = losses.raise_half(hidden) if model.mixed else hidden
    return torch.nn.functional.pad(hidden, (0, model.width - hidden.shape[-1]))


@dataclass(frozen=True)
class Pair:
    """A loaded pair. `student` is trained; `teacher` is frozen, in eval mode and outside of every checkpoint, and None
    where a model is measured alone; several are a `Teachers`. `compile`: see `LanguageModel`. `vocabulary`: what was
    found on the way; `loaded_by`: the settings, a ModelPair, whose `reference` is frozen too. `teacher_tokenizer`,
    `teacher_stop_ids`: of a teacher that does not share the student's tokens, None where it does."""

    student: PreTrainedModel
    teacher: LanguageModel | Teachers | None
    tokenizer: PreTrainedTokenizerBase
    n_vocab: int
    stop_ids: tuple[int, ...]
    compile: bool = False
    vocabulary: Vocabulary | None = None
    loaded_by: Any = None
    reference: LanguageModel | None = None
    teacher_tokenizer: PreTrainedTokenizerBase | None = None
    teacher_stop_ids: tuple[int, ...] | None = None

    @property
    def teachers(self) -> Mapping[str, LanguageModel]:
        """By name; one teacher has the name `teacher`."""
        return getattr(self.teacher, "by_name", {} if self.teacher is None else {"teacher": self.teacher})

    @property
    def teacher_names(self) -> tuple[str, ...] | None:
        """See `ModelPair.teacher_names`."""
        return None if self.teacher is None else tuple(getattr(self.teacher, "by_name", ()))

    @property
    def teacher_here(self) -> LanguageModel | Teachers | None:
        """The teacher if its weights are in this process; a served one scores answers only."""
        return None if self.teacher is None or self.teacher.served else self.teacher

    def tokens_of(self, model: Any) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
        """Tokenizer and stop tokens of the teacher, or of another model, which is the student."""
        separate = model is self.teacher and self.teacher_tokenizer is not None
        return (self.teacher_tokenizer, self.teacher_stop_ids) if separate else (self.tokenizer, self.stop_ids)

    @property
    def pad_id(self) -> int:
        """What fills padding. Its value never matters: masks are explicit."""
        rows = self.n_vocab if self.teacher_tokenizer is None else min(self.n_vocab, self.teacher.n_vocab)
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(each for each in pads if each is not None and each < rows)


def pair_of(
    student: PreTrainedModel,
    teacher: PreTrainedModel | LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | ServedTokenizer | None,
    compile: bool = False,
    separate: bool = False,
) -> Pair:
    """Check that two loaded models can be distilled into one another and freeze the teacher, or a teacher that is
    served and verified elsewhere. `separate`: each keeps its own tokens. Raises ModelError, see `compare_vocabularies`,
    `separate_vocabularies`, `LanguageModel.verify`."""
    from minillm.models.language_model import LanguageModel

    served = teacher if isinstance(teacher, LanguageModel) else None
    networks = [each for each in (student, served.network if served else teacher) if each is not None]
    rows = [each.get_output_embeddings().weight.shape[0] for each in networks]
    compared = separate_vocabularies if separate else compare_vocabularies
    vocabulary = compared(tokenizer, teacher_tokenizer, rows[0], rows[-1])
    n_vocab = vocabulary.shared
    n_teacher = vocabulary.teacher.rows if separate else n_vocab
    for network, size in zip(networks[:1] if served else networks, (n_vocab, n_teacher), strict=False):
        LanguageModel(network, size).verify()
    if served:
        served.n_vocab = n_vocab
    elif teacher is not None:
        teacher = LanguageModel(teacher, n_teacher, compile).frozen()
    own, stated = {}, [each.generation_config for each in networks]
    if separate:
        ends = stop_ids(teacher_tokenizer, stated.pop(), n_vocab=n_teacher)
        own = dict(teacher_tokenizer=teacher_tokenizer, teacher_stop_ids=ends)
    return Pair(
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        n_vocab=n_vocab,
        stop_ids=stop_ids(tokenizer, *stated, n_vocab=n_vocab),
        compile=compile,
        vocabulary=vocabulary,
        **own,
    )


def solo(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A model without a teacher. Raises as `pair_of`."""
    return pair_of(network, None, tokenizer, None)


def with_rows_of(pair: Pair, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """The network, frozen and on the student's device, cut to the pair's rows. Raises ModelError: they are others;
    see `LanguageModel.verify`."""
    from minillm.models.language_model import LanguageModel

    tokenizers, rows = (pair.tokenizer, tokenizer), network.get_output_embeddings().weight.shape[0]
    known = [{(n, token) for token, n in each.get_vocab().items() if n < pair.n_vocab} for each in tokenizers]
    if known[0] != known[1] or rows < pair.n_vocab:
        raise ModelError("model.reference: has another vocabulary than the student; wanted a model of its family")
    model = LanguageModel(network.to(pair.student.device), pair.n_vocab).frozen()
    model.verify()
    return model


def with_teachers(alone: Pair, specs: Mapping[str, Checkpoint], dtype: torch.dtype, attention: str) -> Pair:
    """The student of a pair with these teachers: the rows that all share, and the tokens that end an answer of any.
    Teachers that differ in their adapters alone share the weights of their base; an adapter is not merged there. Raises
    ConfigError or ModelError with the teacher's name, see `Checkpoint.load` and `pair_of`."""
    from minillm.models.adapter import merge_adapter

    bases, read, pairs = [replace(spec, adapter=None) for spec in specs.values()], {}, {}
    for base, (name, spec) in zip(bases, specs.items(), strict=True):
        try:
            if bases.count(base) == 1:
                network, tokenizer = spec.load(dtype, attention)
            else:
                network, tokenizer = read[base] = read.get(base) or base.load(dtype, attention)
                network = copy.deepcopy(network, {id(each): each for each in network.parameters()})
                if spec.adapter is not None:
                    network = merge_adapter(network, spec.adapter, spec.source, merge=False)
            network = network if spec.bits else network.to(alone.student.device)
            pairs[name] = pair_of(alone.student, network, alone.tokenizer, tokenizer, alone.compile)
        except (ConfigError, ModelError) as error:
            raise type(error)(f"model.teachers.{name}: {error}") from error
    teachers = Teachers({name: each.teacher for name, each in pairs.items()})
    first, *others = (each.vocabulary for each in pairs.values())
    n_vocab = min(each.n_vocab for each in pairs.values())
    for each in teachers.by_name.values():
        each.n_vocab = n_vocab
    same, others = all(each.same_template for each in (first, *others)), tuple(each.teacher for each in others)
    vocabulary = replace(first, shared=n_vocab, same_template=same, others=others)
    stops = tuple(sorted({stop for each in pairs.values() for stop in each.stop_ids if stop < n_vocab}))
    return replace(alone, teacher=teachers, n_vocab=n_vocab, stop_ids=stops, vocabulary=vocabulary)
