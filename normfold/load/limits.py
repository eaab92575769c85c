"""Memory and processor time for reading a file: enough for any model of its size, and not for ever.

A file of 200 bytes can ask for all memory, or for a hash that never ends. The limits hold in a confined process:
the caller's own process is not ours to limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normfold.job import confinement

SECONDS = 300  # of processor time, with the import of the model libraries
BYTES_PER_SECOND = 2**20  # slower is no reading
MEMORY = 4 * 2**30  # beside four times the size of the file
_COPIES = 4


@contextmanager
def limited(path: Path) -> Iterator[None]:
    """Limits while a file or a folder is read; beyond them allocations fail, or the process gets SIGXCPU."""
    if not confinement.state().held:
        yield
        return
    import resource  # not on every system, and confinement is on Linux only

    size = _size(path)
    wanted = {
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + SECONDS + size // BYTES_PER_SECOND,
        resource.RLIMIT_DATA: _private_memory() + MEMORY + _COPIES * size,
    }
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    try:
        for kind, soft in wanted.items():
            hard = before[kind][1]
            least = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(kind, (least, hard))
        yield
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _private_memory() -> int:
    """What counts against RLIMIT_DATA now, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
