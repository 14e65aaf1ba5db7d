"""The project's model of memory: what one device holds at the peak of a rollout and of an update, by closed formulas.

They are those of CUDA with torch's fused attention. docs/planning.md says how they agree with measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from minillm.parallel import Parallel
from minillm.planning.networks import Sizes

GB, MIB = 1e9, 2**20
_PREFILL = 2**14  # tokens of prompts that are read at a time, see minillm/rollout/decoding.py
# How many tensors as large as a chunk of logits live at a time: by whether the loss is chunked and the teacher is read.
_CHUNKS = {(True, True): 8.9, (True, False): 6.3, (False, True): 6.3, (False, False): 3.1}
_SCORED, _DRAWN = 3, 3  # the same when the teacher scores, and of each model in a step of decoding

Peak = dict[str, float]  # bytes by purpose


@dataclass(frozen=True)
class Case:
    """Sizes of a run, all global, not those of a device. Every answer is as long as the settings allow.

    Args:
        prompt, answer: tokens of the longest ones.
        rollouts: rows of a round, 0 where the data gives the answers; `decoded` of them at a time.
        chunk_mb: MiB of a chunk of logits, None for the plain loss.
        reads_teacher: whether the objective needs the teacher's distribution; `corpus_teacher`: the regulariser.
        shares_base: whether the teacher's weights are the student's own.
        start: the model that an objective compares with as the student at the start, if one does.
        keep_states: whether the teacher's hidden states are kept from the rollout to its updates.
        teacher_decodes: whether the teacher takes part in decoding; else it scores the answers.
        blocks: rows of the corpus in a step, of `block` tokens.
        offload: whether the teacher's body is on the CPU during updates.
        half: whether autocast computes products in bfloat16. recompute: gradient checkpointing.
    """

    student: Sizes
    teacher: Sizes | None
    prompt: int
    answer: int
    minibatch: int
    microbatch_tokens: int
    microbatch_rows: int | None = None
    rollouts: int = 0
    decoded: int = 0
    chunk_mb: float | None = 32.0
    reads_teacher: bool = True
    corpus_teacher: bool = False
    shares_base: bool = False
    start: Sizes | None = None
    keep_states: bool = True
    teacher_decodes: bool = True
    blocks: int = 0
    block: int = 0
    offload: bool = False
    half: bool = False
    recompute: bool = False
    layout: Parallel = field(default_factory=Parallel)

    @property
    def models(self) -> list[Sizes]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def decoders(self) -> list[Sizes]:
        return self.models if self.teacher_decodes else [self.student]

    @property
    def columns(self) -> int:
        """Tokens of a full row that go through the models in an update: the last one is never an input."""
        return self.prompt + self.answer - 1

    def local(self, rows: int) -> int:
        """Of so many rows those of one device."""
        return math.ceil(rows / self.layout.data_parallel_size)

    @property
    def rows(self) -> int:
        """Rows of a full micro-batch of answers."""
        limits = [self.local(self.minibatch), max(1, self.microbatch_tokens // self.columns), self.microbatch_rows]
        return min(each for each in limits if each)

    @property
    def corpus_rows(self) -> int:
        """Rows of a micro-batch of the corpus."""
        return min(self.local(self.blocks), max(1, self.microbatch_tokens // self.block)) if self.blocks else 0

    @property
    def microbatches(self) -> int:
        """How many micro-batches one device runs for one optimizer step."""
        corpus = math.ceil(self.local(self.blocks) / self.corpus_rows) if self.blocks else 0
        return math.ceil(self.local(self.minibatch) / self.rows) + corpus

    @property
    def decoding_rows(self) -> int:
        return min(self.decoded, self.local(self.rollouts))

    def state_bytes(self, kept: bool = True) -> int:
        """Of the teacher's hidden states of a token: autocast computes a last layer norm in float32."""
        if kept and not (self.rollouts and self.keep_states and self.teacher):
            return 0
        return self.teacher.width * (4 if self.half and self.teacher.layer_norm else self.teacher.itemsize)

    def item(self, model: Sizes) -> int:
        """Bytes of a number that a product of this model gives."""
        return 2 if self.half else model.itemsize

    def body(self, model: Sizes) -> float:
        """Bytes of the layers, of which tensor parallel devices share the matrices for good."""
        shared = model.matrices / model.body * (1 - 1 / self.layout.tensor_parallel_size)
        return (model.stored - model.ends) * (1 - shared)

    def gathered(self, model: Sizes) -> float:
        """The same as products read them."""
        return self.body(model) * self.item(model) / model.itemsize

    def layer(self, model: Sizes) -> float:
        """Bytes of a token that autograd keeps in one layer."""
        half = self.half or model.itemsize == 2
        weights = model.eager * (self.columns + 1) * 8  # of attention
        return model.kept_whole[half] + (model.kept_split[half] + weights) / self.layout.tensor_parallel_size

    def copies(self, model: Sizes) -> tuple[float, float]:
        """Bytes of autocast's copies of the layers' matrices, where these are not gathered in bfloat16, and of the
        head's."""
        size = 2 if self.half and model.itemsize > 2 else 0
        return size * model.matrices * (not self.layout.sharded), size * model.head

    @property
    def trained(self) -> float:
        """Bytes of the weights that are trained; adapters are float32."""
        shared = self.student.matrices / self.student.parameters * (1 - 1 / self.layout.tensor_parallel_size)
        return self.student.trained * max(4, self.student.itemsize) * (1 - shared)

    def chunk(self, tokens: int) -> float:
        """Bytes of the logits, over the shared vocabulary, that a loss makes at a time."""
        whole = tokens * min(each.vocabulary for each in self.models) * 4
        return whole if self.chunk_mb is None else min(whole, self.chunk_mb * MIB)


