"""python -m benchmarks.growth: time a token with longer answers, memory with a larger vocabulary. 4 minutes."""

from benchmarks.common import in_new_process, median, report, row, seconds
from benchmarks.measure import Memory
from benchmarks.update import make_step

TOKENS = 4096  # of answers in a step, however long each is


def time_per_token(length: int) -> dict:
    from minillm.common.machine import tune

    tune()
    step, _ = make_step("student", TOKENS // length, 32, length)
    return {"seconds": seconds(step)}


def memory(vocabulary: int) -> dict:
    """Of three optimizer steps above the loaded models, and of that what the head itself needs."""
    from minillm.common.machine import tune

    tune()
    step, network = make_step("student", 8, 32, 128, vocabulary)
    head = network.get_output_embeddings().weight
    with Memory() as measured:
        for _ in range(3):
            step()
    # Its gradient and two moments; the gradient of a micro-batch before it is added counts as the rest.
    own = 3 * head.numel() * head.element_size() / 1e9
    return {"memory_gb": measured.above_gb, "head_gb": own, "rest_gb": measured.above_gb - own}


def main() -> None:
    times = {length: in_new_process(time_per_token, length) for length in (128, 512, 2048)}
    sizes = (32_768, 65_536, 131_072, 262_144)
    runs = {vocabulary: [in_new_process(memory, vocabulary) for _ in range(3)] for vocabulary in sizes}
    short, long = (1e6 * median(times[length]["seconds"]) / TOKENS for length in (128, 2048))
    rest = {vocabulary: median([each["rest_gb"] for each in runs[vocabulary]]) for vocabulary in sizes}
    small, large = rest[32_768], rest[262_144]
    rows = [
        row("time a token, 2,048 : 128 tokens", long, short, "us", long / short, 1.5, at_most=True),
        row("memory but for the head, 256k : 32k", large, small, "GB", large / small, 1.1, at_most=True),
    ]
    report("growth", "its own smaller case", rows, {"times": times, "memories": runs})


if __name__ == "__main__":
    main()
