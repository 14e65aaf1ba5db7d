"""An estimate of the memory that a run will need, from the shapes of its models and the sizes of its loop."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from minillm.linear_loss import LinearLoss
from minillm.machine import usable_memory
from minillm.models import Architecture, Pair
from minillm.preflight.work import Work

_CHUNKS = 7  # such tensors live at a time in `LinearLoss`
_LOGITS = 3  # [V, B] tensors of one model at a step of decoding


@dataclass(frozen=True)
class Memory:
    """GB (1e9 bytes) by purpose: what is there always, and on top of it during a rollout and during an update.
    `usable` is what the device has for this process. The libraries themselves and validation are not counted."""

    always: dict[str, float]
    rollout: dict[str, float]
    update: dict[str, float]
    usable: float

    @property
    def total(self) -> float:
        """At the peak."""
        return sum(self.always.values()) + max(sum(self.rollout.values()), sum(self.update.values()))


def weights(network: PreTrainedModel, *, trained: bool = False) -> int:
    """Bytes of all parameters, or of those that are trained; tied ones once."""
    return sum(each.numel() * each.element_size() for each in network.parameters() if each.requires_grad or not trained)


def kv_cache(shape: Architecture, rows: int, columns: int, size: int) -> int:
    """Bytes of the keys and values of `rows` x `columns` tokens, `size` bytes a number."""
    return 2 * shape.layers * shape.kv_heads * _head_width(shape) * rows * columns * size


def activations(shape: Architecture, tokens: int, size: int) -> int:
    """Bytes that autograd keeps for one pass over so many tokens, without attention matrices.

    What stock LLaMA, Mistral and Qwen2 layers save: six tensors as wide as the model, two as wide as the queries and
    two as the keys, four of the feed-forward width. GPT-2 and Qwen3 are within 15% of it, OPT needs less, Gemma more.
    """
    attention = 2 * (shape.heads + shape.kv_heads) * _head_width(shape)
    return shape.layers * (6 * shape.width + attention + 4 * shape.ffn) * tokens * size


def estimate(
    pair: Pair,
    work: Work,
    linear_loss: LinearLoss,
    *,
    longest_prompt: int,
    block_size: int,
    precision: str,
    offload: bool,
) -> Memory:
    """At the longest answers that the settings allow.

    Args:
        longest_prompt: tokens, of the training prompts. block_size: tokens of a corpus block, 0 without a corpus.
        precision: the trainer's. offload: whether the teacher's body waits on the CPU during updates.
    """
    student, teacher = pair.student, pair.teacher and pair.teacher.network
    networks = [each for each in (student, teacher) if each is not None]
    autocast = precision == "bf16-mixed"

    def size(network: PreTrainedModel) -> int:  # bytes of a number that it computes
        return 2 if autocast else network.dtype.itemsize

    def halved(network: PreTrainedModel) -> int:  # bytes of the copy that autocast makes of its weights
        return weights(network) // network.dtype.itemsize * 2 if autocast and network.dtype.itemsize > 2 else 0

    trained = weights(student, trained=True)
    always = {"student": weights(student), "optimizer": 2 * trained}
    if teacher is not None:
        always["teacher"] = weights(teacher)

    rollout: dict[str, int] = {}
    kept = 0
    if work.sampler is not None:
        decoding = [student] if work.sampler.alpha == 0 else networks
        rows, refills = min(work.sampler.batch_size, work.round_size), work.sampler.batch_size < work.round_size
        # As in `RollingCache`, and once more the prompts while they are read.
        columns = 2 * longest_prompt + work.answer_tokens * (2 if refills else 1)
        rollout["KV cache"] = sum(
            kv_cache(Architecture.of(each.config), rows, columns, size(each)) for each in decoding
        )
        rollout["logits"] = _LOGITS * pair.n_vocab * rows * 4 * len(decoding)
        rollout["half-type weights"] = sum(map(halved, decoding))
        if work.keep_states and teacher is not None:
            width = Architecture.of(teacher.config).width
            kept = work.round_size * work.answer_tokens * width * size(teacher)
            rollout["teacher's states"] = kept

    shape = Architecture.of(student.config)
    longest = longest_prompt + work.answer_tokens
    tokens = max(min(work.microbatch_tokens, work.minibatch_size * longest), longest, block_size)
    logits = pair.n_vocab * tokens * max(4, student.dtype.itemsize)
    chunk = logits if linear_loss.chunk_mb is None else min(logits, int(linear_loss.chunk_mb * 2**20))
    head = student.get_output_embeddings().weight
    update = {
        "gradients": trained,
        "activations": activations(shape, tokens, size(student)),
        "loss": _CHUNKS * chunk + head.numel() * head.element_size() * head.requires_grad,
        "half-type weights": halved(student),
        "teacher's states": kept,
    }
    if offload and student.device.type != "cpu":
        update["teacher's body, away"] = -sum(each.numel() * each.element_size() for each in pair.teacher.body())
    phases = [
        {name: n_bytes / 1e9 for name, n_bytes in phase.items() if n_bytes} for phase in (always, rollout, update)
    ]
    return Memory(*phases, usable=usable_memory(student.device))


def _head_width(shape: Architecture) -> int:
    return shape.head_dim or shape.width // shape.heads
