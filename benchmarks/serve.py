"""python -m benchmarks.serve: a teacher in a process of its own against one in process. 2 minutes on 2 cores.

The teacher has 50 M parameters. A request is a micro-batch of 8 rows of 32 prompt and 64 answered tokens; figures are
for an answered token. Both compute on this machine, with one thread: the difference is what sending costs.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.common import REPETITIONS, WARM_UP, in_new_process, matrix_peak, median, report, row
from benchmarks.models import make_model, make_prompts
from minillm.common.machine import tune
from minillm.models import LanguageModel
from minillm.models.served import Server, connect

ROWS, PROMPT, TOKENS = 8, 32, 64


def _request() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and the places of the states that predict the answers' tokens."""
    ids_BS = make_prompts(ROWS, PROMPT + TOKENS - 1)
    first = torch.arange(ROWS).unsqueeze(-1) * ids_BS.shape[1] + PROMPT - 1
    return ids_BS, (first + torch.arange(TOKENS)).flatten()


def measure(url: str) -> dict:
    """Seconds of both, one after the other in turn; bytes of a request, of its answer, and of what is sent once."""
    tune()
    sent, received, real = [], [], Server.ask

    def ask(server, path, body=None):
        answer = real(server, path, body)
        sent.append(len(body or b""))
        received.append(len(answer))
        return answer

    Server.ask = ask
    served, _ = connect([url], 30.0, 300.0)
    once, request = sum(received), _request()
    here, times = LanguageModel(make_model("teacher")).frozen(), {"served": [], "in process": []}
    for number in range(WARM_UP + 3 * REPETITIONS):
        for name, model in (("served", served), ("in process", here)):
            began = time.perf_counter()
            with torch.no_grad():
                model.states(*request)
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - began)
    bytes_of = {"request": sent[-1], "answer": received[-1], "once": once}
    return {"seconds": times, "bytes": bytes_of, "peak": matrix_peak()["peak"]}


def main() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of both: beside other work two threads mostly wait for one another
    with tempfile.TemporaryDirectory() as folder:
        make_model("teacher").save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
        command = [sys.executable, "-m", "minillm.serve", f"teacher={folder}", "port=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            line = next(each for each in server.stdout if "Serving" in each)
            found = in_new_process(measure, re.search(r"http://\S+", line)[0])
            server.terminate()
    n = ROWS * TOKENS
    served, here = (1e3 * median(times) / n for times in found["seconds"].values())
    rows = [row("a state, served and in process", served, here, "ms/token", served / here, 1.25, at_most=True)]
    report("serve", "a teacher in process", rows, found)
    sent, received, once = found["bytes"].values()
    each = f"{(sent + received) / n:.0f} bytes a token, {received / n:.0f} of them hidden states"
    print(f"{each}; {once / 1e6:.1f} MB once; square products {found['peak'] / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
