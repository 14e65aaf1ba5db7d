"""No n-gram twice: tokens that would complete one that prompt and answer already hold are not drawn.

Axes: B rows being decoded, N all prompts, P prompt positions, S positions of prompt and answer, W windows of n tokens,
V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from minillm.common.errors import check


class Repeats:
    """As transformers' NoRepeatNGramLogitsProcessor, but padding is in no n-gram and the host never waits.

    ids_NP: prompts that begin at column 0, `lengths` their tokens. A size of 0 does nothing.
    """

    def __init__(self, size: int, ids_NP: Tensor, lengths: list[int], max_new_tokens: int):
        check((size >= 0, f"no_repeat_ngram_size={size}: wanted a number of tokens, or 0 for no limit"))
        self.size = size if size < ids_NP.shape[1] + max_new_tokens else 0  # no room for two of a longer one
        if self.size:
            self.ids_NS = pad(ids_NP, (0, max_new_tokens))
            self.ends_N = torch.tensor(lengths, device=ids_NP.device)

    def ban(self, logits_VB: Tensor, rows_B: Tensor) -> Tensor:
        """-inf where a token would complete an n-gram for the second time; of a row for which that is every token, the
        logits as they are."""
        if not self.size:
            return logits_VB
        n, n_vocab, device = self.size, len(logits_VB), logits_VB.device
        ids_BS, ends_B1 = self.ids_NS[rows_B], self.ends_N[rows_B].unsqueeze(-1)
        windows_BWn = ids_BS.unfold(1, n, 1)
        complete_BW = torch.arange(windows_BWn.shape[1], device=device) + n <= ends_B1
        suffix_at = (ends_B1 + torch.arange(1 - n, 0, device=device)).clamp(min=0)  # clamped: no window is complete
        same_BW = (windows_BWn[..., :-1] == ids_BS.gather(1, suffix_at).unsqueeze(1)).all(-1)
        # What is not banned goes to a row beyond the vocabulary, and so do ids that the head does not give.
        last_BW = torch.where(same_BW & complete_BW, windows_BWn[..., -1].clamp(max=n_vocab), n_vocab)
        banned_VB = torch.zeros(n_vocab + 1, len(rows_B), dtype=torch.bool, device=device)
        banned_VB = banned_VB.scatter_(0, last_BW.T, True)[:-1]
        return logits_VB.masked_fill(banned_VB & ~banned_VB.all(0), -torch.inf)

    def note(self, rows_B: Tensor, ids_B: Tensor) -> None:
        """Note each row's next token."""
        if self.size:
            self.ids_NS[rows_B, self.ends_N[rows_B]] = ids_B
            self.ends_N[rows_B] += 1
