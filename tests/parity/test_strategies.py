"""The number of devices and what each holds change nothing: weights, optimizer, figures, samples, exported student."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integration.test_resume import Killed, train
from tests.parity.conftest import QUICK, STRATEGIES, Rollouts, more, other_families, own_options, scenarios, spawn

OTHERS = ("ddp", "fsdp_tp")
CUT = 3  # rounds before the cut: last.ckpt is then of the first rollout, after two supervised rounds


@pytest.fixture(scope="session")
def single(parity_world, tmp_path_factory, threads):
    """The quick scenarios on one device, and one that was cut."""
    folder = tmp_path_factory.mktemp("single")
    alone(folder, {name: scenarios(parity_world)[name] for name in QUICK})
    with pytest.raises(Killed):
        train(folder / "cut", scenarios(parity_world)["base"], kill_after=CUT)
    return folder


@pytest.fixture(scope="session")
def single_more(parity_world, tmp_path_factory, threads):
    """The other scenarios on one device."""
    folder = tmp_path_factory.mktemp("single_more")
    alone(folder, {name: each for name, each in scenarios(parity_world).items() if name not in QUICK})
    return folder


def alone(folder, runs):
    for name, overrides in runs.items():
        train(folder / name, overrides, also=Rollouts(folder / name))


def shared_out(strategy, names, world, folder) -> list[dict]:
    """Jobs of two devices."""
    own = [f"strategy={strategy}", "strategy.devices=2"]
    return [
        {"run_dir": str(folder / name), "overrides": scenarios(world)[name] + own + own_options(name)} for name in names
    ]


def on_two_devices(strategies, world, folder, single):
    """The same on two devices; one that was cut and went on; and one of a single device that goes on here. All
    strategies in one pair of processes."""
    jobs = []
    for strategy in strategies:
        of_it = folder / strategy
        first, *others = shared_out(strategy, QUICK, world, of_it)
        base = {"overrides": first["overrides"]}
        jobs += [
            first,
            *others,
            base | {"run_dir": str(of_it / "cut"), "kill_after": CUT},
            base | {"run_dir": str(of_it / "resumed"), "copy": str(of_it / "cut"), "resume": "auto"},
            base | {"run_dir": str(of_it / "taken_over"), "copy": str(single / "cut"), "resume": "auto"},
        ]
    spawn(jobs, 2, folder)
    return folder


@pytest.fixture(scope="session")
def sharded(parity_world, tmp_path_factory, single):
    return on_two_devices(("fsdp",), parity_world, tmp_path_factory.mktemp("sharded"), single)


@pytest.fixture(scope="session")
def others(parity_world, tmp_path_factory, single):
    return on_two_devices(OTHERS, parity_world, tmp_path_factory.mktemp("others"), single)


@pytest.fixture(scope="session", params=["fsdp", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def several(request):
    return request.getfixturevalue("sharded" if request.param == "fsdp" else "others") / request.param


@pytest.fixture(scope="session", params=STRATEGIES)
def several_more(request, parity_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"{request.param}_more")
    spawn(shared_out(request.param, more(request.param), parity_world, folder), 2, folder)
    return request.param, folder


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def largest_difference(one, other) -> float:
    """Of two dicts of tensors, however deep."""
    assert one.keys() == other.keys()
    pairs = ((one[key], other[key]) for key in one)
    return max(
        largest_difference(a, b) if isinstance(a, dict) else (a.double() - b.double()).abs().max().item()
        for a, b in pairs
    )


def figures(run_dir):
    """metrics.csv without clocks and memory."""
    with open(run_dir / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    machine = ("time/", "memory/", "progress/wall")
    return [{k: float(v) for k, v in row.items() if v and not k.startswith(machine)} for row in rows]


def samples(run_dir):
    """Answers, without the sums of floating point."""
    rows = [json.loads(line) for file in sorted((run_dir / "samples").iterdir()) for line in file.open()]
    return [{key: value for key, value in row.items() if key not in ("reverse_kl", "spans_kl")} for row in rows]


def compare(one, other, tolerance):
    a, b = checkpoint(one), checkpoint(other)
    assert largest_difference(a["state_dict"], b["state_dict"]) <= tolerance
    (a,), (b,) = a["optimizer_states"], b["optimizer_states"]
    assert a["param_groups"] == b["param_groups"]
    assert largest_difference(a["state"], b["state"]) <= tolerance
    for mine, theirs in zip(figures(one), figures(other), strict=True):
        assert mine.keys() == theirs.keys()
        far = {
            key: (value, theirs[key])
            for key, value in mine.items()
            if abs(value - theirs[key]) > allowed(key, tolerance) * max(1, abs(value))
        }
        assert not far
    exported = [load_file(each / "student" / "model.safetensors") for each in (one, other)]
    assert largest_difference(*exported) <= tolerance


def allowed(key, tolerance):
    """As the weights, but for a share that is a sum in float32, whose parts are other ones on other devices."""
    return max(tolerance, 1e-7) if key == "train/clipped" else tolerance


def tolerance_of(name):
    return 1e-5 if name == "float32" else 1e-9


@pytest.mark.quick
def test_two_devices_compute_what_one_does(single, several):
    for name in QUICK:
        compare(single / name, several / name, tolerance_of(name))


def test_the_models_are_compared_before_the_first_step(single_more, several_more):
    files = (each / "float32" / "preflight.json" for each in (single_more, several_more[1]))
    alone, here = (json.loads(each.read_text()) for each in files)
    assert alone["agreement"] == pytest.approx(here["agreement"], abs=1e-5)
    for side in ("student", "teacher"):
        one, other = alone["consistency"][side], here["consistency"][side]
        assert one["tokens"] == other["tokens"] == 48 and max(one["largest"], other["largest"]) < 1e-4


def test_two_devices_compute_what_one_does_in_other_runs(single_more, several_more):
    strategy, folder = several_more
    for name in more(strategy):
        compare(single_more / name, folder / name, tolerance_of(name))
    same_answers(single_more, folder, more(strategy))
    for rank in (0, 1):
        same_rollouts(single_more, folder, more(strategy), rank)


def test_rollouts_and_answers_are_the_same_tokens(single, several):
    same_answers(single, several, QUICK)


def same_answers(single, folder, names):
    for name in names:
        assert samples(single / name) == samples(folder / name), name
        lengths = [[row.get("rollout/length") for row in figures(each / name)] for each in (single, folder)]
        assert lengths[0] == lengths[1]


def rollouts(run_dir, rank):
    """Ids outside the mask are never read: here they are 0."""
    found = {file.stem: torch.load(file) for file in (run_dir / "rollouts").glob(f"*.{rank}.pt")}
    for each in found.values():
        each["response_ids_BR"] *= each["response_mask_BR"]
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_both_train_on_the_tokens_that_one_device_draws(single, several, rank):
    same_rollouts(single, several, QUICK, rank)


def same_rollouts(single, folder, names, rank):
    """In float64 the same tokens; in float32 a row may part where rounding turns a draw, and there only."""
    for name in names:
        alone, here = rollouts(single / name, 0), rollouts(folder / name, rank)
        assert {stem.split(".")[0] for stem in alone} == {stem.split(".")[0] for stem in here}, name
        assert name.endswith("kd") or len(alone) == 3, name
        for stem, ours in alone.items():
            theirs = here[f"{stem.split('.')[0]}.{rank}"]
            if name == "float32":
                assert parted(ours, theirs) <= ours["near_edge_BR"].sum(), stem
            else:
                assert all(torch.equal(value, theirs[part]) for part, value in ours.items()), (name, stem)


def parted(ours, theirs) -> int:
    """How many rows are not the same tokens."""
    pairs = [
        [each["response_ids_BR"][row][each["response_mask_BR"][row]].tolist() for each in (ours, theirs)]
        for row in range(len(ours["response_ids_BR"]))
    ]
    return sum(one != other for one, other in pairs)


def test_a_run_that_was_cut_goes_on_bit_for_bit(several):
    assert checkpoint(several / "cut")["minillm"] == {"round": CUT, "start_step": 2, "step": 2}
    compare(several / "base", several / "resumed", 0.0)
    assert samples(several / "base") == samples(several / "resumed")


def test_a_checkpoint_of_one_strategy_is_opened_by_another(single, several, parity_world, tmp_path):
    compare(single / "base", several / "taken_over", 1e-9)
    shutil.copytree(several / "cut", tmp_path / "home")
    train(tmp_path / "home", scenarios(parity_world)["base"], resume="auto")
    compare(single / "base", tmp_path / "home", 1e-9)


def test_the_exported_student_is_a_plain_model_with_its_head_still_tied(several_more):
    student = several_more[1] / "float32" / "student"
    network = AutoModelForCausalLM.from_pretrained(student)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(student / "model.safetensors")


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_the_layers_of_other_families_are_split(parity_world, tmp_path, threads, family):
    overrides = other_families(parity_world)[family]
    train(tmp_path / "single", overrides)
    split = ["strategy=fsdp_tp", "strategy.devices=2", "strategy.tensor_parallel_size=2"]
    spawn([{"run_dir": str(tmp_path / "split"), "overrides": overrides + split}], 2, tmp_path)
    compare(tmp_path / "single", tmp_path / "split", 1e-9)
    assert samples(tmp_path / "single") == samples(tmp_path / "split")


def test_two_by_two_devices_compute_what_one_does(single, single_more, parity_world, tmp_path):
    """Two data-parallel groups of two tensor-parallel ranks."""
    two_by_two = ["strategy=fsdp_tp", "strategy.devices=4", "strategy.tensor_parallel_size=2"]
    names = ["base", "lora", "qwen3"]
    jobs = [
        {"run_dir": str(tmp_path / name), "overrides": scenarios(parity_world)[name] + two_by_two} for name in names
    ]
    spawn(jobs, 4, tmp_path)
    for name in names:
        alone = (single if name in QUICK else single_more) / name
        compare(alone, tmp_path / name, 1e-9)
        assert samples(alone) == samples(tmp_path / name)
