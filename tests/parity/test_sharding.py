"""Sharded models in two processes of a CPU, against the same model in one: half types, one sum a step, drawn ids."""

import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, MixtralConfig

from minillm.common.errors import ModelError
from minillm.models import Head, LanguageModel
from minillm.parallel import free_port
from minillm.parallel.sharding import DATA, TENSOR, whole_state
from minillm.rollout import decode
from minillm.rollout.consistency import check_consistency
from tests.helpers import prompt_batch
from tests.tiny import make_model

pytestmark = pytest.mark.slow

HALF = ("llama", "qwen3", "opt", "gpt2", "mixtral")
CHECKED = {"rows": HALF, "layers": ("llama", "qwen3", "opt")}  # by what the mesh divides
MODES = ("sampled", "greedy")
IDS = torch.arange(4 * 9).view(4, 9) * 7 % 31


def model_of(family, dtype):
    if family != "mixtral":
        return make_model(family, dtype=dtype)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=31)
    config = MixtralConfig(**sizes, intermediate_size=48, num_local_experts=4)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def loss_of(model, rows):
    """A part of a sum over all rows."""
    ids = IDS[rows]
    hidden = model.hidden(ids[:, :-1])  # before the head, which is in parts until then
    logits = model.head()(hidden)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / 32


