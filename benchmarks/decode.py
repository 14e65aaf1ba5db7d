"""python -m benchmarks.decode: rollouts against transformers' generate. About 10 minutes on 2 cores."""

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.common import DEVICE, in_new_process, median, report, row, seconds
from benchmarks.models import make_model, make_prompts

ROWS, TOKENS, PROMPT = 32, 64, 32
RAGGED, SHORTEST, LONGEST = 64, 4, 128
REAL, REAL_ROWS, REAL_TOKENS = "SmolLM2-135M", 16, 32  # the layers are most of its work, of the student's the head


def ragged_lengths() -> list[int]:
    """Drawn once: geometric with mean 32, in 4..128, imposed on both sides."""
    uniform = torch.rand(RAGGED, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lengths = SHORTEST + (torch.log1p(-uniform) / torch.log(torch.tensor(1 - 1 / 28, dtype=torch.float64))).floor()
    return lengths.clamp(max=LONGEST).long().tolist()


def ours() -> dict:
    from minillm.common.machine import tune
    from minillm.common.types import PromptBatch
    from minillm.models import LanguageModel
    from minillm.rollout import decode

    tune()
    names = ("student", "teacher", REAL)
    student, teacher, real = (LanguageModel(make_model(name, device=DEVICE)) for name in names)

    def run(n, limits, batch_size, teacher=None, alpha=0.0, student=student):
        ids = make_prompts(n, PROMPT).to(DEVICE)
        prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(n))
        options = dict(stop_ids=(), pad_id=0, max_new_tokens=limits, seeds=list(range(n)), batch_size=batch_size)
        rollout = decode(student, teacher, prompts, alpha=alpha, **options)
        assert rollout.response_mask_BR.sum() == (sum(limits) if isinstance(limits, list) else n * limits)

    return {
        "student": seconds(lambda: run(ROWS, TOKENS, ROWS)),
        "mixture": seconds(lambda: run(ROWS, TOKENS, ROWS, teacher, 0.2)),
        REAL: seconds(lambda: run(REAL_ROWS, REAL_TOKENS, REAL_ROWS, student=real)),
        **{f"ragged_{size}": seconds(lambda size=size: run(RAGGED, ragged_lengths(), size)) for size in (32, 64)},
    }


class _Lengths(StoppingCriteria):
    """Ends row i after its own number of tokens."""

    def __init__(self, limits: torch.Tensor):
        self.limits = limits

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] - PROMPT >= self.limits


def generate(allocator: bool) -> dict:
    """transformers as it is; with `allocator` after `minillm.common.machine.keep_freed_memory`."""
    if allocator:
        from minillm.common.machine import keep_freed_memory

        keep_freed_memory()
    models = {name: make_model(name, device=DEVICE) for name in ("student", "teacher", REAL)}

    @torch.no_grad()
    def run(model, ids, limits=None, tokens=TOKENS):
        options = dict(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=tokens, pad_token_id=0)
        if limits is not None:
            criteria = StoppingCriteriaList([_Lengths(torch.tensor(limits, device=DEVICE))])
            options |= dict(max_new_tokens=max(limits), stopping_criteria=criteria)
        ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert limits is not None or ids.shape[1] == PROMPT + tokens

    ids, ragged, lengths = (
        make_prompts(ROWS, PROMPT).to(DEVICE),
        make_prompts(RAGGED, PROMPT).to(DEVICE),
        ragged_lengths(),
    )

    def in_batches(size):
        for start in range(0, RAGGED, size):
            rows = slice(start, start + size)
            run(models["student"], ragged[rows], lengths[rows])

    return {
        **{name: seconds(lambda name=name: run(models[name], ids)) for name in ("student", "teacher")},
        REAL: seconds(lambda: run(models[REAL], ids[:REAL_ROWS], tokens=REAL_TOKENS)),
        **{f"ragged_{size}": seconds(lambda size=size: in_batches(size)) for size in (32, 64)},
    }


def main() -> None:
    sides = {"ours": (ours,), "generate": (generate, False), "generate, our allocator settings": (generate, True)}
    figures = {side: in_new_process(*call) for side, call in sides.items()}
    medians = {side: {name: median(values) for name, values in each.items()} for side, each in figures.items()}
    tokens, useful = ROWS * TOKENS, sum(ragged_lengths())
    one, rows = medians.pop("ours"), []

    def faster(what: str, n: int, unit: str, seconds: float, peer: float, aim: float = 3) -> dict:
        return row(what, n / seconds, n / peer, unit, peer / seconds, aim)

    for side, other in medians.items():
        both = other["student"] + other["teacher"]
        best, peer_best = (min(each["ragged_32"], each["ragged_64"]) for each in (one, other))
        rows += [
            faster(f"student alone : {side}", tokens, "tok/s", one["student"], other["student"]),
            row(f"teacher mixture : {side}", one["mixture"], both, "s", one["mixture"] / both, 0.7, at_most=True),
            faster(f"ragged answers : {side}", useful, "useful tok/s", best, peer_best),
            faster(f"{REAL}, 16 x 32 : {side}", REAL_ROWS * REAL_TOKENS, "tok/s", one[REAL], other[REAL], aim=2),
        ]
    report("decode", "transformers generate", rows, figures | {"ragged_tokens": useful})


if __name__ == "__main__":
    main()
