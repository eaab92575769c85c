"""The files and variables that a run reads, so that `check` knows when an earlier result holds.

python -P -c "from normfold.cli.reads import main; main(PARENT)" COMMAND ...  runs a command that ends with the
process PARENT, and lists them in its JSON, as ``read``.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import site
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Any

_ABOUT = re.compile(r"\.pyc$|\.(dist|egg)-info/")  # of a package
_recorded: set[str] | None = None
_variables: set[str] = set()
_ASKED_BY = ("os", "collections.abc", "_collections_abc")  # for the code that asks
_DEATH = 1  # of prctl: the signal that this process gets when its parent dies
_MEMORY = "/dev/shm/"  # a file system
_NOT = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/", "/usr/lib/", "/lib/")


def main(parent: int) -> None:
    """The command line, with every file that Python code opens recorded."""
    global _recorded
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DEATH, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)
    found = _recorded = set[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            found.add(os.path.abspath(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)
    _watch_safetensors(found)
    _watch_variables()
    from normfold.cli import main as command_line

    command_line()


def _watch_safetensors(found: set[str]) -> None:
    """Record its files: it opens them outside of Python."""
    try:
        import safetensors
    except ImportError:
        return
    opened = safetensors.safe_open

    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        found.add(os.path.abspath(os.fsdecode(filename)))
        return opened(filename, *args, **kwargs)

    vars(safetensors)["safe_open"] = safe_open


def _watch_variables() -> None:
    """Record the environment variables that code asks for which is not of an installed package."""
    kind: Any = type(os.environ)
    get, installed = kind.__getitem__, (*_installed(), "<")

    def watched(self: Any, key: Any) -> Any:  # of `os.environb` too, in bytes
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in _ASKED_BY:
            frame = frame.f_back
        if frame is not None and not frame.f_code.co_filename.startswith(installed):
            _variables.add(os.fsdecode(key))
        return get(self, key)

    kind.__getitem__ = watched


def variables() -> list[str]:
    """Names of the variables that the user's code asked for, sorted."""
    return sorted(_variables)


def listed() -> list[str] | None:
    """Files that were opened or imported and are still there, sorted, less those of installed packages.

    None where nothing is recorded.
    """
    if _recorded is None:
        return None
    modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {*_recorded, *(os.path.abspath(name) for name in modules if name)}
    installed = _installed()
    return sorted(
        path
        for path in paths
        if (path.startswith(_MEMORY) or not path.startswith(installed))
        and not _ABOUT.search(path)
        and os.path.isfile(path)
    )


def _installed() -> tuple[str, ...]:
    """Where files lie that belong to Python, a package or the machine: versions stand for them."""
    found = sysconfig.get_paths()
    places = {found[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    places |= {str(Path(__file__).parents[1])}
    return (*_NOT, *(f"{place.rstrip('/')}/" for place in places if place.count("/") > 1))
