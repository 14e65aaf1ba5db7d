"""The config group `model`: a student, a teacher, and how to load them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from minillm.common.checks import collect
from minillm.common.console import say
from minillm.common.errors import ConfigError, ModelError, check
from minillm.common.lazy import lazy
from minillm.models.architecture import body_of
from minillm.models.checkpoint import Attention, Checkpoint, Dtype, FromScratch, choose_dtype, missing_for
from minillm.models.families import text_config
from minillm.models.lora import Lora
from minillm.models.vocabulary import stop_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from minillm.models.loaded import Pair
else:
    torch = lazy("torch")


# `teacher` of a pair whose teacher is the student itself; a directory of that name is ./start.
OWN_TEACHERS = {
    "start": "the student at the start",
    "ema": "the student's moving average",
    "base": "the student's base (adapters off)",
}
_TAKEN = (
    "student",
    "teacher",
    "raw",
    "start",
    "mass",
    "sampled",
)  # other figures end so, as a teacher's own end with its name


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
class ModelPair:
    """Settings of the pair; `student` and `teacher` may be plain strings, see `Checkpoint.source`; fine-tuning needs no
    teacher, and one of OWN_TEACHERS is the student itself. `teachers`, by names of one's own, are in the place of
    `teacher`: each record names its own. `reference` is what an objective compares with (START in its `needs`) in the
    place of the student at the start. `ema_rate`: see `MovingAverage`. `compile`: see `LanguageModel`. `lora`: train
    adapters of the student only. `gradient_checkpointing`: its layers keep their inputs only and are computed again in
    the backward pass. `tokenizers`: whether teacher and student share one, or keep their own, for an objective that
    compares texts."""

    student: Checkpoint | FromScratch | PrunedTeacher | str
    teacher: Checkpoint | str | None = None
    dtype: Dtype = "auto"
    attention: Attention = "sdpa"
    compile: bool = False
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    ema_rate: float = 0.02
    teachers: dict[str, Checkpoint | str | dict] | None = None
    reference: Checkpoint | str | None = None
    tokenizers: Literal["shared", "separate"] = "shared"

    def __post_init__(self):
        if self.teachers is not None:
            object.__setattr__(self, "teachers", _by_name(self.teachers))
        for name in ("student", "teacher", "reference"):
            if isinstance(getattr(self, name), str):
                place = "url" if getattr(self, name).startswith(("http://", "https://")) else "source"
                object.__setattr__(self, name, Checkpoint(**{place: getattr(self, name)}))
        pruned, scratch = (isinstance(self.student, kind) for kind in (PrunedTeacher, FromScratch))
        bits, teacher_bits = (getattr(side, "bits", None) for side in (self.student, self.teacher))
        check(
            (not (self.teacher and self.teachers), "teacher, teachers: both are given; wanted teacher=null"),
            (self.teacher or not pruned, "teacher=null: the student is made of the teacher's layers; wanted a teacher"),
            (not bits, f"student.bits={bits}: only a teacher can be quantised; remove it, or train adapters (lora)"),
            (
                not (pruned and teacher_bits),
                f"teacher.bits={teacher_bits}: the student is made of its weights; remove bits",
            ),
            (not getattr(self.student, "url", None), "student.url: only a teacher can be served; wanted source"),
            (
                not any(getattr(self.reference, key, None) for key in ("url", "bits", "offload")),
                "reference: url, bits and offload are for a teacher only; wanted a directory or hub id",
            ),
            (
                not (pruned and self.teacher and self.teacher.url),
                "teacher.url: the student is made of the teacher's weights; wanted teacher.source, or another student",
            ),
            (not (scratch and self.lora), "lora: adapters of random weights that stay as they are; wanted lora=none"),
            (0 < self.ema_rate < 1, f"ema_rate={self.ema_rate}: wanted a number between 0 and 1"),
            (
                self.tokenizers == "shared" or (self.teacher and not (pruned or self.own_teacher or self.teacher.url)),
                "tokenizers=separate: wanted one teacher of its own weights in this process (not null, url, or one of "
                f"{', '.join(OWN_TEACHERS)}) and a student that is not made of its layers; or tokenizers=shared",
            ),
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
    def all_teachers(self) -> dict[str, Checkpoint]:
        """The settings of each teacher by the key that has them."""
        several = {f"teachers.{name}": each for name, each in (self.teachers or {}).items()}
        return several or ({"teacher": self.teacher} if self.teacher else {})

    @property
    def teacher_names(self) -> tuple[str, ...] | None:
        """For the key `teacher` of a record, see `read_records`."""
        return tuple(self.teachers) if self.teachers else () if self.teacher else None

    @property
    def own_teacher(self) -> str | None:
        """Which of OWN_TEACHERS the teacher is."""
        source = getattr(self.teacher, "source", None)
        return source if source in OWN_TEACHERS else None

    def load(self, device: torch.device, seed: int = 0, *, keep_on_cpu: bool = False) -> Pair:
        """Load both, compare their vocabularies, cut them to the shared rows. `seed` is of new adapters. keep_on_cpu:
        the device gets the weights later. Raises ConfigError or ModelError for what cannot be loaded or paired."""
        from minillm.models.loaded import pair_of, with_rows_of, with_teachers
        from minillm.models.own_teacher import Unadapted, copy_of
        from minillm.models.prune import keep_layers

        dtypes = self.dtypes(device)
        if self.reference:
            pair = replace(self, reference=None).load(device, seed, keep_on_cpu=keep_on_cpu)
            reference = with_rows_of(pair, *self._load("reference", dtypes["teacher"]))
            return replace(pair, loaded_by=self, reference=reference)
        if self.teachers:
            alone = replace(self, teachers=None).load(device, seed)
            return replace(with_teachers(alone, self.teachers, dtypes["teacher"], self.attention), loaded_by=self)
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
        pair = pair_of(student, teacher, tokenizer, teacher_tokenizer, self.compile, self.tokenizers == "separate")
        if self.own_teacher == "base":
            pair = replace(pair, teacher=Unadapted(student, pair.n_vocab))
        elif teacher is not None:
            pair.teacher.offload = self.teacher.offload
        if self.gradient_checkpointing:
            recompute_activations(student)
        return replace(pair, loaded_by=self)

    def missing_here(self) -> list[str]:
        """What this machine lacks for them, see `missing_for`."""
        found = {key: missing_for(each.bits) for key, each in self.all_teachers.items()}
        return [f"model.{key}.{missing}" for key, missing in found.items() if missing]

    def missing_files(self) -> list[str]:
        """Directories and files that are named and hold no model, before anything is loaded."""
        sides = {"student": self.student, "reference": self.reference} | ({} if self.own_teacher else self.all_teachers)
        problems = []
        for key, each in sides.items():
            try:
                if isinstance(each, Checkpoint) and each.source:
                    each.place()
            except (ConfigError, ModelError) as error:
                problems.append(f"model.{key}.{error}")
        return problems

    def load_student(self, device: torch.device) -> Pair:
        """As `load` gives it, without the teacher: its weights are read only where the student is made of them. A
        teacher that cannot be found adds no tokens that end an answer, and a warning is printed."""
        if isinstance(self.student, PrunedTeacher):
            return replace(replace(self, reference=None).load(device), teacher=None)
        pair = replace(self, teacher=None, teachers=None, reference=None, tokenizers="shared").load(device)
        n_vocab, stated = pair.n_vocab, [pair.student.generation_config]
        for key, teacher in ({} if self.own_teacher or self.tokenizers == "separate" else self.all_teachers).items():
            try:
                found, rows = teacher.ends()
            except (ConfigError, ModelError) as error:
                others = "and those of other teachers" if self.teachers else "alone"
                say(f"model.{key}: {error}\nAnswers will end at the student's own tokens {pair.stop_ids} {others}")
                continue
            n_vocab, stated = min(n_vocab, rows), [*stated, found]
        return replace(pair, n_vocab=n_vocab, stop_ids=stop_ids(pair.tokenizer, *stated, n_vocab=n_vocab))

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


def _by_name(given: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """`ModelPair.teachers` as checkpoints, in the order of their names. Raises ConfigError with every problem."""
    found, problems = {}, [] if given else ["teachers={}: wanted names and checkpoints, such as {math: DIR, code: DIR}"]
    for name, each in sorted({str(name): each for name, each in given.items()}.items()):
        place = f"teachers.{name}"
        if not re.fullmatch(r"[A-Za-z][\w-]*(?<!_raw)(?<!_start)", name) or name in _TAKEN:
            problems.append(
                f"{place}: wanted a name of letters, digits, - and _, not one of {', '.join(_TAKEN)} and none that "
                "ends with _raw or _start"
            )
        if not isinstance(each, Checkpoint):
            node = each if isinstance(each, Mapping) else {"source": each}
            each = collect(problems, place, {"_target_": "minillm.models.Checkpoint", **node})
        if each and (each.url or each.offload or each.source in OWN_TEACHERS or each.source.startswith("http")):
            problems.append(f"{place}={each.name}: a server, offload and the student itself are for model.teacher only")
        found[name] = each
    if problems:
        raise ConfigError(problems)
    return found


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
