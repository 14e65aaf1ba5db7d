"""Zero-shot choice: what a model says about each label word as the answer to a prompt.

Axes: N prompts, K label words, B rows of a micro-batch, R tokens of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.common.errors import ConfigError, DataError
from minillm.common.types import Rollout
from minillm.data import PromptSet
from minillm.data.records import Dropped
from minillm.data.text import PlainText
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import LinearLoss
from minillm.rollout.micro_batch import micro_batches


def word_tokens(words: Sequence[str], tokenizer: PreTrainedTokenizerBase, n_vocab: int) -> list[tuple[int, ...]]:
    """The tokens of each label word, as the data's answers are tokenised: on their own, right after the prompt.

    Raises:
        ConfigError: every word that the tokenizer does not know or that lies outside the shared vocabulary, and pairs
            where one begins with all the other's tokens, so that it could never be the more likely.
    """
    tokens, problems = PlainText(tokenizer).many(words), []
    for word, ids in zip(words, tokens, strict=True):
        if isinstance(ids, Dropped):
            raise ConfigError(f"words: {word!r}: {ids}; choose another word")
        if not ids:
            problems.append(f"words: {word!r} has no tokens; choose another word")
        elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            problems.append(f"words: {word!r} is unknown to the tokenizer ({tokenizer.unk_token}); choose another word")
        elif max(ids) >= n_vocab:
            problems.append(f"words: {word!r} is outside the {n_vocab} shared tokens ({max(ids)}); choose another word")
    for (one, ids), (other, longer) in permutations(enumerate(tokens), 2):
        if ids and longer[: len(ids)] == ids and (len(ids) < len(longer) or one < other):
            problems.append(
                f"words: the tokens of {words[other]!r} begin with those of {words[one]!r}, which is always at least "
                "as likely; choose words that begin differently"
            )
    if problems:
        raise ConfigError(problems)
    return list(map(tuple, tokens))


def choice_labels(prompts: PromptSet, words: Sequence[str]) -> Tensor:
    """[N] int64: which word is each prompt's reference (see `data.read_choices`).

    Raises:
        DataError: a prompt whose reference is none of them.
    """
    number = {word: label for label, word in enumerate(words)}
    for record in prompts.records:
        if not record.references or record.references[0] not in number:
            raise DataError(f"{record.id}: its reference {record.references[:1]} is none of the words {list(words)}")
    return torch.tensor([number[record.references[0]] for record in prompts.records])


@torch.no_grad()
def label_logprobs(
    model: LanguageModel,
    prompts: PromptSet,
    words: Sequence[tuple[int, ...]],
    *,
    max_tokens: int = 2048,
) -> Tensor:
    """[N, K] float64: log-probability of each word after each prompt, summed over the word's tokens; no end token.

    `words`: see `word_tokens`. `max_tokens` go through the model at a time.
    """
    sums_NK = torch.zeros(len(prompts), len(words), dtype=torch.float64)
    # The last token of a word is nobody's input: words that differ there alone need one pass together.
    alike: dict[tuple[int, ...], list[int]] = {}
    for word, ids in enumerate(words):
        alike.setdefault(ids[:-1], []).append(word)
    batch = prompts.batch(range(len(prompts))).to(model.device)
    for members in alike.values():
        ids_KR = torch.tensor([words[word] for word in members], device=model.device)
        n_tokens = ids_KR.shape[1]
        mask_NR = torch.ones(len(prompts), n_tokens, dtype=torch.bool, device=model.device)
        rollout = Rollout(batch.ids_BP, batch.mask_BP, ids_KR[:1].expand(len(prompts), -1), mask_NR)
        for micro in micro_batches(rollout, max_tokens):
            side, row_N = micro.side(model), micro.token_N // n_tokens
            for word, ids_R in zip(members, ids_KR, strict=True):
                logprobs_N = LinearLoss().logprobs(side, micro.take(ids_R.expand(len(prompts), -1)))
                sums_NK[:, word].index_add_(0, row_N.cpu(), logprobs_N.double().cpu())
    return sums_NK
