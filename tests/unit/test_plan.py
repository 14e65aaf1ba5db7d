"""The command: every key is read, wrong ones come all at once, the page and the file say what was planned."""

import json
from dataclasses import replace

import pytest
import yaml
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig, MixtralConfig, Qwen3MoeConfig, T5Config

from minillm import plan as module
from minillm.common.errors import ConfigError, ModelError
from minillm.common.numbers import duration
from minillm.parallel import Parallel
from minillm.plan import check_plan, make_plan
from minillm.planning import measure, page
from tests.conf.test_compose import CONF, composed, settings
from tests.conftest import make_model

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


def test_the_layouts_that_are_tried():
    assert [each.kind for each in question(*SMALL, "devices=1").layouts] == ["single", "fsdp"]
    split = tuple(Parallel("fsdp_tp", 8, tensor_parallel_size=size) for size in (2, 4))
    tried = question(*SMALL, "devices=8").layouts
    assert tried == (Parallel("ddp", 8), Parallel("fsdp", 8), *split)
    assert question(*SMALL, "layout=fsdp_tp", "tensor_devices=4").layouts == split[1:]
    assert question(*SMALL, "strategy=fsdp").layouts == (Parallel("fsdp", 8),)  # the config group's choice
    chosen = ["strategy=fsdp_tp", "strategy.tensor_parallel_size=4"]
    assert question(*SMALL, *chosen).layouts == split[1:]
    assert question(*SMALL, *chosen, "tensor_devices=2").layouts == split[:1]  # the planner's own keys win
    assert question(*SMALL, *chosen, "layout=ddp").layouts == (Parallel("ddp", 8),)
    assert [each.kind for each in question(*SMALL, "model.compile=true").layouts] == ["ddp"]


@pytest.mark.slow
def test_a_teacher_in_few_bits_is_planned_on_any_machine_and_said_to_be_counted_whole():
    plan = make_plan(question(*SMALL, "devices=1", "model.teacher.bits=4"))
    assert plan.sources["teacher"].endswith("(counted without its 4 bits)")
    assert "bits" not in plan.sources["student"]


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (["layout=zero"], ["layout=zero: wanted auto or one of single, ddp, fsdp, fsdp_tp"]),
        (["devices=24"], ["24 groups do not divide regime.minibatch_size=64", "do not divide regime.rollouts=256"]),
        (["devices=many", "rates.overlap=3", "sampler.alpha=2", "seed=x"],
         ["devices='many': wanted an integer", "rates.overlap=3", "sampler.alpha=2", "seed='x'"]),
        (["devices=0", "reserve=90"], ["devices=0: wanted a positive number", "reserve=90: wanted 0 to less than"]),
        (["model.teacher=a/b", "model.student=c/d"],
         ["model.teacher.source=a/b: its shape is not known here; add `architecture`", "model.student.source=c/d"]),
        (["layout=single"], ["layout=single, devices=8: devices=8, num_nodes=1: strategy=single is for one device"]),
        (["strategy=fsdp", "strategy.cpu_offload=true", "strategy.devices=4", "strategy.num_nodes=2"],
         ["strategy.cpu_offload=True: parts of weights that wait on the CPU are not planned",
          "strategy.devices=4: the planner counts the devices of all nodes; wanted their number as devices=",
          "strategy.num_nodes=2: the planner counts"]),
        (["strategy=ddp", "strategy.tensor_parallel_size=2"], ["only strategy=fsdp_tp splits layers"]),
        (["+strategy.offload=1"], ["strategy.offload: no such key"]),
        (["layout=fsdp", "model.compile=true"], ["model.compile=true with strategy=fsdp"]),
        (["strategy=fsdp", "model.teacher.offload=true"], ["model.teacher.offload=true with strategy=fsdp"]),
        (["start.steps=4", "start.minibatch_size=8", "devices=3"], ["3 groups do not divide start.minibatch_size=8"]),
        (["layout=fsdp_tp", "tensor_devices=3"],
         ["tensor_devices=3: tensor_parallel_size=3 does not divide the 8 devices",
          "tensor_devices=3, model.student: 3 does not divide its 32 heads"]),
        (["layout=ddp", "tensor_devices=2"],
         ["layout=ddp, devices=8, tensor_devices=2: tensor_parallel_size=2: only strategy=fsdp_tp splits layers"]),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(overrides, texts):
    with pytest.raises(ConfigError) as caught:
        question("recipe=minillm", "pair=opt_1b3", *overrides)
    for text in texts:
        assert text in str(caught.value)


def test_gpt2_cannot_be_split():
    with pytest.raises(ConfigError, match="model.student: layers of gpt2 cannot be split by torch's plans"):
        question("recipe=minillm", "pair=gpt2_120m", "layout=fsdp_tp")


