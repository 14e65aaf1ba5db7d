"""Every yaml composes, every key is consumed by a constructor, presets and explicit choices win as documented."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from minillm.common.checks import construct, node_problems
from minillm.common.errors import ConfigError
from minillm.common.stored import resolved
from minillm.evaluation.suite import check_suite
from minillm.evaluation.suite.settings import read_measures
from minillm.models import Architecture
from minillm.train.loaded import check_lengths
from minillm.train.settings import check_config
from tests.tiny import make_pair

CONF = Path(__file__).parents[2] / "conf"
GROUPS = sorted(
    f"{file.parent.name}={file.stem}"
    for file in CONF.glob("*/*.yaml")
    if file.parent.name != "chain" and (file.parent.name, file.stem) != ("pair", "base")  # what other pairs begin with
)


OWN = ["model.student=a/b", "model.teacher=c/d"]
NEEDS = {  # choices that go together with another
    "objective=sft": ["regime=supervised"],
    "objective=entropy_aware": ["objective.weight=1", "objective.threshold=1"],
    "objective=kd": ["regime=supervised"],
    "regime=supervised": ["objective=sft"],
    **{f"recipe={name}": [*OWN[:1]] for name in ("teacher", "start", "sft", "opsd")},
    "recipe=context": [*OWN[:1], "data.teacher_system=Be brief."],
    **{f"recipe={name}": OWN for name in ("kd", "seqkd", "minillm", "minillm_nopt", "opd", "spans")},
    "objective=spans": OWN,
    "model=pair": ["+checkpoint@model.student=gpt2", "+checkpoint@model.teacher=gpt2_xl"],
    "model=own": ["model.student.source=a/b", "model.teacher.source=c/d"],
    "model=of_pair": ["pair=gpt2_120m"],
    "strategy=fsdp_tp": ["strategy.devices=2"],
    "checkpoint": ["model=pair", "+checkpoint@model.teacher=gpt2_xl"],
    "pair=own": OWN,
    "pair=narrow": ["recipe=minillm"],
    "pair=smollm2": ["data.train_file=a.jsonl", "data.val_file=b.jsonl"],
}


def composed(*overrides, config="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*overrides, "run.name=test", "run.dir=/nowhere/test"], return_hydra_config=False)


def settings(*overrides):
    return check_config(composed(*overrides))


@pytest.mark.some(12)
@pytest.mark.parametrize("choice", GROUPS)
def test_every_yaml_composes_and_every_key_is_consumed(choice):
    group, name = choice.split("=")
    if group == "suite":  # of evaluate.py
        problems, node = [], OmegaConf.to_container(composed(choice, config="evaluate").suite, resolve=True)
        assert read_measures(problems, node)[0] and not problems
        return
    if choice == "logger=tensorboard":
        pytest.importorskip("tensorboard", reason="pip install -r requirements-tensorboard.txt")
    own = f"+checkpoint@model.student={name}" if group == "checkpoint" else choice
    check_config(composed(own, *NEEDS.get(choice, NEEDS.get(group, ()))))


def test_all_groups_of_the_contract_are_there():
    settings = "model checkpoint lora objective linear_loss sampler regulariser data regime optim"
    around = "strategy trainer callbacks logger recipe pair size chain experiment ablation sweep suite"
    assert {*settings.split(), *around.split()} == {folder.name for folder in CONF.iterdir() if folder.is_dir()}


@pytest.mark.parametrize("recipe", sorted(file.stem for file in CONF.glob("recipe/*.yaml")))
def test_the_small_size_goes_with_every_recipe(recipe):
    words = [f"recipe={recipe}", *NEEDS[f"recipe={recipe}"]]
    small, full = settings("size=small", *words), settings(*words)
    steps = small.regime.steps(10**6)
    assert (steps, small.regime.minibatch_size) == (16, 16) and small.regime.steps_per_rollout == 1
    assert small.data.val_size == 32 and small.sampler.max_new_tokens == 64 and full.regime.steps(10**6) > 1000
    assert small.optim.warmup_steps < steps and type(small.objective) is type(full.objective)


def test_the_small_size_wins_over_pair_and_experiment_and_a_key_over_it():
    of_pair = settings("size=small", "recipe=sft", "pair=narrow").regime
    assert (of_pair.max_steps, of_pair.epochs, of_pair.microbatch_size) == (16, None, "auto")
    assert settings("size=small", "experiment=demo", "regime.max_steps=3").regime.max_steps == 3


def test_a_key_that_no_constructor_takes_is_seen():
    """What makes the test above able to fail."""
    node = OmegaConf.to_container(composed().objective) | {"gama": 1.0}
    assert node_problems(node, "objective") == ["objective.gama: no such key; did you mean gamma?"]


@pytest.mark.parametrize("file", sorted(CONF.glob("checkpoint/*.yaml")), ids=lambda file: file.stem)
def test_every_checkpoint_states_an_architecture_that_can_be_built(file):
    stated: Architecture = construct(OmegaConf.to_container(OmegaConf.load(file).architecture))
    small = replace(stated, layers=2, width=16, heads=4, kv_heads=2 if stated.kv_heads < stated.heads else 4,
                          ffn=32, vocabulary=64, head_dim=None)  # fmt: skip
    assert Architecture.of(small.random_model().config) == small


def test_a_pair_is_made_of_two_checkpoints():
    both = ["+checkpoint@model.student=opt_1b3", "+checkpoint@model.teacher=opt_13b"]
    made = settings("model=pair", *both, "model.teacher.offload=true").model
    assert (made.student.source, made.student.architecture.layers) == ("facebook/opt-1.3b", 24)
    assert (made.teacher.source, made.teacher.architecture.layers) == ("facebook/opt-13b", 40) and made.teacher.offload
    assert settings("pair=opt_2b7", "model.teacher=a/b", "model.student=c/d").model.teacher.source == "a/b"


def test_presets_set_the_regulariser_and_an_explicit_one_wins():
    assert settings("objective=paper").regulariser.kd_ratio == 0.0
    assert settings("objective=reference").regulariser.kd_ratio == 0.5
    assert not settings("objective=reference", "regulariser=none").regulariser.on
    assert settings("objective=reference", "regulariser=pretrain").regulariser.kd_ratio == 0.0
    assert settings("experiment=demo").objective == settings("objective=reverse_kl").objective
    paper = settings("experiment=demo", "objective=paper")
    assert paper.objective == settings("objective=paper").objective and not paper.regulariser.on
    assert settings("regime=supervised", "objective=sft").optim.schedule == "cosine"
    assert settings("regime=supervised", "objective=kd", "optim=adamw").optim.schedule == "constant"
    assert settings("experiment=narrow_minillm").regulariser.on
    assert not settings("experiment=narrow_minillm", "regulariser=none").regulariser.on


def test_the_paper_preset_is_the_class_default_and_the_reference_differs_in_every_row():
    paper, reference = settings("objective=paper").objective, settings("objective=reference").objective
    assert paper == type(paper)()
    differing = {name for name in vars(paper) if getattr(paper, name) != getattr(reference, name)}
    assert differing == {
        "skip_current", "gamma", "whitening", "reward_scaling", "reward_clip", "single_weight", "denominator"
    }  # fmt: skip


@pytest.mark.parametrize("importance", ["token", "exact"])
def test_keys_relied_on_from_outside(importance, tmp_path):
    made = settings(
        "seed=7", "eval_seed=9", "data.train_file=a.jsonl", "data.val_file=b.jsonl", "data.corpus_file=c.txt",
        "model.student=/some/student", "model.teacher=owner/teacher", "start.steps=3",
        f"objective.importance={importance}",
    )  # fmt: skip
    assert made.model.student.source == "/some/student" and made.model.teacher.source == "owner/teacher"
    assert (made.data.train_file, made.data.val_file, made.data.corpus_file) == ("a.jsonl", "b.jsonl", "c.txt")
    assert made.objective.importance == importance and made.start.steps == 3 and made.callbacks["validation"].seed == 9


def test_all_problems_come_in_one_message():
    with pytest.raises(ConfigError) as caught:
        settings(
            "objective.gamma=2", "sampler.alpha=1.5", "optim.learning_rate=fast", "regime.minibatch_size=10", "seed=x",
            "+trainer.gradient_clip_val=1.0", "+data.trian_file=x", "run.dir=/nowhere", "strategy.devices=2",
        )  # fmt: skip
    assert caught.value.problems == [
        "seed='x': wanted an integer",
        "trainer.gradient_clip_val: the training loop is ours (manual optimisation); use optim.grad_clip (a global "
        "norm)",
        "data.trian_file: no such key; did you mean train_file?",
        "sampler.alpha=1.5: wanted a number in [0, 1); 0 samples from the student alone",
        "objective.gamma=2: wanted a number in [0, 1]",
        "regime.minibatch_size=10 does not divide rollouts=256; use a divisor",
        "optim.learning_rate='fast': wanted a number",
        "strategy.devices=2, num_nodes=1: strategy=single is for one device; wanted strategy=ddp, fsdp or fsdp_tp, or "
        "both 1",
    ]


def test_callbacks_work_in_one_order_whichever_key_comes_first():
    plain = resolved(composed())
    plain["callbacks"] = dict(reversed(plain["callbacks"].items()))
    assert list(check_config(plain).callbacks) == ["validation", "checkpoints", "record", "report", "progress"]


_PAIR = ["model.student=/some/student", "model.teacher=/some/teacher"]


@pytest.mark.some(8)
@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.corpus_file=null"], "data.corpus_file=null: the regulariser needs a corpus"),
        (["start.steps=4", "start.minibatch_size=7"], "start.minibatch_size=7 does not divide regime.rollouts=256"),
        (["objective.single_step=false"], "skip_current=true with single_step=false"),
        (["strategy.devices=2"], "strategy=single is for one device"),
        (
            ["strategy=ddp", "strategy.devices=128"],
            "regime.minibatch_size=64: the 128 devices that share its rows do not divide",
        ),
        (
            ["strategy=ddp", "strategy.devices=6"],
            "regime.rollouts=256: the 6 devices that share its rows do not divide",
        ),
        (["strategy=fsdp", "model.compile=true"], "model.compile=true with strategy=fsdp"),
        (["strategy=fsdp", "model.teacher.offload=true"], "model.teacher.offload=true: its body is away"),
        (["callbacks.validation=null"], "callbacks.record.export=best: needs"),
        (["model.reference=x"], "model.reference: objective MiniLLM compares with none; wanted null"),
        (["+trainer.accumulate_grad_batches=2"], "use regime.microbatch_tokens"),
        (["data.template=paper", "data.system=hello"], "only the chat template takes them"),
        (["+sed=1"], "sed: no such key; did you mean seed?"),
        (["+strategy.device=2"], "strategy.device: no such key; did you mean devices?"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: wanted auto, 32-true or bf16-mixed"),
        (["callbacks.record=null"], "callbacks.record=null: it writes metrics.json"),
        (["model.attention=flash_attention_2"], "works in half types only"),
        (["model.dtype=bfloat16"], "model.dtype=bfloat16: the student's weights would be trained in it"),
        (["~objective"], "objective=None: missing; wanted a config group"),
        (["preflight=1"], "preflight=1: wanted true or false"),
        (["linear_loss.chunk_mb=-1"], "chunk_mb=-1: wanted a positive number of MiB, auto, or null"),
        (
            ["regime.teacher_states=recompute", "model.teacher.offload=true"],
            "model.teacher.offload=true: its body is away",
        ),
        (["regulariser=pretrain_kd", "model.teacher.offload=true"], "model.teacher.offload=true: its body is away"),
        (["regime.microbatch_size=0"], "microbatch_size=0: wanted a positive number of rows, or null"),
        (["resume=yes"], "resume='yes': wanted null or auto"),
        (["model.tokenizers=separate", *_PAIR], "model.tokenizers=separate with objective MiniLLM: it compares tokens"),
        (["objective=spans", "model.tokenizers=shared", *_PAIR], "objective=spans with model.tokenizers=shared"),
        (["objective=spans"], "tokenizers=separate: wanted one teacher of its own weights in this process"),
        (["objective=spans", "model.student=a", "model.teacher=http://b:1"], "tokenizers=separate: wanted one teacher"),
        (["objective=spans", "model.student=a", "model.teacher=ema"], "tokenizers=separate: wanted one teacher"),
        (["objective=spans", "sampler.alpha=0.2", *_PAIR], "sampler.alpha=0.2, sampler.temperature=1.0 with model.tok"),
        (["objective=spans", "sampler.temperature=0.7", *_PAIR], "sampler.temperature=0.7 with model.tokenizers=separ"),
        (["objective=spans", "start.steps=2", *_PAIR], "start.responses=teacher with model.tokenizers=separate"),
        (["objective=spans", "start.steps=2", *_PAIR], "start.kd_ratio with model.tokenizers=separate: takes the"),
        (["objective=spans", "regulariser=pretrain_kd", *_PAIR], "regulariser.kd_ratio with model.tokenizers=separate"),
        (["objective=spans", "data.replay=0.5", *_PAIR], "data.replay with model.tokenizers=separate"),
        (["objective=spans", "data.on_policy=0.5", *_PAIR], "objective SpanReverseKL is a policy gradient alone"),
        (["objective=kd", "regime=supervised", "model.tokenizers=separate", *_PAIR], "with objective CrossEntropy"),
        (
            ["objective=sft", "regime=supervised", "model.tokenizers=separate", "data.teacher_cache=x", *_PAIR],
            "data.teacher_cache with model.tokenizers=separate",
        ),
    ],
)
def test_cross_field_rules(overrides, text):
    with pytest.raises(ConfigError) as caught:
        settings(*overrides)
    assert text in str(caught.value)


@pytest.mark.parametrize("resume", ["null", "auto"])
def test_no_run_begins_in_the_directory_of_an_evaluation(tmp_path, resume):
    """Its metrics.json would be written over."""
    cfg = composed(f"resume={resume}")
    cfg.run.dir = str(tmp_path)
    check_config(cfg)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ConfigError, match="run.name=test: .* already holds an evaluation or a teacher's answers"):
        check_config(cfg)


def test_the_evaluation_config_composes():
    cfg = composed("models=[a,b]", "teacher=t", "data.files=[x.jsonl]", config="evaluate")
    assert list(cfg.models) == ["a", "b"] and cfg.teacher == "t" and list(cfg.data.files) == ["x.jsonl"]


def test_answers_longer_than_the_models_positions_are_refused():
    pair = make_pair("gpt2")  # 1,024 positions
    made = settings("data.max_prompt_tokens=800", "sampler.max_new_tokens=300", "data.block_size=2048")
    with pytest.raises(ConfigError) as caught:
        check_lengths(made, pair)
    assert "data.max_prompt_tokens + sampler.max_new_tokens=1100: gpt2 has 1024 positions" in str(caught.value)
    assert "data.block_size=2048" in str(caught.value)
    check_lengths(settings("data.block_size=1024"), pair)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.val_file=x.jsonl"], "data.val_file: is for training; here prompts are in data.files"),
        (["data.template=latex"], "data.template='latex': wanted one of paper, chat"),
        (["data.max_prompt_tokens=0"], "data.max_prompt_tokens=0: wanted a positive number"),
        (["models=[/no/model]"], "models: source=/no/model: no such file or directory"),
    ],
)
def test_a_wrong_evaluation_stops_before_a_model_is_loaded(overrides, text):
    with pytest.raises(ConfigError) as caught:
        check_suite(composed("models=[owner/name]", *overrides, config="evaluate"))
    assert text in str(caught.value)
