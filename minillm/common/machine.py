"""The machine: devices and their precision, memory, seconds by phase, settings of the C allocator and of attention."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.common.lazy import lazy

torch = lazy("torch")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Let the C allocator keep freed memory; True where it took effect (Linux, glibc), for the rest of the process.

    By default glibc maps and unmaps every large tensor anew, and each fresh page costs a fault: on 512 x 49,152 logits
    the loss took 1.0 s with the default and 0.1 s without (2 cores). Torch reads the variable at its first tensor. Its
    tensors then begin at pages, and freed memory serves the next one: at 64 bytes, glibc fits no tensor into the place
    that one of its size has left, and the same loss needed 1.3 GB in place of 0.7.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = sys.platform.startswith("linux") and getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    return bool(mallopt) and all([mallopt(name, value) for name, value in settings])


def tune() -> None:
    """What every process of ours sets: the allocator, and no attention of cuDNN. It makes a plan for every new shape,
    0.9 ms a layer and more on an H200, and here each token and micro-batch has one. Other fused kernels need none."""
    keep_freed_memory()
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_memory(device: torch.device) -> float:
    """Peak of this process so far in GB (1e9 bytes): allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    # On Linux ru_maxrss begins at the peak of the process that started this one. Some sandboxes have no VmHWM.
    if found := status.exists() and re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
        return int(found[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself: older GPUs only emulate it, and CPUs without matrix units are
    about 100 times slower with it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def on_cuda(accelerator: str) -> bool:
    """Whether `trainer.accelerator`, or `device` of evaluate.py, names a GPU."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def choose_precision(precision: str, accelerator: str = "auto") -> str:
    """The trainer's precision: `auto` is bf16-mixed on a GPU that has bfloat16, else 32-true."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bfloat16(torch.device("cuda" if on_cuda(accelerator) else "cpu")) else "32-true"


def usable_memory(device: torch.device) -> float:
    """GB (1e9 bytes) that this process could have: on a GPU what is free or already its own, on a CPU all memory."""
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 1e9
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


class Phases:
    """Seconds of each phase of one round; waits for a GPU only at the ends of a phase."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self.now()
        with torch.profiler.record_function(name):
            yield
        self.seconds[name] += self.now() - began

    def metrics(self) -> dict[str, float]:
        whole = sum(self.seconds.values())
        return {
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
            **{f"time/share_{name}": seconds / whole for name, seconds in self.seconds.items()},
            "memory/peak_gb": peak_memory(self.device),
        }

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
