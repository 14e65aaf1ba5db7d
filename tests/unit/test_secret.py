"""Secrets are found in a config by the environment and by their form, named by key, and never shown."""

import pytest

from minillm.common.errors import ConfigError
from minillm.common.secret import redacted, secret_problems
from tests.conf.test_compose import settings

TOKEN = "hf_" + "aB3" * 10
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD", "JUDGE_SECRET", "SIGNING_KEY", "GH_PAT", "DB_PWD"]
)
def test_the_value_of_a_variable_is_found_anywhere(monkeypatch, name):
    monkeypatch.setenv(name, "value-of-it")
    plain = {"a": {"b": ["x", "it is value-of-it."]}, "c": 1, "d": None}
    (problem,) = secret_problems(plain)
    assert problem.startswith(f"a.b[1]: holds the value of {name}") and "value-of-it" not in problem
    (problem,) = secret_problems({}, "python train.py data.system=value-of-it")
    assert problem.startswith("the command line: ")


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        "sk-" + "a1B2" * 8,
        "ghp_" + "x" * 36,
        "AKIA" + "A1" * 8,
        "0123456789" * 4,
        "http://me:pass@host/x",
        "AIza" + "Sy" * 17,
        "xoxb-123456789012-abc",
        "glpat-" + "x1" * 10,
        "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4",
        "https://" + "t0k3n" * 5 + "@host/x",
    ],
)
def test_the_form_of_a_token_is_found(text):
    assert len(secret_problems({"data": {"system": f"key {text}"}})) == 1


def test_what_a_config_usually_holds_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_TOKEN", "data")
    monkeypatch.setenv("CLOUD_CREDENTIALS", str(tmp_path))  # a directory is no secret
    texts = [
        "meta-llama/Llama-3.1-8B@0e9e39f",
        f"gpt2@{COMMIT}",
        f"/home/me/.cache/huggingface/hub/models--gpt2/snapshots/{COMMIT}",
        f"~/hub/models--gpt2/snapshots/{COMMIT}/model.safetensors",
        "https://host:8000/v1",
        "runs/a/student",
        f"{tmp_path}/answers.jsonl",
        "hf_home",
        "sk-learn",
        "x" * 60,
    ]
    assert not secret_problems({"data": texts})


def test_a_message_does_not_repeat_one(monkeypatch):
    monkeypatch.setenv("GH_PAT", "value-of-it")
    assert redacted(f"data.{TOKEN}: no such key; value-of-it") == "data.[secret]: no such key; [GH_PAT]"


def test_a_run_with_one_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as caught:
        settings(f"data.system={TOKEN}", "seed=x", "data.template=paper")
    assert "data.system: holds what looks like a token or password" in str(caught.value) and TOKEN not in str(
        caught.value
    )
