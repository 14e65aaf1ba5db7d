"""Runs of one device and of several, several runs in one set of processes, so that libraries are imported once."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from minillm.parallel import free_port
from tests.commands import ROOT, Command
from tests.tiny import make_model, make_tokenizer, write_texts
from tests.tokenizers import byte_level, few_letters

STRATEGIES = ("ddp", "fsdp", "fsdp_tp")
QUICK = ("base",)  # of the scenarios: those of make test
# And whether the student's head is tied.
FAMILIES = {"llama": False, "qwen3": True, "opt": False, "gpt2": True, "mistral": False, "qwen2": True}


@pytest.fixture(scope="session")
def parity_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    for family, tied in FAMILIES.items():
        for name, seed in (("student", 1), ("teacher", 2)):
            network = make_model(family, seed=seed, tied=tied and name == "student")
            network.save_pretrained(folder / family / name)
            make_tokenizer().save_pretrained(folder / family / name)
    for name, tokenizer in (("student", few_letters()), ("teacher", byte_level())):
        make_model(vocabulary=len(tokenizer)).save_pretrained(folder / "spans" / name)
        tokenizer.save_pretrained(folder / "spans" / name)
    write_texts(folder)
    for name in ("train", "val"):  # rows that name one of two teachers
        rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        texts = [json.dumps(row | {"teacher": ("one", "two", "two")[n % 3]}) for n, row in enumerate(rows)]
        (folder / f"{name}_named.jsonl").write_text("\n".join(texts) + "\n")
    return folder


def settings(world: Path, family: str = "llama", dtype: str = "float64") -> list[str]:
    """What every run has: 2 supervised steps, then 6 optimizer steps in 3 rollouts of 4 rows."""
    return [
        f"model.student={world}/{family}/student", f"model.teacher={world}/{family}/teacher", f"model.dtype={dtype}",
        f"data.train_file={world}/train.jsonl", f"data.val_file={world}/val.jsonl", "data.template=chat",
        "data.block_size=8", "callbacks.validation.every=2", "callbacks.validation.max_new_tokens=6",
        "callbacks.checkpoints.every=2", "callbacks.checkpoints.monitor=reverse_kl", "optim.learning_rate=1e-3",
        "optim.warmup_steps=2", "preflight=false", "callbacks.report=null",
    ]  # fmt: skip


def on_policy(world: Path, family: str = "llama", dtype: str = "float64") -> list[str]:
    return [
        *settings(world, family, dtype), f"data.corpus_file={world}/corpus.txt", "sampler.max_new_tokens=6",
        "regime.rollouts=4", "regime.minibatch_size=4", "regime.microbatch_tokens=64", "regime.inner_epochs=2",
        "regime.max_steps=6", "regulariser.batch_size=3", "start.steps=2", "start.minibatch_size=4",
        "start.learning_rate=1e-3",
    ]  # fmt: skip


def scenarios(world: Path) -> dict[str, list[str]]:
    base = on_policy(world)
    # Answers that end long before others; one corpus block and small micro-batches: some rank has nothing of its own in
    # a pass of all.
    lean = [
        "regime.teacher_states=recompute",
        "model.gradient_checkpointing=true",
        "sampler=student",
        "sampler.max_new_tokens=40",
    ]
    lean += ["regulariser=pretrain_kd", "regulariser.batch_size=1", "regime.microbatch_tokens=9"]
    kd = ["regime=supervised", "objective=kd", "regime.minibatch_size=4", "regime.microbatch_size=1"]
    kd += ["regime.epochs=null", "regime.max_steps=6"]
    two = [f"data.{name}_file={world}/{name}_named.jsonl" for name in ("train", "val")]
    two += ["model.teacher=null", f"model.teachers={{one: {world}/llama/teacher, two: {world}/gpt2/teacher}}"]
    return {
        "base": base,
        "float32": [*on_policy(world, "qwen3", "float32"), "preflight=true"],  # a tied head
        "offload": base,
        "lora": [*base, "lora=default"],
        # The denominator of this preset is of a micro-batch, so that one may not depend on the number of devices.
        "reference": [*base, "objective=reference", "regime.microbatch_size=2"],
        "lean": [*base, *lean],
        "extrapolated": [*base, "objective=extrapolated"],
        "jsd": [*base, "objective=jsd", "objective.long_part=true"],
        "stored": [
            *base,
            "data.on_policy=0.5",
            "data.replay=0.25",
            "sampler.answers_per_prompt=2",
            "regime.rollouts=8",
            "reward.function=tests.integration.test_stored_run.short",
            "regime.max_steps=12",
        ],
        "spans": [
            *on_policy(world, "spans"),
            "objective=spans",
            "sampler=student",
            "sampler.max_new_tokens=6",
            "start.steps=0",
            "callbacks.checkpoints.monitor=reverse_kl_per_byte",
        ],
        "kd": [*settings(world), *kd],
        "teachers": [*base, "sampler.alpha=0.3", *two],
        "teachers_kd": [*settings(world), *kd, "regime.microbatch_size=2", *two],
        "qwen3": on_policy(world, "qwen3"),
        "opt": on_policy(world, "opt"),
        "gpt2": on_policy(world, "gpt2"),
    }


def other_families(world: Path) -> dict[str, list[str]]:
    """Of layers that can be split, those that no scenario has."""
    return {family: on_policy(world, family) for family in ("mistral", "qwen2")}


def more(strategy: str) -> list[str]:
    """The scenarios of make test-all. gpt2's fused projections cannot be split; what only matters there is run there
    only."""
    return ["float32", "lora", "reference", "lean", "extrapolated", "jsd", "stored", "spans", "kd"] + {
        "ddp": ["teachers", "teachers_kd"],
        "fsdp": ["gpt2", "offload"],
        "fsdp_tp": ["opt"],
    }[strategy]


def own_options(name: str) -> list[str]:
    """What a scenario has only where it is shared out."""
    return ["strategy.cpu_offload=true"] if name == "offload" else []


class Rollouts(L.Callback):
    """Each rank keeps what it trains on: rollouts/ROUND.RANK.pt, tokens and where rounding may turn a draw."""

    def __init__(self, run_dir: Path):
        self.folder = Path(run_dir) / "rollouts"

    def on_train_start(self, trainer, module):
        if hasattr(module, "rollout"):
            module.rollout = self._kept(module, module.rollout, trainer.global_rank)

    def _kept(self, module, make, rank):
        def rollout(batch):
            made = make(batch)
            self.folder.mkdir(exist_ok=True)
            parts = ("response_ids_BR", "response_mask_BR", "near_edge_BR")
            torch.save({name: getattr(made, name) for name in parts}, self.folder / f"{module.round}.{rank}.pt")
            return made

        return rollout


def spawn(jobs: list[dict], n_processes: int, folder: Path) -> None:
    """Run the jobs, one after the other, in so many processes."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    shared = {
        "WORLD_SIZE": str(n_processes), "LOCAL_WORLD_SIZE": str(n_processes), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests",
    }  # fmt: skip
    ranks = [
        Command("tests.parity.worker", file, cwd=ROOT, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(n_processes)
    ]
    codes = [each.wait(900) for each in ranks]
    ends = [each.stderr[-3000:] for each in sorted(ranks, key=Command.poll, reverse=True)]  # a killed one is last
    assert codes == [0] * n_processes, "\n".join(ends)


@pytest.fixture(scope="session")
def threads():
    """Sums of one thread, as in the processes that are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
