"""Starting one process a device of this machine; imports no torch."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import inf

from minillm.common.child import Children
from minillm.common.errors import Interrupted

STARTED_BY = "MINILLM_LAUNCHER"  # the variable that names to a rank the process that has started it
_GRACE = 3  # seconds that the others have once one has failed; less than `stand_back` waits


def launch(devices: int, overrides: Sequence[str], *, cuda: bool) -> None:
    """Run this command again with the `overrides`, in one process a device of this node, and wait for them. cuda: each
    has a GPU; else they share the cores.

    Raises:
        SystemExit: one has failed (1), or all have saved after a signal (75).
        Interrupted: a signal came before there was anything to save.
    """
    command = [*sys.orig_argv[1:], *overrides]
    variables = {
        "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), STARTED_BY: os.getpid(),
    }  # fmt: skip
    if not cuda:
        cores = len(os.sched_getaffinity(0))
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", max(1, cores // devices))
    codes, patience = set(), inf
    with Children() as children:
        for rank in range(devices):
            own = {name: str(value) for name, value in (variables | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            children.start(str(rank), command, env=os.environ | own)
        while children.running and (ended := children.next_ended(patience)):
            rank, code = ended
            codes.add(code)
            if code == -signal.SIGKILL:
                print(f"rank {rank}: killed from outside (SIGKILL); out of memory?", file=sys.stderr)
            if code not in (0, Interrupted.status):
                patience = _GRACE  # the others would wait for it
        children.send(signal.SIGKILL)
    saved, sent = Interrupted.status, children.signal and -signal.Signals[children.signal]
    if codes == {0}:  # a signal may have come while the student was exported
        return
    if sent and codes and codes <= {0, sent}:
        raise Interrupted(children.signal)
    sys.exit(saved if codes == {saved} or (sent and codes <= {0, saved, sent}) else 1)  # rank 0 has said it


def free_port() -> int:
    """One on which nobody listens, below those that systems give away: before the ranks listen on it, which takes some
    seconds, another process could be given such a one."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
