"""What docs/extend.md shows: an objective and a sampler that the package does not know, by one yaml line each."""

import json
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import minillm
from examples.extend.hot import Hot
from examples.extend.renyi import Renyi
from examples.extend.words import stutter
from minillm import divergences
from minillm.common.errors import ConfigError
from minillm.evaluation.metrics import figures_at
from minillm.evaluation.report import write_report
from minillm.models import LanguageModel
from minillm.objectives import CrossEntropy, MiniLLM, Objective
from minillm.rollout import Sampler
from minillm.testing import check_objective
from tests.helpers import prompt_batch
from tests.integration.test_resume import train
from tests.tiny import make_model

EXTEND = "hydra.searchpath=[file://examples/extend/conf]"


@pytest.mark.parametrize("objective", [Renyi(), Renyi(2.0), MiniLLM(), CrossEntropy(0.5)], ids=str)
def test_the_ready_check_passes_right_objectives(objective):
    check_objective(objective)


def test_the_ready_check_finds_a_right_loss_with_a_wrong_gradient():
    @dataclass(frozen=True)
    class Detached(Objective):
        def token_loss(self, student_NV, teacher_NV, ids_N, constants):
            gap_NV = student_NV - teacher_NV
            return (student_NV.detach().exp() * gap_NV).sum(-1)

    with pytest.raises(AssertionError, match="by finite differences"):
        check_objective(Detached())

    @dataclass(frozen=True)
    class Coupled(Objective):
        def token_loss(self, student_NV, teacher_NV, ids_N, constants):
            return divergences.reverse_kl(student_NV, teacher_NV) / len(ids_N)

    with pytest.raises(AssertionError, match="chunks of 1 tokens give another one"):
        check_objective(Coupled())


def test_renyi_is_its_definition_and_nears_the_kl():
    torch.manual_seed(0)
    q, p = torch.randn(2, 6, 9, dtype=torch.float64).log_softmax(-1)
    by_hand = ((q.exp() ** 0.3) * (p.exp() ** 0.7)).sum(-1).log() / (0.3 - 1)
    torch.testing.assert_close(Renyi(0.3).token_loss(q, p, None, {}), by_hand)
    torch.testing.assert_close(
        Renyi(1 - 1e-6).token_loss(q, p, None, {}), divergences.reverse_kl(q, p), rtol=1e-4, atol=1e-5
    )


@pytest.mark.quick
@pytest.mark.parametrize(("mine", "name"), [("objective", "renyi"), ("sampler", "hot")])
def test_a_run_takes_them_by_one_line(tmp_path, overrides, mine, name):
    run = train(tmp_path, [EXTEND, f"{mine}={name}", *overrides, "preflight=true", "regime.max_steps=4"])
    assert type(getattr(run.module, mine)).__name__ == name.capitalize() and run.module.step == 4
    card = (tmp_path / "student" / "README.md").read_text()
    assert ("the objective Renyi" in card) == (mine == "objective")
    assert json.loads((tmp_path / "metrics.json").read_text())["val/reverse_kl"] > 0


def test_weights_of_a_hot_sampler_make_its_mean_that_of_the_student():
    """E_b[(q / b) f] = E_q[f] over all first tokens, and the weights are those of the definition."""
    model, prompts = LanguageModel(make_model()), prompt_batch()
    rollout = Hot(max_new_tokens=3).rollout(model, None, prompts, [1, 2, 3], stop_ids=(99,), pad_id=0)
    with torch.no_grad():
        rows = [prompts.ids_BP[row][prompts.mask_BP[row]] for row in range(len(prompts))]
        q = torch.stack([model.network(ids[None]).logits[0, -1].softmax(-1) for ids in rows])
    b, f = torch.softmax(q.log() / 1.3, -1), torch.randn(q.shape, dtype=torch.float64)
    torch.testing.assert_close((b * (q / b) * f).sum(-1), (q * f).sum(-1))
    weight = (rollout.student_logprobs_BR - rollout.behaviour_logprobs_BR).exp()[:, 0]
    torch.testing.assert_close(weight, (q / b).gather(1, rollout.response_ids_BR[:, :1]).squeeze(1))


class Narrow(Sampler):
    full_support = False


def test_a_sampler_without_full_support_is_warned_of(tmp_path, overrides):
    own = "sampler._target_=tests.integration.test_extend.Narrow"
    run = train(tmp_path, [*overrides, "preflight=true", "regime.max_steps=2", own])
    assert "Narrow does not draw every token" in (tmp_path / "preflight.md").read_text() and run.module.step == 2


# -- figures -----------------------------------------------------------------------------------------------------------

OWN = "examples.extend.words.STUTTER"


def test_a_figure_of_ones_own_is_in_validation_table_screen_and_report(tmp_path, overrides, capsys):
    train(tmp_path / "run", [*overrides, f"callbacks.validation.figures=[{OWN}]"])
    answers = [json.loads(line)["answer"].split() for line in (tmp_path / "run/samples/step_6.jsonl").open()]
    pairs = [list(pairwise(words)) for words in answers]
    by_hand = [100 * sum(a == b for a, b in each) / len(each) if each else 0.0 for each in pairs]
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["val/stutter"] == pytest.approx(sum(by_hand) / len(by_hand)) and "val/teacher_stutter" in figures
    assert "twice" in capsys.readouterr().out
    page = write_report(tmp_path / "run").read_text()
    assert "Validation: stutter" in page


def test_a_figure_of_ones_own_is_in_an_evaluation_and_its_report(tmp_path, world, capsys):
    suite = {**OmegaConf.to_container(OmegaConf.load("conf/suite/quick.yaml")), "figures": [OWN]}
    options = dict(files=[world / "val.jsonl"], seeds=[1, 2], max_new_tokens=6, run_dir=tmp_path / "own")
    results = minillm.evaluate([world / "student"], suite=suite, **options)
    ((model,),) = (each.values() for each in results["answers"]["plain"].values())
    rows = [json.loads(line) for line in (tmp_path / "own" / "answers.jsonl").open()]
    by_hand = [stutter(SimpleNamespace(answer=row["answer"]), ()) for row in rows]
    assert model["figures"]["stutter"]["mean"] == pytest.approx(sum(by_hand) / len(by_hand))
    assert results["figures"]["stutter"]["name"] == "Words said twice, %" and "twice" in capsys.readouterr().out
    page = write_report(tmp_path / "own").read_text()
    assert "Words said twice, %" in page and "stutter" in (tmp_path / "own" / "report" / "table.csv").read_text()


@pytest.mark.parametrize("path", ["examples.extend.words.stutter", "examples.extend.words.NOTHING", "json.loads"])
def test_what_is_no_figure_is_refused(path):
    with pytest.raises(ConfigError, match=f"figures: {path}: wanted the import path of a Figure"):
        figures_at([path])


def test_a_figure_needs_a_name_of_its_own():
    with pytest.raises(ConfigError, match="stutter is the name of another figure"):
        figures_at([OWN, OWN])
