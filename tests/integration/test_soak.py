"""A long run that is killed again and again ends as one that was not; memory and open files do not grow."""

import random
import signal
import time
from contextlib import suppress

import psutil
import pytest

from tests.commands import grown, start
from tests.integration.test_resume import rows

STEPS, KILLS, SECONDS = 2000, 4, 300  # of training, at most so many kills, at most so long

LONG = [
    f"regime.max_steps={STEPS}", "callbacks.validation.every=500", "callbacks.checkpoints.every=50", "resume=auto",
]  # fmt: skip


@pytest.mark.timeout(3000)
def test_soak(tmp_path, overrides, record_property):
    (tmp_path / "whole").mkdir()
    process = start(tmp_path / "whole", [*overrides, *LONG])
    memory, files = [], []
    while process.poll() is None:
        time.sleep(0.5)
        if grown(tmp_path / "whole" / "runs" / "cut" / "metrics.csv", 20_000):  # beyond the first hundred rounds
            with suppress(psutil.NoSuchProcess):  # it may end now
                watched = psutil.Process(process.pid)
                rss, n_files = watched.memory_info().rss, watched.num_fds()
                if n_files:
                    memory.append(rss)
                    files.append(n_files)
    assert process.wait() == 0, process.stderr
    early, late = (sum(part) / len(part) for part in (memory[: len(memory) // 4], memory[-len(memory) // 4 :]))
    assert len(memory) > 5 and late < 1.05 * early and max(files) - min(files) <= 4

    place, draw, kills, began = tmp_path / "killed", random.Random(11), 0, time.time()
    place.mkdir()
    folder = place / "runs" / "cut"
    while True:
        size = (folder / "metrics.csv").stat().st_size if folder.exists() and grown(folder / "metrics.csv", 0) else 0
        process = start(place, [*overrides, *LONG])
        if kills < KILLS and time.time() - began < SECONDS:
            while process.poll() is None and not grown(folder / "metrics.csv", size + 2000):
                time.sleep(0.01)
            time.sleep(3 * draw.random())
            process.send_signal(signal.SIGKILL)
            kills += 1
        code = process.wait(timeout=600)
        if code == 0:
            break
        assert code == -signal.SIGKILL, process.stderr
    assert kills >= 2
    assert rows(folder) == rows(tmp_path / "whole" / "runs" / "cut")
    weights = "student/model.safetensors"
    assert (folder / weights).read_bytes() == (tmp_path / "whole" / "runs" / "cut" / weights).read_bytes()
    for name, value in {"kills": kills, "early_gb": early / 1e9, "late_gb": late / 1e9, "files": max(files)}.items():
        record_property(name, value)
