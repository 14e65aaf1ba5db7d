"""One-line mistakes in the core, each of which `make test` must find.

python -m tests.mutations            # makes each in a copy of the tree and runs the tests that should turn red
python -m tests.mutations sign gamma # only these
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    file: str  # in minillm/
    right: str
    wrong: str
    tests: str  # in tests/, among those of `make test`


MUTATIONS = {
    # a teacher with tokens of its own
    "any stop token": Mutation(
        "objectives/linear_loss.py", "logq_NV[:, list(alike)]", "logq_NV[:, alike[:1]]", "unit/test_spans.py"),
    "settled units": Mutation(
        "rollout/spans.py", "text[: each.end() + 1]", "text[: each.start()]", "unit/test_spans.py"),
    # the mathematics
    "sign": Mutation(
        "losses.py", "(teacher_logprobs - student_logprobs).detach()", "(student_logprobs - teacher_logprobs).detach()",
        "unit/test_losses.py"),
    "gamma": Mutation("losses.py", "+ gamma * running", "+ running", "unit/test_losses.py"),
    "own reward": Mutation(
        "losses.py", "following if skip_current else running", "running if skip_current else following",
        "unit/test_losses.py"),
    "length": Mutation(
        "losses.py", "- (mask.long() if skip_current else 0)", "- 0", "unit/test_losses.py"),
    "clipping": Mutation("losses.py", "torch.minimum(", "torch.maximum(", "unit/test_losses.py"),
    "mixture": Mutation(
        "losses.py", "teacher_logprobs + math.log(alpha), student_logprobs + math.log1p(-alpha)",
        "teacher_logprobs + math.log1p(-alpha), student_logprobs + math.log(alpha)", "unit/test_losses.py"),
    "prefix": Mutation(
        "losses.py", "return single, reward", "return reward, reward", "unit/test_losses.py"),
    "whitening": Mutation("losses.py", "counted.var(correction=0)", "counted.var()", "unit/test_losses.py"),
    "direction of the KL": Mutation(
        "divergences.py", "_expectation(student_logprobs.exp(), student_logprobs - teacher_logprobs",
        "_expectation(teacher_logprobs.exp(), student_logprobs - teacher_logprobs", "unit/test_losses.py"),
    # the objective
    "weights": Mutation(
        "objectives/minillm.py", "(student - rollout.behaviour_logprobs_BR).exp()",
        "(student - rollout.student_logprobs_BR).exp()", "unit/test_oracle.py"),
    "single-step weight": Mutation(
        "objectives/minillm.py", 'constants["single_weights"] * divergences', "divergences", "unit/test_oracle.py"),
    "corpus coefficient": Mutation(
        "objectives/cross_entropy.py", "self.coefficient * values_N", "values_N", "unit/test_golden.py"),
    "ratio of KD": Mutation(
        "objectives/cross_entropy.py", "(1 - self.kd_ratio) * hard_N", "hard_N", "integration/test_supervised.py"),
    "gradient of a temperature": Mutation(
        "models/head.py", "return grad_NV if factor == 1 else grad_NV.mul_(factor)", "return grad_NV",
        "unit/test_linear_loss.py"),
    "gradient of the bias": Mutation(
        "objectives/chunked.py", "grad_V += grad.sum(0)", "grad_V += grad.mean(0)", "unit/test_linear_loss.py"),
    # answers
    "uniforms": Mutation(
        "rollout/decoding.py", "uniforms_NR[places.rows_B, places.steps_B]", "uniforms_NR[places.rows_B, 0]",
        "unit/test_decoding.py"),
    "stop token": Mutation(
        "rollout/decoding.py", "answered_N[places.rows_B] += places.alive_B",
        "answered_N[places.rows_B] += places.alive_B & ~torch.isin(ids_B, stops)", "unit/test_decoding.py"),
    "positions": Mutation(
        "models/language_model.py", "mask, cache.end - starts_B, cache)", "mask, cache.end + 0 * starts_B, cache)",
        "unit/test_decoding.py"),
    "share of the teacher": Mutation(
        "rollout/decoding.py", "shares = [1 - alpha, alpha]", "shares = [alpha, 1 - alpha]", "unit/test_decoding.py"),
    "predicting state": Mutation(
        "rollout/micro_batch.py", "at * width + prompt[row] - 1 + place", "at * width + prompt[row] + place",
        "unit/test_micro_batch.py"),
    # training
    "denominator": Mutation(
        "objectives/minillm.py", "else mask_BR.sum()", "else torch.tensor(len(mask_BR))", "unit/test_on_policy.py"),
    "warm-up": Mutation("train/optim.py", "(step + 1) / self.warmup_steps", "step / self.warmup_steps",
        "unit/test_optim.py"),
    "decay of norms": Mutation("train/optim.py", "if decayed else 0.0", "if True else 0.0", "unit/test_optim.py"),
    # answers and teachers of other kinds
    "teacher's prompt": Mutation(
        "rollout/micro_batch.py", "return self.for_teacher.side(teacher, temperature)",
        "return self.side(teacher, temperature)", "unit/test_teacher_prompts.py"),
    "given answers": Mutation(
        "common/types.py", "mask_BR & ~self.given_B.unsqueeze(-1)", "mask_BR", "unit/test_stored_answers.py"),
    "leave one out": Mutation(
        "train/reward.py", "others_PA = (rewards_PA.sum(-1, keepdim=True) - rewards_PA) / (answers_per_prompt - 1)",
        "others_PA = rewards_PA.mean(-1, keepdim=True)", "unit/test_reward.py"),
    "rows of several servers": Mutation(
        "models/served.py", "hidden_NH[request_N.argsort(stable=True)] = found_NH", "hidden_NH[:] = found_NH",
        "unit/test_served.py"),
    "a teacher in each micro-batch": Mutation(
        "rollout/micro_batch.py", "or numbers[groups[-1][0]] != numbers[row]", "or False", "unit/test_teachers.py"),
    "rows of several teachers": Mutation(
        "rollout/decoding.py", "torch.tensor(order).argsort()", "torch.tensor(order)", "unit/test_teachers.py"),
    "order": Mutation("data/order.py", '"order", epoch)', '"order", 0)', "unit/test_order.py"),
}  # fmt: skip


def found_by(mutation: Mutation, folder: Path) -> str | None:
    """The first test that fails with the mistake in a copy of the tree, None if all pass."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", "outputs"))
    file = tree / "minillm" / mutation.file
    file.write_text(file.read_text().replace(mutation.right, mutation.wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", f"tests/{mutation.tests}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if done.returncode == 1 and failed else None


def main(names: list[str]) -> int:
    missed = 0
    for name in names or MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            found = found_by(MUTATIONS[name], Path(folder))
        missed += found is None
        print(f"{name}: {found or 'NOT FOUND'}", flush=True)
    print(f"{missed} of {len(names or MUTATIONS)} were not found")
    return missed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
