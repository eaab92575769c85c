"""Several processes, as torchrun starts them: one process group, and who writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed as dist


def rank() -> int:
    """Of this process, from the group or from torchrun's environment; 0 where there is only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group() -> Iterator[int]:
    """The group that torchrun's environment describes, unless there is one already; yields the rank.

    gloo where the network is on the CPU: graphs are captured there.
    """
    started = dist.is_available() and not dist.is_initialized()
    if not started or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield rank()
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
        dist.barrier()  # nobody leaves while another one still needs its answers
    finally:
        dist.destroy_process_group()
