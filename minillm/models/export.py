"""A trained student as a Hugging Face directory: weights, tokenizer, generation config, model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from minillm.common.console import progress
from minillm.common.files import whole_directory
from minillm.models.adapter import merged_weights
from minillm.models.loaded import Pair


def export_student(pair: Pair, directory: Path, *, card: str, state: dict[str, Tensor] | None = None) -> None:
    """Write `directory` anew, whole or not at all, adapters merged. `card`: the text of its README.md; `state`: the
    weights, where the student holds parts of them only."""
    pair.student.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(pair.stop_ids),
        pad_token_id=replace(pair, teacher_tokenizer=None).pad_id,  # that of the student alone
        bos_token_id=pair.tokenizer.bos_token_id,
    )
    with progress(f"Writing {directory}"), whole_directory(Path(directory)) as folder:
        pair.student.save_pretrained(folder, state_dict=merged_weights(pair.student, state))
        pair.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
