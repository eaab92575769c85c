"""Loaders of the user's that would start processes: a command reads in its own.

A command has given up opening sockets, by which workers hand tensors over, and a worker would wait for ever; and
`normfold check` knows only of files that are read in the process of its run.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch.utils.data import DataLoader

from normfold.job import confinement

_OF_WORKERS = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout")


def read_here() -> None:
    """From now on, a DataLoader that is made in a process of the command line starts no worker."""
    kind: Any = DataLoader
    if not confinement.is_command() or hasattr(kind.__init__, "__wrapped__"):
        return
    make = kind.__init__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        for name in ("num_workers", *_OF_WORKERS) if confinement.is_command() else ():
            bound.arguments.pop(name, None)
        make(*bound.args, **bound.kwargs)

    kind.__init__ = init
