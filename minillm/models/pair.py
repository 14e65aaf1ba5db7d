"""The config group `model`: a student, a teacher, and how to load them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.lazy import lazy
from minillm.models.architecture import body_of
from minillm.models.checkpoint import Attention, Checkpoint, Dtype, FromScratch, choose_dtype, missing_for
from minillm.models.families import text_config
from minillm.models.lora import Lora
from minillm.models.vocabulary import Vocabulary, compare_vocabularies, stop_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from minillm.models.language_model import LanguageModel
    from minillm.models.served import ServedTokenizer
else:
    torch = lazy("torch")


# `teacher` of a pair whose teacher is the student itself; a directory of that name is ./start.
OWN_TEACHERS = {
    "start": "the student at the start",
    "ema": "the student's moving average",
    "base": "the student's base (adapters off)",
}


@dataclass(frozen=True)
class PrunedTeacher:
    """A student that is the teacher with some layers left out: name those to keep, or those to drop (0-based)."""

    keep_layers: list[int] | None = None
    drop_layers: list[int] | None = None

    def __post_init__(self):
        given, one = self.keep_layers or self.drop_layers, (self.keep_layers is None) != (self.drop_layers is None)
        if not (one and given and sorted(set(given)) == list(given) and given[0] >= 0):
            raise ConfigError(
                f"keep_layers={self.keep_layers}, drop_layers={self.drop_layers}: wanted exactly one of the two, with "
                "layer numbers from 0 in ascending order"
            )

    def kept(self, n_layers: int) -> list[int]:
        """Raises ConfigError where a number is beyond the teacher's layers or nothing is left."""
        given = self.keep_layers or self.drop_layers
        kept = list(self.keep_layers or [layer for layer in range(n_layers) if layer not in given])
        if max(given) >= n_layers or not kept:
            raise ConfigError(
                f"model.student: layers {list(given)} of a teacher with {n_layers} layers (0 to {n_layers - 1}); "
                "change keep_layers or drop_layers"
            )
        return kept


