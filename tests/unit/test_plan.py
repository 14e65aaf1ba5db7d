"""The command: every key is read, wrong ones come all at once, the page and the file say what was planned."""

import json
from dataclasses import asdict, replace

import pytest
import yaml
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig, MixtralConfig, Qwen3MoeConfig, T5Config

from minillm import plan as module
from minillm.common.errors import ConfigError
from minillm.common.numbers import duration
from minillm.parallel import Parallel
from minillm.plan import check_plan, make_plan
from tests.conf.test_compose import CONF, composed
from tests.tiny import make_model

SMALL = [
    "recipe=minillm", "pair=opt_1b3", "data.max_prompt_tokens=6", "sampler.max_new_tokens=6", "data.block_size=8",
    "regime.microbatch_tokens=24", "reserve=0", "device_memory=0.1",
    *(f"pair.{side}.architecture.{key}" for side in ("student", "of_teacher")
      for key in ("layers=1", "width=32", "heads=4", "kv_heads=4", "ffn=64", "vocabulary=50")),
]  # fmt: skip
TRAINED = [each for each in SMALL if not each.startswith(("reserve", "device_memory"))]


def question(*overrides):
    return check_plan(composed(*overrides, config="plan"))


def test_every_key_is_read():
    keys = yaml.safe_load((CONF / "plan.yaml").read_text())
    assert set(keys) - {"defaults", "hydra", "rates"} == set(module._KINDS)


@pytest.mark.slow
def test_the_layouts_that_are_tried():
    assert [each.kind for each in question(*SMALL, "devices=1").layouts] == ["single", "fsdp"]
    split = tuple(Parallel("fsdp_tp", 8, tensor_parallel_size=size) for size in (2, 4))
    tried = question(*SMALL, "devices=8").layouts
    assert tried == (Parallel("ddp", 8), Parallel("fsdp", 8), *split)
    assert question(*SMALL, "strategy=fsdp").layouts == (Parallel("fsdp", 8),)
    assert question(*SMALL, "strategy=fsdp_tp", "strategy.tensor_parallel_size=4").layouts == split[1:]
    assert [each.kind for each in question(*SMALL, "model.compile=true").layouts] == ["ddp"]


def test_a_teacher_counts_as_it_is_held():
    """Whole, in few bits (also on a machine that cannot load it so), and its head alone where it runs elsewhere."""
    options = [*SMALL, "devices=1", "sampler.alpha=0"]
    whole, few, away = (
        make_plan(question(*options, *own)).memory
        for own in ([], ["model.teacher.bits=4"], ["model.teacher.url=http://127.0.0.1:1"])
    )
    shape = question(*options).make.keywords["teacher"]
    experts = replace(shape, experts=shape.matrices)  # stacked in one parameter, they stay as they are
    assert experts.quantised(4).stored == shape.stored
    assert whole.update["teacher"] - few.update["teacher"] == pytest.approx(shape.matrices * 1.5 / 1e9)
    assert away.update["teacher"] == pytest.approx(32 * 50 * 2 / 1e9)
    assert sum(away.rollout.values()) < sum(whole.rollout.values()) - whole.rollout["teacher"] + away.update["teacher"]


def test_what_an_objective_compares_with_counts_as_large_as_it_is(tmp_path):
    make_model("llama", vocabulary=50, width=64).save_pretrained(tmp_path)
    options = [*SMALL, "devices=1", "objective=extrapolated"]
    copy, own = (make_plan(question(*options, *each)) for each in ([], [f"model.reference={tmp_path}"]))
    assert copy.memory.update["student at the start"] == copy.memory.update["student"]
    assert own.case.start.width == 64
    assert own.memory.update["student at the start"] == pytest.approx(own.case.start.parameters * 2 / 1e9)


@pytest.mark.some(7)
@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (["devices=24"], ["regime.minibatch_size=64: the 24 devices", "regime.rollouts=256: the 24 devices"]),
        (["devices=many", "rates.overlap=3", "sampler.alpha=2", "seed=x"],
         ["devices='many': wanted an integer", "rates.overlap=3", "sampler.alpha=2", "seed='x'"]),
        (["devices=0"], ["devices=0: wanted a positive number"]),
        (["model=smollm2_pruned", "model.teacher.source=a/b", "model.teacher.architecture=null"],
         ["model.teacher.source=a/b: its shape is not known here"]),
        (["reserve=90"], ["reserve=90: wanted 0 to less than"]),
        (["model.teacher=a/b", "model.student=c/d"],
         ["model.teacher.source=a/b: its shape is not known here; add `architecture`", "model.student.source=c/d"]),
        (["strategy=fsdp", "strategy.cpu_offload=true", "strategy.devices=4", "strategy.num_nodes=2"],
         ["strategy.cpu_offload=True: not planned; wanted False", "strategy.devices=4: not planned; wanted 1",
          "strategy.num_nodes=2: not planned; wanted 1, and the devices of all nodes as devices="]),
        (["strategy=ddp", "strategy.tensor_parallel_size=2"], ["only strategy=fsdp_tp splits layers"]),
        (["+strategy.offload=1"], ["strategy.offload: no such key"]),
        (["strategy=fsdp", "model.compile=true"], ["model.compile=true with strategy=fsdp"]),
        (["strategy=fsdp", "model.teacher.offload=true"], ["model.teacher.offload=true: its body is away"]),
        (["start.steps=4", "start.minibatch_size=8", "devices=3"], ["start.minibatch_size=8: the 3 devices"]),
        (["strategy=fsdp_tp", "strategy.tensor_parallel_size=3"],
         ["strategy=fsdp_tp, devices=8: strategy.tensor_parallel_size=3 does not divide the 8 devices"]),
        (["strategy=fsdp_tp", "strategy.tensor_parallel_size=3", "devices=3"],
         ["model.student: 3 does not divide its 32 heads"]),
        (["strategy=ddp", "devices=128"], ["regime.minibatch_size=64: the 128 devices that share its rows"]),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(overrides, texts):
    with pytest.raises(ConfigError) as caught:
        question("recipe=minillm", "pair=opt_1b3", *overrides)
    for text in texts:
        assert text in str(caught.value)


