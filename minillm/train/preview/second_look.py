"""What in a run that is about to begin deserves a second look."""

from __future__ import annotations

from transformers import PreTrainedModel

from minillm.data import Corpus, PromptSet, Sources
from minillm.data.prompts import BEYOND, HELD_OUT, remedies
from minillm.models import Pair
from minillm.train.preview.work import Work

_MANY = 0.2  # share of prompts or references from which on their loss is worth a warning


def parameters_of(network: PreTrainedModel) -> tuple[int, int]:
    """Parameters of all, and of those that are trained."""
    return network.num_parameters(), sum(each.numel() for each in network.parameters() if each.requires_grad)


def references_in(prompts: PromptSet) -> int:
    return sum(bool(record.references) for record in prompts.records)


def warnings_of(
    pair: Pair,
    sources: Sources,
    train: PromptSet,
    validation: PromptSet,
    corpus: Corpus | None,
    work: Work,
    monitor: str | None,
) -> tuple[str, ...]:
    """Of models, data and work, see `page_of`."""
    texts = [text for each in (train, validation) if (text := _lost(each))]
    tokens, teacher = pair.vocabulary, pair.teacher and pair.teacher.network
    if sources.template == "chat" and tokens.teacher and not tokens.same_template:
        what = "another chat template" if tokens.teacher.chat_template else "no chat template"
        texts.append(f"The teacher has {what}; prompts are written with the student's, which may be strange to it.")
    if teacher and (ends := _ends(teacher) - _ends(pair.student) - {pair.tokenizer.eos_token_id}):
        names = ", ".join(map(pair.tokenizer.convert_ids_to_tokens, sorted(ends)))
        texts.append(
            f"The teacher also ends an answer with {names}, the student alone does not: a base student of an instruct "
            "teacher may never stop. A supervised start (start.steps, or recipe=start) teaches it."
        )
    if work.sampler and not work.sampler.full_support:
        texts.append(
            f"{type(work.sampler).__name__} does not draw every token that the student can say: importance weights "
            "cannot make up for what is never drawn, so that the gradient is biased."
        )
    if work.learns_references and train.references_cut > _MANY * references_in(train):
        texts.append(
            f"{train.references_cut:,} of {references_in(train):,} training references are cut at "
            "data.max_response_tokens or max_tokens, without an end: the student learns to go on."
        )
    if work.round_size > len(train):
        what, key = ("rounds", "regime.rollouts") if work.sampler else ("optimizer steps", "regime.minibatch_size")
        texts.append(
            f"{len(train):,} training prompts for {what} of {work.round_size:,}: some come several times in each; "
            f"more prompts or a smaller {key}."
        )
    if corpus is not None and len(corpus.blocks_NL) <= work.corpus_rows:
        texts.append(
            f"The corpus has {len(corpus.blocks_NL):,} blocks for optimizer steps of {work.corpus_rows:,}: each reads "
            "all of it; more text (data.corpus_file), or a smaller data.block_size or regulariser.batch_size."
        )
    if teacher and (theirs := teacher.num_parameters()) < (ours := _without_adapters(pair.student)):
        texts.append(
            f"The teacher has {theirs:,} parameters, the student {ours:,}: model.teacher and model.student the wrong "
            "way round?"
        )
    if monitor == "rouge_l" and references_in(validation) < len(validation):
        instead = "Rouge-L is against the teacher's greedy answers" if pair.teacher_here else "there is no Rouge-L"
        texts.append(
            f"callbacks.checkpoints.monitor=rouge_l, and not every validation prompt has a reference: {instead}; name "
            "a data.val_file with them or another monitor."
        )
    return tuple(texts)


def _ends(network: PreTrainedModel) -> set[int]:
    """The tokens that its generation config names."""
    stated = getattr(network.generation_config, "eos_token_id", None)
    return set(stated if isinstance(stated, list) else [stated]) - {None}


def _lost(prompts: PromptSet) -> str | None:
    """Whether many prompts were dropped, not on purpose."""
    dropped = {reason: n for reason, n in prompts.dropped.items() if reason not in (HELD_OUT, BEYOND)}
    lost, wanted = sum(dropped.values()), len(prompts) + sum(dropped.values())
    if lost <= _MANY * wanted:
        return None
    return f"{lost:,} of {wanted:,} prompts are dropped: change {remedies(dropped)}."


def _without_adapters(network: PreTrainedModel) -> int:
    """Where only some parameters are trained, those are adapters."""
    parameters, trained = parameters_of(network)
    return parameters - trained % parameters
