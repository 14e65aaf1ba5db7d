"""Rollouts: one pass of decoding yields the tokens and the log-probability of each under student and teacher.

Axes: B rows being decoded, N all prompts, P prompt and R response positions, V shared vocabulary, H teacher width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from itertools import groupby

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import DynamicCache

from minillm.common.console import progress
from minillm.common.errors import check
from minillm.common.seeding import row_uniforms
from minillm.common.types import PromptBatch, Rollout
from minillm.losses import mixture_logprobs
from minillm.models import LanguageModel, RollingCache, Teachers
from minillm.models.loaded import kept_states, one_of
from minillm.rollout.draw import Distribution, draw
from minillm.rollout.repeats import Repeats
from minillm.rollout.stored import stacked

_REFILL = 8  # a fraction 1 / _REFILL of the places is free before new prompts are read: a small prefill is a slow one
_PREFILL = 2**14  # tokens of prompts, padding included, that are read in one pass where one prompt allows it


class _Stream:
    """One model's side of decoding: its cache, and the hidden states that predict the next tokens."""

    def __init__(self, model: LanguageModel, prompts: PromptBatch, limits: list[int], n_slots: int, temperature: float):
        self.ids_NP, self.lengths = prompts.flush_left()
        model.check_length(max(map(sum, zip(self.lengths, limits, strict=True))))
        self.model, self.head = model, model.head(temperature).ready()
        self.cache = cache = RollingCache(n_slots, max(self.lengths), max(limits), refills=n_slots < len(prompts))
        self.step = model.steps(cache)
        self.hidden_BH: Tensor | None = None
        self.starts_B: Tensor | None = None

    def admit(self, rows: list[int], records: list[int]) -> None:
        """Prefill new rows; rows with the same record share a prompt, which is read once."""
        lengths = [self.lengths[row] for row in rows]
        ids_BP = self.ids_NP[rows, : max(lengths)]
        place = {record: at for at, record in enumerate(dict.fromkeys(records))}
        once = [records.index(record) for record in place]
        of_B, last_B = torch.tensor([[place[record] for record in records], lengths], device=ids_BP.device)
        prefilled = DynamicCache()
        hidden_UPH = self.model.hidden(ids_BP[once], prefilled)
        if len(once) < len(records):
            prefilled.batch_select_indices(of_B)
        last_BH = hidden_UPH[of_B, last_B - 1]
        self.hidden_BH = last_BH if self.hidden_BH is None else torch.cat([self.hidden_BH, last_BH])
        self.cache.admit(prefilled, lengths)
        self._note_starts()

    def logits(self) -> Tensor:
        return self.head.columns(self.hidden_BH)

    def advance(self, ids_B: Tensor) -> None:
        end = self.cache.end
        self.hidden_BH = self.step(ids_B, self.starts_B)
        if self.cache.end != end + 1:  # the columns have moved
            self._note_starts()

    def keep(self, slots: list[int], slots_B: Tensor) -> None:
        self.cache.keep(slots)
        self.hidden_BH = self.hidden_BH[slots_B]
        self._note_starts()

    def _note_starts(self) -> None:
        self.starts_B = torch.tensor(self.cache.starts, device=self.hidden_BH.device)