@dataclass(frozen=True)
class Memory:
    """GB (1e9 bytes) by purpose at the peak of each phase; `rollout` is empty where the data gives the answers. The
    libraries themselves and validation are not counted."""

    rollout: dict[str, float]
    update: dict[str, float]

    @property
    def total(self) -> float:
        return max(sum(self.rollout.values()), sum(self.update.values()))


def measure(case: Case) -> Memory:
    """What a device of the case needs."""
    return Memory(_rollout(case) if case.rollouts else {}, _update(case))


def largest_microbatch(case: Case, budget: float) -> int:
    """Rows of answers, at most those of the device's mini-batch, that fit into `budget` GB; 0 where not one fits."""
    cases = (
        replace(case, microbatch_rows=rows, microbatch_tokens=rows * case.columns)
        for rows in range(case.local(case.minibatch), 0, -1)
    )
    return next((each.rows for each in cases if sum(_update(each).values()) <= budget), 0)


def largest_rollout(case: Case, budget: float) -> int:
    """Rows decoded at a time, at most those of the device."""
    rows = range(case.local(case.rollouts), 0, -1)
    return next((n for n in rows if sum(_rollout(replace(case, decoded=n)).values()) <= budget), 0)


def _rollout(case: Case) -> Peak:
    """When prompts are read, in a step of decoding, or when the teacher scores answers."""
    local, rows, tensor = case.local(case.rollouts), case.decoding_rows, case.layout.tensor_parallel_size
    resident = _resident(case) | {"teacher's states": local * case.answer * (8 + case.state_bytes())}
    if case.layout.sharded:
        resident["gathered"] = case.student.ends + sum(map(case.gathered, case.models))
    # Autocast keeps its copies of weights that are trained, and makes those of others again for each token.
    copies = sum(case.copies(each)[0] * each.whole + case.copies(each)[1] for each in case.decoders)
    room = case.prompt + case.answer * (2 if rows < local else 1)
    cached = [each.cached * case.item(each) / tensor for each in case.decoders]  # bytes of a token
    read = min(rows * case.prompt, max(_PREFILL, case.prompt))
    again = rows * case.prompt > read  # a second pass of prompts is beside the whole cache
    repeated = max(each.repeated * case.item(each) / tensor for each in case.decoders)
    prefill = {
        "half-type weights": copies,
        "caches": rows * room * sum(cached) + read * max(cached),
        "activations": read * max(case.layer(each) if again else 4 * each.width for each in case.decoders),
    }
    step = {
        "half-type weights": copies,
        "caches": rows * room * sum(cached),
        "activations": rows * (case.prompt + case.answer) * repeated,
        "loss": _DRAWN * len(cached) * replace(case, chunk_mb=None).chunk(rows),
    }
    if case.teacher_decodes:
        return _highest(resident, prefill, step)
    scored = {
        "half-type weights": case.copies(case.teacher)[1],
        "activations": case.rows * case.columns * case.layer(case.teacher),
        "loss": _SCORED * case.chunk(case.rows * case.answer),
    }
    return _highest(resident, prefill, step, scored)