@dataclass(frozen=True)
class Pair:
    """A loaded pair. `student` is trained; `teacher` is frozen, in eval mode and outside of every checkpoint, and None
    where a model is measured alone. `compile`: see `LanguageModel`. `vocabulary`: what was found on the way;
    `loaded_by`: the settings; `reference`: see there, frozen too."""

    student: PreTrainedModel
    teacher: LanguageModel | None
    tokenizer: PreTrainedTokenizerBase
    n_vocab: int
    stop_ids: tuple[int, ...]
    compile: bool = False
    vocabulary: Vocabulary | None = None
    loaded_by: ModelPair | None = None
    reference: LanguageModel | None = None

    @property
    def teacher_here(self) -> LanguageModel | None:
        """The teacher if its weights are in this process; a served one scores answers only."""
        return None if self.teacher is None or self.teacher.served else self.teacher

    @property
    def pad_id(self) -> int:
        """What fills padding. Its value never matters: masks are explicit."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.n_vocab else self.tokenizer.eos_token_id


@dataclass(frozen=True)
class ModelPair:
    """Settings of the pair; `student` and `teacher` may be plain strings, see `Checkpoint.source`; fine-tuning needs no
    teacher, and one of OWN_TEACHERS is the student itself. `reference` is what an objective compares with (START in its
    `needs`) in the place of the student at the start. `ema_rate`: see `MovingAverage`. `compile`: see
    `LanguageModel`. `lora`: train adapters of the student only. `gradient_checkpointing`: its layers keep their inputs
    only and are computed again in the backward pass."""

    student: Checkpoint | FromScratch | PrunedTeacher | str
    teacher: Checkpoint | str | None = None
    dtype: Dtype = "auto"
    attention: Attention = "sdpa"
    compile: bool = False
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    ema_rate: float = 0.02
    reference: Checkpoint | str | None = None

    def __post_init__(self):
        for name in ("student", "teacher", "reference"):
            if isinstance(getattr(self, name), str):
                place = "url" if getattr(self, name).startswith(("http://", "https://")) else "source"
                object.__setattr__(self, name, Checkpoint(**{place: getattr(self, name)}))
        pruned, scratch = (isinstance(self.student, kind) for kind in (PrunedTeacher, FromScratch))
        bits, teacher_bits = (getattr(side, "bits", None) for side in (self.student, self.teacher))
        check(
            (self.teacher or not pruned, "teacher=null: the student is made of the teacher's layers; wanted a teacher"),
            (not bits, f"student.bits={bits}: only a teacher can be quantised; remove it, or train adapters (lora)"),
            (
                not (pruned and teacher_bits),
                f"teacher.bits={teacher_bits}: the student is made of its weights; remove bits",
            ),
            *(
                (not getattr(side, "url", None), f"{name}.url: only a teacher can be served; wanted source")
                for name, side in (("student", self.student), ("reference", self.reference))
            ),
            (
                not (pruned and self.teacher and self.teacher.url),
                "teacher.url: the student is made of the teacher's weights; wanted teacher.source, or another student",
            ),
            (not (scratch and self.lora), "lora: adapters of random weights that stay as they are; wanted lora=none"),
            (0 < self.ema_rate < 1, f"ema_rate={self.ema_rate}: wanted a number between 0 and 1"),
            *self._own_teacher_rules(pruned),
        )

    def _own_teacher_rules(self, pruned: bool) -> list[tuple[bool, str]]:
        if not (own := self.own_teacher):
            return []
        given = [key for key in ("offload", "adapter", "bits") if getattr(self.teacher, key)]
        return [
            (not pruned, f"teacher={own}: the student is made of a teacher's layers; wanted another model.student"),
            (not given, f"teacher={own}: the student itself, which has no {', '.join(given)} of its own; remove it"),
            (own != "base" or self.lora is not None, "teacher=base: the student without adapters; wanted lora"),
        ]

    @property
    def own_teacher(self) -> str | None:
        """Which of OWN_TEACHERS the teacher is."""
        source = getattr(self.teacher, "source", None)
        return source if source in OWN_TEACHERS else None

    def load(self, device: torch.device, seed: int = 0, *, keep_on_cpu: bool = False) -> Pair:
        """Load both, compare their vocabularies, cut them to the shared rows. `seed` is of new adapters. keep_on_cpu:
        the device gets the weights later. Raises ConfigError or ModelError for what cannot be loaded or paired."""
        from minillm.models.own_teacher import Unadapted, copy_of
        from minillm.models.prune import keep_layers

        dtypes = self.dtypes(device)
        device = torch.device("cpu") if keep_on_cpu else device
        teacher = teacher_tokenizer = None
        if isinstance(self.student, PrunedTeacher):
            teacher, teacher_tokenizer = self._load("teacher", dtypes["student"])
            kept = self.student.kept(text_config(teacher.config).num_hidden_layers)
            student, tokenizer = keep_layers(teacher, kept), copy.deepcopy(teacher_tokenizer)
            for parameter in teacher.parameters():  # not teacher.to(): that would round the rotary frequencies too
                parameter.data = parameter.data.to(dtypes["teacher"])
            base = f"{self.teacher.name}, layers {kept}"
        else:
            if self.teacher is not None and self.own_teacher in (None, "start"):
                side = "student" if self.own_teacher else "teacher"
                teacher, teacher_tokenizer = self._load(side, dtypes["teacher"])
            student, tokenizer = self._load("student", dtypes["student"])
            base = getattr(self.student, "name", "random weights")
        _freeze_unused(student)
        if self.lora is not None:
            self.lora.onto(student, base=base, seed=seed)
        student.to(device)
        if teacher is not None and not self.teacher.bits:  # else it is there already
            teacher.to(device)
        if self.own_teacher:
            teacher_tokenizer = tokenizer
            teacher = copy_of(student) if self.own_teacher == "ema" else teacher
        pair = pair_of(student, teacher, tokenizer, teacher_tokenizer, compile=self.compile)
        if self.own_teacher == "base":
            pair = replace(pair, teacher=Unadapted(student, pair.n_vocab))
        elif teacher is not None:
            pair.teacher.offload = self.teacher.offload
        if self.gradient_checkpointing:
            recompute_activations(student)
        return replace(pair, loaded_by=self, reference=self._load_reference(pair, dtypes["teacher"], device))

    def _load_reference(self, pair: Pair, dtype: torch.dtype, device: torch.device) -> LanguageModel | None:
        from minillm.models.language_model import LanguageModel

        if self.reference is None:
            return None
        network, tokenizer = self._load("reference", dtype)
        tokenizers, rows = (pair.tokenizer, tokenizer), network.get_output_embeddings().weight.shape[0]
        known = [{(n, token) for token, n in each.get_vocab().items() if n < pair.n_vocab} for each in tokenizers]
        if known[0] != known[1] or rows < pair.n_vocab:
            raise ModelError("model.reference: has another vocabulary than the student; wanted a model of its family")
        return LanguageModel(network.to(device), pair.n_vocab).frozen()

    def missing_here(self) -> list[str]:
        """What this machine lacks for them, see `missing_for`."""
        missing = missing_for(self.teacher.bits) if self.teacher is not None else None
        return [f"model.teacher.{missing}"] if missing else []

    def load_student(self, device: torch.device) -> Pair:
        """As `load` gives it, without the teacher: its weights are read only where the student is made of them. A
        teacher that cannot be found adds no tokens that end an answer, and a warning is printed."""
        if self.teacher is None or isinstance(self.student, PrunedTeacher):
            return replace(replace(self, reference=None).load(device), teacher=None)
        pair = replace(self, teacher=None, reference=None).load(device)
        if self.own_teacher:
            return pair
        try:
            stated, rows = self.teacher.ends()
        except (ConfigError, ModelError) as error:
            say(f"model.teacher: {error}\nAnswers will end at the student's own tokens {pair.stop_ids} alone")
            return pair
        n_vocab = min(pair.n_vocab, rows)
        stops = stop_ids(pair.tokenizer, pair.student.generation_config, stated, n_vocab=n_vocab)
        return replace(pair, n_vocab=n_vocab, stop_ids=stops)

    def dtypes(self, device: torch.device) -> dict[str, torch.dtype]:
        """Types of `student` and `teacher`. With `auto` trained weights are float32: a step of 5e-6 is lost in
        bfloat16; trainer.precision=bf16-mixed makes products fast. Under adapters the student is frozen, as the teacher
        is."""
        frozen = choose_dtype(self.dtype, device)
        return {"student": torch.float32 if self.dtype == "auto" and self.lora is None else frozen, "teacher": frozen}

    def _load(self, side: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        try:
            return getattr(self, side).load(dtype, self.attention)
        except ConfigError as error:
            raise ConfigError(error.prefixed(f"model.{side}")) from error


def _freeze_unused(student: PreTrainedModel) -> None:
    """Of a multimodal model, all but the language model and its head: nothing here trains the rest."""
    used = {id(each) for part in (body_of(student), student.get_output_embeddings()) for each in part.parameters()}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in used)


def recompute_activations(network: PreTrainedModel) -> None:
    """Let each layer keep only its input in training mode; its backward pass computes the rest again."""
    if not network.supports_gradient_checkpointing:
        family = network.config.model_type
        raise ModelError(f"{family}: cannot do without activations; set gradient_checkpointing=false")
    # Nothing is drawn in a forward pass, so there is no state of random numbers to keep.
    network.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    network.disable_input_require_grads()  # only reentrant checkpoints need it


def pair_of(
    student: PreTrainedModel,
    teacher: PreTrainedModel | LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | ServedTokenizer | None,
    compile: bool = False,
) -> Pair:
    """Check that two loaded models can be distilled into one another and freeze the teacher, or a teacher that is
    served and verified elsewhere. Raises ModelError, see `compare_vocabularies`, `LanguageModel.verify`."""
    from minillm.models.language_model import LanguageModel

    served = teacher if isinstance(teacher, LanguageModel) else None
    networks = [each for each in (student, served.network if served else teacher) if each is not None]
    rows = [each.get_output_embeddings().weight.shape[0] for each in networks]
    vocabulary = compare_vocabularies(tokenizer, teacher_tokenizer, rows[0], rows[-1])
    n_vocab = vocabulary.shared
    for network in networks[:1] if served else networks:
        LanguageModel(network, n_vocab).verify()
    if served:
        served.n_vocab = n_vocab
    elif teacher is not None:
        teacher = LanguageModel(teacher, n_vocab, compile).frozen()
    return Pair(
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        n_vocab=n_vocab,
        stop_ids=stop_ids(tokenizer, *(each.generation_config for each in networks), n_vocab=n_vocab),
        compile=compile,
        vocabulary=vocabulary,
    )


def solo(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A model without a teacher. Raises as `pair_of`."""
    return pair_of(network, None, tokenizer, None)
