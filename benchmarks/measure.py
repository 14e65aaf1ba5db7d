"""Memory above what is there when a measurement begins; needs torch only."""

import ctypes
import gc
import os
import threading
from pathlib import Path

import torch


class Memory:
    """Peak in GB (1e9 bytes) above the beginning: allocated on a GPU; elsewhere resident, sampled every millisecond."""

    def __enter__(self):
        gc.collect()
        # What was freed while the models were built must not be there to be used for nothing.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._began = torch.cuda.memory_allocated()
            return self
        self._began = self._peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        if self.cuda:
            self._peak = torch.cuda.max_memory_allocated()
            return
        self._stop.set()
        self._thread.join()

    @property
    def above_gb(self) -> float:
        return (self._peak - self._began) / 1e9

    def _watch(self):
        while not self._stop.wait(0.001):
            self._peak = max(self._peak, _resident())


class Allocated:
    """Peak in GB of what the C++ allocator has given out since the beginning, by torch's profiler; on a CPU."""

    def __enter__(self):
        gc.collect()
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        events = [each for each in self._profile.profiler.kineto_results.events() if each.name() == "[memory]"]
        live = most = 0
        for each in sorted(events, key=lambda each: each.start_ns()):
            live += each.nbytes()
            most = max(most, live)
        self.above_gb = most / 1e9


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
