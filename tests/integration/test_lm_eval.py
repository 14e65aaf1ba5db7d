"""An exported student in lm-evaluation-harness, on a task of its own, by the command of docs/evaluation.md."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.export import export
from tests.integration.test_resume import train
from tests.tiny import WORDS

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.skipif(
        find_spec("lm_eval") is None, reason="no lm-evaluation-harness: pip install -r requirements-lm-eval.txt"
    ),
]
TASK = """\
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@torch.no_grad()
def accuracy(student, rows) -> float:
    """By hand: the choice whose tokens have the largest log-probability behind the question."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), AutoTokenizer.from_pretrained(student)

    def score(question: str, choice: str) -> float:
        prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in (question, choice))
        logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return sum(logprobs[len(prompt) + n - 1, token].item() for n, token in enumerate(answer))

    right = 0
    for row in rows:
        scores = [score(row["question"], choice) for choice in row["choices"]]
        right += scores.index(max(scores)) == row["answer"]
    return right / len(rows)


def test_lm_eval_measures_an_exported_student(tmp_path, overrides):
    train(tmp_path / "run", overrides)
    export(tmp_path / "run", tmp_path / "exported")
    rows = [
        {"question": f"{WORDS[n]} {WORDS[n + 2]}", "choices": ["red", "blue cat", "dog"], "answer": n % 3}
        for n in range(18)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "words.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    options = ["--tasks", "words", "--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--batch_size", "4"]
    command = ["--model", "hf", "--model_args", f"pretrained={tmp_path}/exported,dtype=float32", *options]
    own = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "lm_eval", *command, "--output_path", str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | own)
    (found,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(found.read_text())["results"]["words"]["acc,none"]
    assert measured == pytest.approx(accuracy(tmp_path / "exported", rows)) and 0 < measured < 1
