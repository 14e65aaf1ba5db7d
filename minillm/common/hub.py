"""Is the Hugging Face hub within reach?"""

from __future__ import annotations

import functools


@functools.cache
def notice_offline() -> None:
    """Try the hub once, for at most 5 s. If it cannot be reached, this process goes on as with HF_HUB_OFFLINE=1: what
    is in the cache is used, all else fails at once. Otherwise each file costs five retries, 48 s together."""
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:  # of whichever HTTP client the installed version uses
            constants.HF_HUB_OFFLINE = True
