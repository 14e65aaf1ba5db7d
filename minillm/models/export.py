"""A trained student as a Hugging Face directory: weights, tokenizer, generation config, model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from minillm.common.files import whole_directory
from minillm.common.numbers import count
from minillm.models.adapter import merged_weights
from minillm.models.loaded import Pair

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [minillm, distillation]
---

# {name}

{made_by}

| | |
| --- | --- |
{facts}

Made with: `{command}`

Sampling at temperature 1 without top-p or top-k is what the student was trained for and measured with.
"""


def export_student(
    pair: Pair,
    directory: Path,
    *,
    card: Mapping[str, str],
    figures: Mapping[str, float],
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write `directory` anew, whole or not at all, adapters merged. `card` needs name, made_by and command; `figures`
    are of the very weights that are exported. `state`: the weights, where the student holds parts of them only."""
    pair.student.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(pair.stop_ids),
        pad_token_id=replace(pair, teacher_tokenizer=None).pad_id,  # that of the student alone
        bos_token_id=pair.tokenizer.bos_token_id,
    )
    shown = {"weights": card.get("weights", "last")} | {name: count(value, 4) for name, value in figures.items()}
    facts = "\n".join(f"| {key} | {value} |" for key, value in shown.items())
    text = _CARD.format(facts=facts, **{key: card[key] for key in ("name", "made_by", "command")})
    with whole_directory(Path(directory)) as folder:
        pair.student.save_pretrained(folder, state_dict=merged_weights(pair.student, state))
        pair.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")
