"""Which families of transformers can be decoded and trained here: `python -m benchmarks.families` writes
docs/families.md, from a tiny random model of each."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minillm.common.errors import ModelError, first_line
from minillm.common.types import PromptBatch
from minillm.data.prompts import pad
from minillm.models import LanguageModel, keep_layers
from minillm.models.families import unsupported
from minillm.rollout.consistency import check_consistency
from tests.families import MORE, ROWS, SIZES, WINDOW, family_config, family_model

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
PROMPTS = [[7, 9, 12], [5, 10, 8, 11, 30, 6, 10, 3, 4, 20], [3], list(range(2, 2 + 3 * WINDOW))]
_HEAD = """\
# Families of models

Made by `python -m benchmarks.families` with transformers {transformers} and torch {torch}, float32 on a CPU.

A tiny random model of each family answers prompts of unequal length, one of them beyond its sliding
window. The largest log-ratio is that between decoding and a training pass over the same tokens, in
nats. The last column says whether a student can be made of the teacher's layers. The page before
the first step makes the same check with your own models: a family that is not here is refused there
if it does not work.

| family | attention | largest log-ratio | student of its layers |
| --- | --- | --- | --- |
{works}

## Refused

| family | why |
| --- | --- |
{refused}
"""


def works(family: str) -> str:
    """A row of the first table."""
    network = family_model(family)
    ids, mask = pad(PROMPTS, 0, left=True)
    LanguageModel(network).verify()
    found = check_consistency(
        LanguageModel(network),
        PromptBatch(ids, mask, torch.arange(len(PROMPTS))),
        seeds=list(range(len(PROMPTS))),
        stop_ids=(ROWS + 1,),
        pad_id=0,
        max_new_tokens=12,
        max_tokens=64,
    )
    try:
        keep_layers(network, [0])
        pruned = "yes"
    except ModelError:
        pruned = "no"
    return f"| {family} | {network.config._attn_implementation} | {found.largest:.0e} | {pruned} |"


def refused() -> list[str]:
    """Rows of the second table: every family of transformers that is refused by its config."""
    rows = []
    for family in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            why = unsupported(AutoConfig.for_model(family))
        except Exception as error:  # a config without defaults; nothing is known of it
            print(f"{family}: {first_line(error)}")
            continue
        if why:
            rows.append(f"| {family} | {why.partition('; ')[0].removeprefix(f'{family} ')} |")
    known = {row.split("|")[1].strip() for row in rows}
    for family in ("lfm2", "t5"):  # by settings that are not the default, or of no causal language model
        if family not in known:
            why = unsupported(family_config(family)) or ""
            rows.append(f"| {family} | {why.partition('; ')[0].removeprefix(f'{family} ')} |")
    return sorted(rows)


def main() -> None:
    transformers.logging.set_verbosity_error()
    table = "\n".join(works(family) for family in sorted(SIZES | MORE))
    text = _HEAD.format(
        transformers=transformers.__version__, torch=torch.__version__.partition("+")[0], works=table,
        refused="\n".join(refused()),
    )  # fmt: skip
    PAGE.write_text(text, encoding="utf-8")
    print(f"Wrote {PAGE}")


if __name__ == "__main__":
    main()