class _Places:
    """The slots of the batch: which prompt is in each, how many tokens it has answered, whether it goes on. Lists for
    the host, which decides, and tensors for the device, which computes; the host reads `alive_B` at times."""

    def __init__(self, n_slots: int, device: torch.device):
        self.n_slots, self.device = n_slots, device
        self.rows: list[int] = []
        self.steps: list[int] = []
        self.rows_B = self.steps_B = torch.empty(0, dtype=torch.long, device=device)
        self.alive_B = torch.empty(0, dtype=torch.bool, device=device)

    def take(self, waiting: list[int]) -> list[int]:
        """Take the next waiting prompts off the list if enough slots are free for a prefill to be worth while."""
        free = self.n_slots - len(self.rows)
        if not waiting or free < min(len(waiting), max(1, self.n_slots // _REFILL)):
            return []
        new, waiting[:] = waiting[:free], waiting[free:]
        new_B = torch.tensor(new, device=self.device)
        self.rows, self.steps = self.rows + new, self.steps + [0] * len(new)
        self.rows_B = torch.cat([self.rows_B, new_B])
        self.steps_B = torch.cat([self.steps_B, torch.zeros_like(new_B)])
        self.alive_B = torch.cat([self.alive_B, torch.ones_like(new_B, dtype=torch.bool)])
        return new

    def step(self, going_on_B: Tensor) -> None:
        self.alive_B = self.alive_B & going_on_B
        self.steps, self.steps_B = [step + 1 for step in self.steps], self.steps_B + 1

    def ended(self, limits: list[int], look: bool) -> list[bool]:
        """Which rows have ended: those at their limit; with `look`, which makes the host wait, also those that drew a
        stop token."""
        full = [step == limits[row] for row, step in zip(self.rows, self.steps, strict=True)]
        if not look:
            return full
        return [stop or not alive for stop, alive in zip(full, self.alive_B.tolist(), strict=True)]

    def keep(self, slots: list[int], slots_B: Tensor) -> None:
        self.rows, self.steps = [self.rows[slot] for slot in slots], [self.steps[slot] for slot in slots]
        self.rows_B, self.steps_B, self.alive_B = (each[slots_B] for each in (self.rows_B, self.steps_B, self.alive_B))


def _by_teacher(decode: Callable[..., Rollout]) -> Callable[..., Rollout]:
    """`decode` with several teachers too: the rows of each by themselves, which changes no answer."""

    @wraps(decode)
    def whole(student, teacher, prompts, **options):
        several = next((each for each in (student, teacher) if isinstance(each, Teachers)), None)
        if several is None:
            return decode(student, teacher, prompts, **options)
        numbers = [None] if prompts.teachers_B is None else prompts.teachers_B.tolist()
        parts, order = [], sorted(range(len(numbers)), key=numbers.__getitem__)
        for number, group in groupby(order, key=numbers.__getitem__):
            rows = list(group)
            own = {k: [v[row] for row in rows] if isinstance(v, list) else v for k, v in options.items()}
            part = decode(one_of(student, number), one_of(teacher, number), prompts.rows(rows), **own)
            hidden = part.teacher_hidden_BRH
            parts.append(replace(part, teacher_hidden_BRH=None if hidden is None else kept_states(several, hidden)))
        return stacked(parts).rows(torch.tensor(order).argsort())

    return whole


@_by_teacher
@torch.no_grad()
def decode(
    student: LanguageModel | None,
    teacher: LanguageModel | None,
    prompts: PromptBatch,
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int | list[int],
    seeds: list[int] | None,
    batch_size: int,
    alpha: float = 0.0,
    temperature: float = 1.0,
    no_repeat_ngram_size: int = 0,
    keep_hidden: bool = True,
    interrupt: Callable[[], None] | None = None,
    observe: Callable[[str, Tensor, Tensor, Tensor], None] | None = None,
) -> Rollout:
    """Answer every prompt, token by token from alpha p + (1 - alpha) q, `batch_size` rows at a time.

    Only the models that are given run: the student alone with alpha 0, the teacher alone with alpha 1; of several
    teachers each for its own rows. Each leaves the log-probs of the chosen tokens; with `keep_hidden` the teacher also
    leaves its hidden states.

    A row ends at its first stop token, which counts, or at `max_new_tokens` (of all rows, or one limit a row); then a
    waiting prompt takes its place. An answer depends on its row's stream alone, not on the batch, but for rounding:
    `near_edge_BR` marks the draws that it may turn.

    Args:
        seeds: one random stream a row; None decodes greedily.
        no_repeat_ngram_size: see `Repeats`, 0 for no limit. Each model's distribution loses the banned tokens before
            they are mixed, and the log-probs are of what is left, so not for an objective.
        interrupt: called before each token; it may raise. observe: called at each step for each model with its name
            (student or teacher), the numbers of rows and tokens [B], and the logits [V, B].
    """
    device, n_rows = prompts.ids_BP.device, len(prompts)
    limits = [max_new_tokens] * n_rows if isinstance(max_new_tokens, int) else max_new_tokens
    check((min(limits) > 0, f"max_new_tokens={max_new_tokens}: wanted a positive number of tokens"))
    longest = max(limits)
    uniforms_NR = None if seeds is None else row_uniforms(seeds, longest).to(device)
    stops = torch.tensor(stop_ids, device=device)
    numbers, n_slots = prompts.records.tolist(), min(batch_size, n_rows)
    sides = (("student", student, prompts), ("teacher", teacher, prompts.for_teacher))
    streams = {
        name: _Stream(model, seen, limits, n_slots, temperature) for name, model, seen in sides if model is not None
    }
    first = next(iter(streams.values()))
    lengths = list(map(max, *(stream.lengths for stream in (first, *streams.values()))))
    shares = [1 - alpha, alpha] if len(streams) == 2 else [1.0]
    # Devices that share the layers round differently. If one drew another token, the others would wait for it forever.
    split = (student or teacher).split

    places, repeats = _Places(n_slots, device), Repeats(no_repeat_ngram_size, first.ids_NP, first.lengths, longest)
    out = {"ids": torch.full((n_rows, longest), pad_id, device=device)}
    answered_N = torch.zeros(n_rows, dtype=torch.long, device=device)

    def store(name: str, values: Tensor) -> None:
        if name not in out:
            out[name] = values.new_zeros(n_rows, longest, *values.shape[1:])
        out[name][places.rows_B, places.steps_B] = values

    waiting = sorted(range(n_rows), key=lengths.__getitem__)
    look_every, turn, n_ended, title = _look_every(device), 0, 0, f"Writing {n_rows} answers"
    with _cast_once(device), ExitStack() as modes, progress(title, sum(limits)) as advance:
        for stream in streams.values():
            modes.enter_context(stream.model.caching())
        while places.rows or waiting:
            if interrupt is not None:
                interrupt()
            if new := places.take(waiting):
                n_read = max(1, _PREFILL // max(lengths[row] for row in new))
                for rows in (new[at : at + n_read] for at in range(0, len(new), n_read)):
                    records = [numbers[row] for row in rows]
                    for name, stream in streams.items():
                        with record_function(f"rollout: prompts, {name}"):
                            stream.admit(rows, records)

            with record_function("rollout: heads"):
                logits = {name: repeats.ban(stream.logits(), places.rows_B) for name, stream in streams.items()}
                each = {name: Distribution(logits_VB) for name, logits_VB in logits.items()}
            if observe is not None:
                for name, logits_VB in logits.items():
                    observe(name, places.rows_B, places.steps_B, logits_VB)
            del logits
            with record_function("rollout: draw"):
                if uniforms_NR is None:
                    (only,) = each.values()  # greedy decoding of a mixture has no use
                    ids_B, near_B = only.most_likely(), torch.zeros_like(places.alive_B)
                else:
                    parts = list(zip(each.values(), shares, strict=True))
                    ids_B, near_B = draw(parts, uniforms_NR[places.rows_B, places.steps_B])
                ids_B = split.from_first(ids_B)
            store("ids", torch.where(places.alive_B, ids_B, pad_id))
            store("near", near_B & places.alive_B)
            for name, distribution in each.items():
                store(name, distribution.logprobs(ids_B))
            if teacher is not None and keep_hidden:
                store("hidden", streams["teacher"].hidden_BH)
            answered_N[places.rows_B] += places.alive_B
            repeats.note(places.rows_B, ids_B)
            places.step(~torch.isin(ids_B, stops))
            turn += 1

            ended = places.ended(limits, look=turn % look_every == 0)
            n_ended += sum(limits[row] for row, end in zip(places.rows, ended, strict=True) if end)
            advance(n_ended + sum(step for step, end in zip(places.steps, ended, strict=True) if not end))
            if any(ended):
                slots = _close_gaps(ended)
                slots_B = torch.tensor(slots, dtype=torch.long, device=device)
                places.keep(slots, slots_B)
                ids_B = ids_B[slots_B]
                for stream in streams.values():
                    stream.keep(slots, slots_B)
            if places.rows:
                for name, stream in streams.items():
                    with record_function(f"rollout: {name}"):
                        stream.advance(ids_B)

    mask_NR = torch.arange(longest, device=device) < answered_N.unsqueeze(-1)
    own = [out[name] for name in ("student", "teacher") if name in out]
    return prompts.answered(
        out["ids"],
        mask_NR,
        student_logprobs_BR=out.get("student"),
        teacher_logprobs_BR=out.get("teacher"),
        teacher_hidden_BRH=out.get("hidden"),
        near_edge_BR=out["near"],
        behaviour_logprobs_BR=own[0] if len(own) == 1 else mixture_logprobs(*own, alpha),
        temperature=temperature,
    ).trimmed()


@contextmanager
def _cast_once(device: torch.device) -> Iterator[None]:
    """Under autocast, whose cache Lightning turns off, cast each weight once for all tokens, then forget the copies."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=True):
        yield
    torch.clear_autocast_cache()


def _look_every(device: torch.device) -> int:
    """How many tokens lie between two checks for ended rows: a check makes the host wait for an accelerator."""
    return 1 if device.type == "cpu" else 8


def _close_gaps(ended: list[bool]) -> list[int]:
    """Slots of the rows that go on: rows at the end move into the gaps, the others stay where they are."""
    n_left = ended.count(False)
    movers = [slot for slot in range(n_left, len(ended)) if not ended[slot]]
    return [movers.pop() if ended[slot] else slot for slot in range(n_left)]
