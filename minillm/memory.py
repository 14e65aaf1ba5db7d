"""Let the C allocator keep freed memory, which makes steps on a CPU up to 1.5 times as fast."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """True where it took effect (Linux with glibc), for the rest of the process.

    By default glibc maps and unmaps every large tensor anew, and each fresh page costs a fault: on 512 x 49,152 logits
    the loss took 1.0 s with the default and 0.1 s without (2 cores).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    return all([mallopt(name, value) for name, value in settings])