def alone(family, dtype, half):
    network = model_of(family, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = loss_of(LanguageModel(network), slice(4))
    loss.backward()
    return {"loss": loss.item(), "gradient": {name: each.grad for name, each in network.named_parameters()}}


def gradients(network):
    grads = {name: each.grad for name, each in network.named_parameters()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in grads.items()}


def sharded(family, dtype, mesh, *, half=False, late=False):
    """Loss and gradient of this rank's two rows, one at a time."""
    network = model_of(family, dtype)
    model, total = LanguageModel(network), 0.0
    model.share_out(mesh, keep_head=False, cpu_offload=False, half=half)
    sums = []
    for row in (0, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if late:
                model.reduce_gradients(row == 1)
            loss = loss_of(model, slice(2 * dist.get_rank() + row, 2 * dist.get_rank() + row + 1))
        loss.backward()
        total += loss.detach()
        sums.append(next(network.parameters()).grad is not None)
    dist.all_reduce(total)
    found = {"loss": total.item(), "gradient": gradients(network), "sums": sums}
    found["shards"] = {each.dtype for each in network.parameters()}
    with model.gathered(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found["gathered"] = {name: each.dtype for name, each in network.named_parameters()}
        options = dict(stop_ids=(99,), pad_id=0, max_new_tokens=1, batch_size=2, seeds=[1, 2, 3])
        found["alone"] = decode(LanguageModel(model_of(family, dtype)), None, prompt_batch(), **options)
    with model.gathered():  # as validation does it
        found["outside"] = decode(model, None, prompt_batch(), **options)
    found["saved"] = {each.dtype for each in whole_state(network, keep=True).values()}
    return found


def split_answers(mesh, seeds):
    """Of two ranks that share layers; the logits of the second one are shifted by far more than rounding."""
    models = [LanguageModel(make_model("llama", seed=seed, dtype=torch.float32)) for seed in (1, 2)]
    for model in models:
        model.share_out(mesh, keep_head=False, cpu_offload=False, half=True)
    plain = Head.columns
    if dist.get_rank() == 1:
        Head.columns = lambda self, hidden: plain(self, hidden) + torch.randn(31, 1)
    options = dict(stop_ids=(0, 4, 9, 20, 25), pad_id=0, max_new_tokens=24, batch_size=2, seeds=seeds)
    mixed = dict(teacher=models[1], alpha=0.3) if seeds else dict(teacher=None)
    try:
        with models[0].gathered(), models[1].gathered(), torch.autocast("cpu", torch.bfloat16):
            answers = decode(models[0], prompts=prompt_batch(), **mixed, **options)
    finally:
        Head.columns = plain
    return answers.response_ids_BR, answers.response_mask_BR


def checked(family, mesh, half, scale=1.0):
    """Whether decoding and training are one model, of weights in parts; what is refused where they are not."""
    model, plain = LanguageModel(model_of(family, torch.float32)), Head.columns
    with torch.no_grad():
        for each in model.network.parameters():
            each.mul_(3)  # rounding shows
    model.share_out(mesh, keep_head=False, cpu_offload=False, half=half)
    Head.columns = lambda self, hidden: plain(self, hidden) * scale
    options = dict(stop_ids=(99,), pad_id=0, max_new_tokens=8, max_tokens=64, seeds=[1, 2, 3])
    try:
        with model.gathered(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return check_consistency(model, prompt_batch(), **options)
    except ModelError as error:
        return str(error)
    finally:
        Head.columns = plain


def work(rank, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://localhost:{port}"
    dist.init_process_group("gloo", address, timedelta(minutes=10), rank=rank, world_size=2)
    rows = init_device_mesh("cpu", (2, 1), mesh_dim_names=(DATA, TENSOR))
    layers = init_device_mesh("cpu", (1, 2), mesh_dim_names=(DATA, TENSOR))
    found = {family: sharded(family, torch.float32, rows, half=True) for family in HALF}
    found["late"] = sharded("llama", torch.float64, rows, late=True)
    found["late half"] = sharded("llama", torch.float32, rows, half=True, late=True)
    found |= {mode: split_answers(layers, [5, 6, 7] if mode == "sampled" else None) for mode in MODES}
    for name, mesh in (("rows", rows), ("layers", layers)):
        for half in (True, False):
            found["checked", name, half] = {each: checked(each, mesh, half) for each in CHECKED[name]}
            found["refused", name, half] = {each: checked(each, mesh, half, 1.04) for each in CHECKED[name]}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(work, (free_port(), folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def distance(one, other) -> float:
    """Between two gradients."""
    return sum((one[name].double() - other[name].double()).square().sum() for name in one).sqrt().item()


@pytest.mark.parametrize("family", HALF)
def test_layers_are_gathered_in_bfloat16_and_summed_in_float32(ranks, family):
    """Loss and gradient are as near to those of one process under autocast as these are to float32."""
    autocast, exact, found = alone(family, torch.float32, True), alone(family, torch.float32, False), ranks[0][family]
    rounding = distance(autocast["gradient"], exact["gradient"])
    assert distance(found["gradient"], autocast["gradient"]) < rounding
    assert abs(found["loss"] - autocast["loss"]) < 0.01
    assert found["shards"] == found["saved"] == {each.dtype for each in found["gradient"].values()} == {torch.float32}
    halves = {name for name, dtype in found["gathered"].items() if dtype == torch.bfloat16}
    assert halves == {name for name in found["gathered"] if ".layers." in name or ".h." in name}


@pytest.mark.parametrize("family", HALF)
def test_decoding_works_in_autocast_and_outside(ranks, family):
    """Whole weights under autocast, sharded ones without: layers in bfloat16 both times."""
    found, other = ranks[0][family]["outside"], ranks[0][family]["alone"]
    same = found.response_ids_BR == other.response_ids_BR
    near = (found.student_logprobs_BR - other.student_logprobs_BR).abs() < 0.1
    assert same.any() and near[same].all()


def test_gradients_are_summed_once_a_step(ranks):
    one, found = alone("llama", torch.float64, False), ranks[0]["late"]
    assert found["sums"] == [False, True] and ranks[0]["llama"]["sums"] == [True, True]
    assert distance(one["gradient"], found["gradient"]) < 1e-12
    half = distance(ranks[0]["late half"]["gradient"], ranks[0]["llama"]["gradient"])
    assert half < 0.01 * distance(one["gradient"], ranks[0]["llama"]["gradient"])


@pytest.mark.parametrize("mode", MODES)
def test_ranks_that_share_layers_take_the_tokens_of_the_first(ranks, mode):
    (ids, mask), (others, other_mask) = ranks[0][mode], ranks[1][mode]
    assert torch.equal(ids, others) and torch.equal(mask, other_mask)
    assert mask.sum() > 0 and len(set(mask.sum(-1).tolist())) > 1  # rows end at different steps


@pytest.mark.parametrize("half", [True, False], ids=["bf16-mixed", "float32"])
@pytest.mark.parametrize("parts", CHECKED)
def test_decoding_and_training_are_compared_where_weights_are_in_parts(ranks, parts, half):
    for family in CHECKED[parts]:
        found, other = (each["checked", parts, half][family] for each in ranks)
        assert found == other and found.tokens == 24 and abs(found.mean) <= found.largest
        assert half or found.largest < 1e-4
        for each in ranks:
            refused = each["refused", parts, half][family]
            assert re.search(r"slope of the logits 1\.0[345]", refused)
            # What a float32 pass rounds less is allowed for; the limit is 0.002 without, and where experts are routed,
            # which are compared in float32.
            rounded = half and family != "mixtral"
            assert (float(re.search(r"wanted 1 within ([\d.]+)", refused)[1]) > 2e-3) == rounded