def test_a_directory_tells_its_own_shape(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    case = question("recipe=minillm", "pair=opt_1b3", f"model.teacher={tmp_path}").case
    assert case.teacher.config.hidden_size == 32 and case.student.config.hidden_size == 2048


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
    assert plan.sizes["student"].parameters == sum(each.numel() for each in network.parameters())
    assert plan.sizes["student"].products < plan.sizes["student"].read and plan.memory.update["activations"] > 0
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


def test_a_model_that_decides_by_its_data_is_one_message(tmp_path, capfd):
    """With a loop over the experts that got a token."""
    config = EXPERTS["mixtral"]()
    config._experts_implementation = "eager"
    case = question(*pair_in(saved(config, tmp_path))).case
    blueprint = replace(case.student, config=config)
    with pytest.raises(ModelError, match="^mixtral: cannot be planned. .*DynamicOutputShape"):
        measure(replace(case, student=blueprint, teacher=blueprint))
    assert capfd.readouterr() == ("", "")


def test_experts_that_nothing_tells_of_are_not_made_up():
    experts = [f"pair.{side}.architecture.type=mixtral" for side in ("student", "of_teacher")]
    with pytest.raises(ConfigError, match="`architecture` does not say what experts mixtral has"):
        question(*SMALL, *experts)


def test_a_plan_is_shown_and_written(capsys, tmp_path):
    made = make_plan(question(*SMALL, "devices=2"))
    assert made.fits and made.case.layout == Parallel("ddp", 2)
    assert (made.microbatch_rows, made.rollout_rows) == (32, 128)  # all of a device's
    page.show(made)
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "ddp on 2 devices; 64 answers a mini-batch: 32 a group",
        "runs/opt_1b3_start/student runs/opt_13b_teacher/student",
        "32 rows of 11 tokens (all of a device's mini-batch): regime.microbatch_tokens=352; planned with 2 rows",
        "sampler.batch_size=128 (all of a device's rollout); planned with 128",
        "fits:",
        "peak_tflops 989",
        f"the run {duration(made.speed.days * 86400)}: ",
    ):
        assert part in text, part
    figures = json.loads(json.dumps(page.figures(made)))
    assert figures["largest"] == {"microbatch_rows": 32, "microbatch_tokens": 352, "rollout_rows": 128}
    assert figures["rates"]["overlap"] == 0.0 and figures["days"] == pytest.approx(made.speed.days)
    assert page.line(made).count("|") == len(page.HEADINGS) + 1


@pytest.mark.parametrize(
    ("length", "prompts"), [(["train_prompts=640"], 640), (["regime.epochs=null", "regime.max_steps=5"], None)]
)
def test_the_prompts_of_an_epoch_are_named_where_they_count(capsys, length, prompts):
    supervised = [each for each in SMALL if not each.startswith(("sampler", "regime", "model.teacher"))]
    made = make_plan(question(*supervised, "recipe=sft", "pair=opt_1b3", "devices=1", *length))
    page.show(made)
    text = " ".join(capsys.readouterr().out.split())
    assert ("train_prompts 640 in an epoch" in text) == (prompts is not None) == ("train_prompts" in text)
    assert page.figures(made)["train_prompts"] == prompts


@pytest.mark.slow
def test_more_groups_than_answers_are_refused_by_training(capsys):
    few = question(*SMALL, "devices=128", "layout=ddp")
    made = make_plan(few)
    assert few.scaled == 1 and made.busy == 64 and made.most_devices == 64
    page.show(made)
    text = " ".join(capsys.readouterr().out.split())
    assert "train.py REFUSES this: regime.minibatch_size=64, fewer rows than the 128 groups of devices" in text
    assert "at most 64 devices, more rows, or scale_batch=true" in text
    assert "| **ddp: train.py refuses, at most 64** |" in page.line(made)
    assert page.figures(made)["layout"]["refused"] == ["regime.minibatch_size"]
    with pytest.raises(ConfigError, match="regime.minibatch_size=64: fewer rows than the 128 devices"):  # as it says
        settings(*TRAINED, "strategy=ddp", "strategy.devices=128")
    settings(*TRAINED, "strategy=ddp", f"strategy.devices={made.most_devices}")
    scaled = question(*SMALL, "devices=128", "layout=ddp", "scale_batch=true")
    assert (scaled.scaled, scaled.case.minibatch, scaled.case.rollouts) == (2, 128, 512)
    assert scaled.case.regulariser.batch_size == 128
    assert "REFUSES" not in page._layout(make_plan(scaled))


@pytest.mark.slow
def test_rows_of_the_supervised_start_are_shared_too():
    made = make_plan(question(*SMALL, "devices=64", "layout=ddp", "start.steps=4", "start.minibatch_size=16"))
    assert made.refused == ["start.minibatch_size"] and made.most_devices == 16
    made = make_plan(question(*SMALL, "devices=16", "layout=ddp", "start.steps=4", "start.minibatch_size=16"))
    assert not made.refused and "refuses" not in page.line(made)


@pytest.mark.slow
def test_what_does_not_fit_says_so(capsys):
    made = make_plan(question(*SMALL, "devices=1", "device_memory=0.0001"))
    assert not made.fits and made.microbatch_rows == 0
    page.show(made)
    assert "DOES NOT FIT" in capsys.readouterr().out and "does not fit" in page.line(made)


@pytest.mark.slow
def test_the_table_follows_strategy(capsys):
    keys = composed(*SMALL, "pairs=[opt_1b3]", "table_devices=[2]", config="plan")
    module.print_table(keys, [*SMALL, "strategy=fsdp"])
    assert [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines()[2:]] == ["fsdp"]


@pytest.mark.slow
def test_the_table_has_a_line_for_each_run(capsys):
    keys = composed(*SMALL[1:], "recipe=minillm_nopt", "pairs=[opt_1b3]", "table_devices=[1,2]", config="plan")
    module.print_table(keys, ["recipe=minillm_nopt", *SMALL[1:], "table=true", "devices=4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] == f"| {' | '.join(page.HEADINGS)} |"
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["1", "single"], ["2", "ddp"]]
    assert {line.split(" | ")[0] for line in lines[2:]} == {"| opt_1b3_minillm_nopt"}
