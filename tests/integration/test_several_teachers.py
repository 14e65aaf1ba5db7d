"""Runs with several teachers: what each row learns from, figures by teacher, resuming, what is refused."""

import json

import pytest
import torch

from minillm.common.errors import ConfigError, DataError
from minillm.train.card import card_text
from minillm.train.settings import check_config
from tests.conf.test_compose import composed
from tests.integration.test_resume import Killed, rows, train
from tests.tiny import make_model, make_tokenizer

NAMES = ("code", "math")


@pytest.fixture(scope="module")
def several(world, tmp_path_factory):
    """Files whose rows name `math` and `code` in turn, or one of them, or the other one; and a second teacher."""
    folder = tmp_path_factory.mktemp("several")
    make_model("gpt2", seed=3, width=16, dtype=torch.float32).save_pretrained(folder / "code")
    make_tokenizer().save_pretrained(folder / "code")
    for name in ("train", "val"):
        given = [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]
        for kind in ("turn", "other", *NAMES):
            first = ("math", "code") if kind == "turn" else ("code", "math") if kind == "other" else (kind, kind)
            texts = (json.dumps(row | {"teacher": first[n % 2]}) for n, row in enumerate(given))
            (folder / f"{name}_{kind}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def options(overrides, supervised, world, several):
    def make(kind="turn", regime="on_policy", math=f"{world}/teacher", code=f"{several}/code"):
        files = [f"data.{name}_file={several}/{name}_{kind}.jsonl" for name in ("train", "val")]
        teachers = ["model.teacher=null", f"model.teachers={{math: {math}, code: {{source: {code}}}}}"]
        return [*(overrides if regime == "on_policy" else supervised), *files, *teachers, "model.dtype=float64"]

    return make


def losses(folder, key):
    return [float(row[key]) for row in rows(folder) if key in row]


def test_a_run_goes_on_bit_for_bit_and_has_figures_of_each_teacher(tmp_path, options):
    replay = [
        "data.replay=0.25",
        "data.replay_size=2",
        "sampler.alpha=0.3",
        "objective=jsd",
        "objective.long_part=true",
    ]
    given = [*options(), *replay, "optim.learning_rate=1e-2", "preflight=true"]
    whole = train(tmp_path / "whole", given)
    with pytest.raises(Killed):
        train(tmp_path / "cut", given, kill_after=2)
    again = train(tmp_path / "cut", given, resume="auto")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for name, each in again.module.state_dict().items():
        assert torch.equal(each, whole.module.state_dict()[name])

    answers = [json.loads(line) for line in (tmp_path / "whole" / "samples" / "raw.jsonl").read_text().splitlines()]
    figures = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    for name, of in (("math", answers[::2]), ("code", answers[1::2])):
        kl, tokens = (sum(row[key] for row in of) for key in ("reverse_kl", "n_tokens"))
        assert figures[f"val/reverse_kl_{name}_raw"] == pytest.approx(kl / tokens)
        assert figures[f"val/tokens_{name}_raw"] == tokens
    for key in ("rouge_l", "loss", "reverse_kl"):
        parts = [figures[f"val/{key}_{name}"] for name in NAMES]
        assert min(parts) <= figures[f"val/{key}"] <= max(parts)
    page = (tmp_path / "whole" / "preflight.md").read_text()
    assert "| | student | code | math |" in page.replace("|  |", "| |") and "code: 6; math: 6" in page


def test_the_same_model_under_two_names_is_one_teacher(tmp_path, options, world):
    for regime, more in (("on_policy", ["sampler.alpha=0.3"]), ("supervised", ["objective=kd"])):
        two = train(tmp_path / regime, [*options(regime=regime, code=f"{world}/teacher"), *more])
        one = [
            each for each in options(regime=regime) if not each.startswith(("model.teacher", "data.train", "data.val"))
        ]
        files = [f"data.{name}_file={world}/{name}.jsonl" for name in ("train", "val")]
        alone = train(tmp_path / f"{regime}_alone", [*one, *more, *files, f"model.teacher={world}/teacher"])
        for name, each in two.module.state_dict().items():
            torch.testing.assert_close(each, alone.module.state_dict()[name], rtol=0, atol=1e-9)


def test_the_first_loss_of_kd_is_linear_in_who_teaches_whom(tmp_path, options):
    """Before the first update: the loss of a file and that of the file with its teachers exchanged are together those
    of the file with one teacher and with the other."""
    more = ["objective=kd", "regime.max_steps=1", "regime.minibatch_size=12", "regime.microbatch_size=4"]
    for kind in ("turn", "other", *NAMES):
        train(tmp_path / kind, [*options(kind, "supervised"), *more])
    turn, other, code, math = (losses(tmp_path / kind, "train/loss")[0] for kind in ("turn", "other", *NAMES))
    assert turn + other == pytest.approx(code + math, abs=1e-9) and abs(turn - code) > 1e-3 < abs(turn - math)


def test_validation_measures_each_row_by_its_own_teacher(tmp_path, options):
    """The student and its streams are the same before the first step, whoever teaches."""
    more = ["regime.max_steps=2", "start.steps=0"]
    found = {}
    for kind in ("turn", *NAMES):
        train(tmp_path / kind, [*options(kind), *more])
        lines = (tmp_path / kind / "samples" / "raw.jsonl").read_text().splitlines()
        found[kind] = list(map(json.loads, lines))
    for n, row in enumerate(found["turn"]):
        expected = found["code" if n % 2 else "math"][n]
        assert row["answer"] == expected["answer"] and row["teacher"] == expected["teacher"]
        assert row["reverse_kl"] == pytest.approx(expected["reverse_kl"], abs=1e-9)
    assert [row["reverse_kl"] for row in found["math"]] != [row["reverse_kl"] for row in found["code"]]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["strategy=fsdp", "strategy.devices=2"], "model.teachers: wanted strategy=single or ddp, data."),
        (["regulariser=pretrain_kd"], "strategy=single or ddp, data.teacher_cache=null and regulariser.kd_ratio=0"),
        (["model.teacher=x/y"], "model.teacher, teachers: both are given; wanted teacher=null"),
        (["model.student={_target_:minillm.models.PrunedTeacher,keep_layers:[0]}"], "teacher=null: the student is mad"),
        (["model.teachers={math: {sorce: x}}"], "model.teachers.math.sorce: no such key; did you mean source?"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(options, more, text):
    with pytest.raises(ConfigError) as caught:
        check_config(composed(*options(), *more))
    assert text in str(caught.value)


def test_records_are_looked_at_before_a_model_is_loaded(tmp_path, options, several, world):
    given = options(math="/no/such/dir")
    files = [f"data.{name}_file={world}/{name}.jsonl" for name in ("train", "val")]
    with pytest.raises(DataError) as caught:
        train(tmp_path / "run", [*given, *files])
    assert "train.jsonl: 12 unusable rows" in str(caught.value)
    assert "train.jsonl:1: key teacher: wanted a name in model.teachers (code, math), got no" in str(caught.value)
    with pytest.raises(DataError, match=r"key teacher: wanted none without model.teachers, got 'math'"):
        train(tmp_path / "run", [*given, "model.teachers=null", "model.teacher=/no/such/dir"])
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_does_not_go_on_with_another_teacher_or_other_rows(tmp_path, options, world, several):
    with pytest.raises(Killed):
        train(tmp_path / "run", options(), kill_after=2)
    with pytest.raises(ConfigError, match=r"model\.teachers\.code\.source=.*: the run was made with"):
        train(tmp_path / "run", options(code=f"{world}/teacher"), resume="auto")
    file = several / "train_turn.jsonl"
    before = file.read_text()
    try:
        file.write_text(before.replace("math", "code", 1))
        with pytest.raises(ConfigError, match=r"data\.train_file: other content than the run"):
            train(tmp_path / "run", options(), resume="auto")
    finally:
        file.write_text(before)
    order = [each.replace("model.teachers={", "model.teachers={code: {source: " + f"{several}/code" + "}, ").replace(
        f", code: {{source: {several}/code}}}}", "}") for each in options()]  # fmt: skip
    assert order != options()
    train(tmp_path / "run", order, resume="auto")


def test_the_card_names_all_teachers(options):
    text = card_text(check_config(composed(*options("turn", "on_policy", "a/b", "c/d"))).plain)
    assert "A student distilled from `a/b` and `c/d` by MiniLLM" in text