def _update(case: Case) -> Peak:
    in_parts = case.layout.sharded and case.layout.reduce != "step"
    gradients = case.trained / (case.layout.data_parallel_size if in_parts else 1)
    resident = _resident(case, update=True) | {"teacher's states": case.rollouts * case.answer * case.state_bytes()}
    before = gradients if case.rows < case.local(case.minibatch) else 0
    peaks = _pass(case, before, case.rows * case.columns, case.rows * case.answer, case.reads_teacher)
    if case.blocks:
        tokens = case.corpus_rows * (case.block - 1)
        peaks += _pass(case, gradients, tokens, tokens, case.corpus_teacher)
    # At the end of the backward pass the gradients of tied embeddings come together.
    student, head = case.student, case.student.head_gradient
    end = {
        "gradients": gradients,
        "gathered": student.ends * case.layout.sharded,
        "loss": head * student.tied,
        "backward": head * (1 + student.tied),
    }
    return _highest(resident, *peaks, end)


def _pass(case: Case, gradients: float, tokens: int, counted: int, reads: bool) -> list[Peak]:
    """Of a micro-batch of so many tokens, of which the loss is at the `counted` ones, when the loss is computed and
    when the backward pass begins; `gradients`: bytes of those that are there before."""
    student, sharded, layer = case.student, case.layout.sharded, tokens * case.layer(case.student)
    copies, head_copy = case.copies(student)
    kept = tokens * student.width * student.itemsize if case.recompute else layer
    held = {
        "activations": kept * student.layers + 8 * tokens * student.width,
        "gradients": gradients,
        "gathered": student.ends * sharded,
        "half-type weights": 0 if case.recompute else copies,
        "teacher's pass": counted * case.state_bytes(kept=False) if reads else 0,
    }
    chunks = case.chunk(counted) * _CHUNKS[case.chunk_mb is not None, reads]
    own = 0 if case.chunk_mb is None else student.head_gradient + 4 * counted * student.width
    # Two layers, and the gradients of one.
    units = (2 * case.gathered(student) + student.whole * case.body(student)) / student.layers * sharded
    again = layer + copies / student.layers if case.recompute else layer / 2
    return [
        held | {"loss": chunks + own + head_copy},
        held | {"loss": student.head_gradient, "backward": again + units},
    ]


def _highest(resident: Peak, *peaks: Peak) -> Peak:
    """In GB."""
    found = resident | max(peaks, key=lambda each: sum(each.values()))
    return {name: size / GB for name, size in found.items() if size >= 1}


def _resident(case: Case, update: bool = False) -> Peak:
    """Weights, or their shards, and moments; embeddings and head of the teacher are never in parts."""
    student, teacher, start = case.student, case.teacher, case.start
    shards = case.layout.data_parallel_size if case.layout.sharded else 1
    found = {"student": (case.body(student) + student.ends) / shards, "optimizer": 2 * case.trained / shards}
    if start is not None:
        found["student at the start"] = (case.body(start) + start.ends) / shards
    if teacher is not None and not case.shares_base:
        away = update and case.offload and case.rollouts
        found["teacher"] = teacher.head * teacher.itemsize if away else case.body(teacher) / shards + teacher.ends
    return found
