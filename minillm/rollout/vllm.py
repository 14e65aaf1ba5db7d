"""The sampler of answers from a vLLM server, which gets the student's weights before each rollout.

Axes: B rows, R response positions.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minillm.common.errors import ModelError, check
from minillm.common.files import whole_directory
from minillm.common.lazy import lazy
from minillm.rollout.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.common.types import Rollout
    from minillm.models import LanguageModel, Pair
    from minillm.models.vllm import VllmServer

torch = lazy("torch")
_MAX_TOKENS = 2048  # through the student at a time when answers are scored


@dataclass(frozen=True)
class VllmSampler(Sampler):
    """`Sampler` of the student alone, on a vLLM server at `url` that was started with the student's directory. Before
    each rollout the weights are written into `directory`, which the server must see, and the server reloads them.

    The behaviour log-probs are the server's. Importance weights q / b are at most `truncate`. The server is refused
    where its log-probs and those of a forward pass here differ by more than `tolerance` nats on average. `batch_size`
    rows are asked for at a time. `patience`, `timeout`: see `Server`.
    """

    alpha: float = 0.0
    url: str = "http://127.0.0.1:8000"
    directory: str = "vllm"
    truncate: float = 2.0
    tolerance: float = 0.05
    patience: float = 30.0
    timeout: float = 300.0

    one_process: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.alpha == 0, f"alpha={self.alpha}: a server draws from the student alone; wanted 0"),
            (re.fullmatch(r"https?://[^/\s]+/?", self.url), f"url={self.url!r}: wanted http://HOST:PORT of vLLM"),
            (self.truncate >= 1, f"truncate={self.truncate}: wanted a largest importance weight, 1 or more"),
            (self.tolerance > 0, f"tolerance={self.tolerance}: wanted nats above 0"),
            (self.patience >= 0 < self.timeout, f"patience={self.patience}, timeout={self.timeout}: wanted seconds"),
        )

    @cached_property
    def _server(self) -> VllmServer:
        from minillm.models.vllm import VllmServer

        return VllmServer(self.url, self.patience, self.timeout, "sampler.url")

    def begin(self, pair: Pair) -> None:
        if pair.n_vocab < (n_rows := len(pair.student.get_output_embeddings().weight)):
            used = f"{n_rows} tokens, of which this pair has {pair.n_vocab}"
            raise ModelError(f"sampler.url: the server draws from {used}; wanted sampler=student")
        self._server.post("/reset_prefix_cache")

    def rollout(self, student, teacher, prompts, seeds, *, stop_ids, pad_id, interrupt=None, **_) -> Rollout:
        """Answers for all prompts, without the teacher's log-probs. Raises: see `Server.ask`; ModelError: the server's
        log-probs are not the student's."""
        from minillm.data.prompts import pad
        from minillm.objectives.linear_loss import LinearLoss
        from minillm.rollout.score import answer_logprobs

        self.hand_over(student)
        ids_BP, lengths = prompts.flush_left()
        rows = [row[:length] for row, length in zip(ids_BP.tolist(), lengths, strict=True)]
        how = dict(max_tokens=self.max_new_tokens, temperature=self.temperature, logprobs=0, return_token_ids=True)
        how |= dict(stop_token_ids=list(stop_ids), ignore_eos=True)  # an end of answers only where it is one here

        def ask(row: list[int], seed: int) -> dict[str, Any]:
            if interrupt is not None:
                interrupt()
            return self._server.complete([row], seed=seed, **how)[0]

        with ThreadPoolExecutor(min(self.batch_size, len(rows))) as threads:
            found = list(threads.map(ask, rows, seeds))
        padded = pad([each["token_ids"] for each in found], pad_id, left=False)
        ids_BR, mask_BR = (each.to(ids_BP.device) for each in padded)
        near_BR = torch.zeros_like(mask_BR)
        rollout = prompts.answered(ids_BR, mask_BR, near_edge_BR=near_BR, temperature=self.temperature)
        own_BR, _ = answer_logprobs(student, rollout, LinearLoss(), max_tokens=_MAX_TOKENS)
        server_BR = torch.zeros_like(own_BR)
        server_BR[mask_BR] = own_BR.new_tensor([each for one in found for each in one["logprobs"]["token_logprobs"]])
        self._compare((own_BR - server_BR)[mask_BR])
        behaviour_BR = server_BR.maximum(own_BR - math.log(self.truncate))  # min(q / b, truncate), by a larger b
        return replace(rollout, student_logprobs_BR=own_BR, behaviour_logprobs_BR=behaviour_BR).trimmed()

    def hand_over(self, student: LanguageModel) -> None:
        """Write the student's weights, adapters merged, and let the server reload them and forget its prefixes."""
        from minillm.models.adapter import merged_weights

        network, place = student.network, Path(self.directory).expanduser().absolute()
        with whole_directory(place) as folder:
            network.save_pretrained(folder, state_dict=merged_weights(network))
        self._server.post("/collective_rpc", method="reload_weights", kwargs={"weights_path": str(place)})
        if not self._server.post("/reset_prefix_cache")["success"]:
            raise ModelError(f"sampler.url={self.url}: keeps its prefix cache; wanted a server without other requests")

    def _compare(self, gap_N: Tensor) -> None:
        """Note how far the server is from the student. Raises ModelError: too far."""
        mean, largest = gap_N.abs().mean().item(), gap_N.abs().max().item()
        if not mean <= self.tolerance:
            raise ModelError(
                f"sampler.url={self.url}: its log-probs differ from the student's by {mean:.2g} nats on average and "
                f"{largest:.2g} at most on {len(gap_N)} tokens; wanted sampler.tolerance={self.tolerance}. Half types "
                "round; a temperature other than 1 needs --logprobs-mode processed_logprobs"
            )
        name, cut = "rollout/log_ratio_server", (gap_N > math.log(self.truncate)).float().mean().item()
        found = {name: gap_N.mean().item(), f"{name}_max": largest, "rollout/weights_cut": cut}
        object.__setattr__(self, "figures", found)