def test_gpt2_cannot_be_split():
    with pytest.raises(ConfigError, match="model.student: layers of gpt2 cannot be split by torch's plans"):
        question("recipe=minillm", "pair=gpt2_120m", "strategy=fsdp_tp", "strategy.tensor_parallel_size=2")


def test_a_directory_tells_its_own_shape(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    sizes = question("recipe=minillm", "pair=opt_1b3", f"model.teacher={tmp_path}").make.keywords
    assert sizes["teacher"].width == 32 and sizes["student"].width == 2048


def saved(config, folder):
    config.save_pretrained(folder)
    return str(folder)


def tiny(kind, **more):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
    return kind(**sizes, intermediate_size=48, bos_token_id=None, eos_token_id=None, pad_token_id=None, **more)


EXPERTS = {
    "mixtral": lambda: tiny(MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: tiny(
        Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    ),
}


def pair_in(folder):
    return ["recipe=minillm", "pair=opt_1b3", "devices=1", "data.max_prompt_tokens=6", "sampler.max_new_tokens=6",
            "data.block_size=8", f"model.student={folder}", f"model.teacher={folder}"]  # fmt: skip


@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_is_planned_by_its_own_config(family, tmp_path, capfd):
    folder, network = saved(EXPERTS[family](), tmp_path), AutoModelForCausalLM.from_config(EXPERTS[family]())
    plan = make_plan(question(*pair_in(folder)))
    sizes = plan.case.student
    assert sizes.parameters == sum(each.numel() for each in network.parameters())
    assert sizes.products < sizes.read and plan.memory.update["activations"] > 0
    out, err = capfd.readouterr()
    assert not out and not err


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50), "mamba has layers of type"),
        (lambda: tiny(Lfm2Config, layer_types=["conv", "full_attention"]), "lfm2 has layers of type conv"),
        (lambda: T5Config(), "t5 is an encoder-decoder"),
    ],
)
def test_a_family_that_cannot_run_is_refused_by_name(config, text, tmp_path):
    folder = saved(config(), tmp_path)
    with pytest.raises(ConfigError) as caught:
        question(*pair_in(folder))
    assert len(caught.value.problems) == 2  # of the teacher and of the student
    assert all(f"source={folder}: {text}" in problem for problem in caught.value.problems)


def test_experts_that_nothing_tells_of_are_not_made_up():
    experts = [f"pair.{side}.architecture.type=mixtral" for side in ("student", "of_teacher")]
    with pytest.raises(ConfigError, match="`architecture` does not say what experts mixtral has"):
        question(*SMALL, *experts)


def shown(plan, capsys):
    module.show(plan)
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_is_shown_and_written(capsys):
    made = make_plan(question(*SMALL, "devices=2"))
    assert made.fits and made.case.layout == Parallel("ddp", 2)
    assert (made.microbatch_rows, made.rollout_rows) == (32, 128)  # all of a device's
    text = shown(made, capsys)
    for part in (
        "2, ddp; 32 answers of a mini-batch for each group of devices",
        "32 x 11 (all): regime.microbatch_tokens=352; planned with 2 rows",
        "sampler.batch_size=128 (all); planned with 128",
        "fits:",
        "peak_tflops 989",
        f"the run {duration(made.speed.days * 86400)}: ",
    ):
        assert part in text, part
    figures = json.loads(json.dumps(asdict(made)))
    assert (figures["microbatch_rows"], figures["rollout_rows"]) == (32, 128)
    assert figures["assumed"]["overlap"] == 0.0 and figures["speed"]["days"] == pytest.approx(made.speed.days)


@pytest.mark.parametrize(
    ("length", "prompts"), [(["train_prompts=640"], "640"), (["regime.epochs=null", "regime.max_steps=5"], None)]
)
def test_the_prompts_of_an_epoch_are_named_where_they_count(capsys, length, prompts):
    supervised = [each for each in SMALL if not each.startswith(("sampler", "regime", "model.teacher"))]
    made = make_plan(question(*supervised, "recipe=sft", "pair=opt_1b3", "devices=1", *length))
    text = shown(made, capsys)
    assert ("train_prompts" in text) == ("train_prompts" in made.assumed) == (prompts is not None)
    assert prompts is None or f"train_prompts {prompts}" in text


def test_what_does_not_fit_says_so(capsys):
    made = make_plan(question(*SMALL, "devices=1", "device_memory=0.0001"))
    assert not made.fits and made.microbatch_rows == 0
    assert "DOES NOT FIT" in shown(made, capsys)
