"""A command that opens untrusted files works in a child process, which gives up what it does not need.

The parent opens none of them. It makes the output folder and a temporary one, waits, passes signals on, clears up,
and says in words what a child that was killed cannot say.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from normfold.cli.ending import Ended
from normfold.errors import InternalError, LoadError, NormfoldError
from normfold.job import confinement

_PREFIX = "normfold-"
_OWN = re.compile(rf"{_PREFIX}(\d+)-\w+")
_TRACEBACK = ".traceback.txt"
_LONGEST = 1_000_000  # bytes of a traceback
# of prctl: the signal that a child gets when its parent dies, and who gets the children of its children
_DEATH, _SUBREAPER = 1, 36
_FROM_USER = 0  # si_code of `kill`; a terminal sends to every process of the group itself
_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_STAGE_BYTES = 200

_stage: mmap.mmap | None = None
_kept = Path(tempfile.gettempdir())


def supervise(writable: Sequence[Path], why_not: str | None) -> None:
    """Go on in a confined child; the parent does not return, but ends as the child ended.

    Args:
        writable: folders that the command writes to; the parent makes those that are missing.
        why_not: why nothing can be given up (a compiler must be started); None where it can.
    """
    global _stage
    if why_not is None:
        why_not = _obstacle()
    if why_not is not None:
        confinement.not_confined(why_not)
        return
    sweep()
    made = [new for folder in writable for new in _make(folder)]
    temporary = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    _stage = mmap.mmap(-1, _STAGE_BYTES)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    parent = os.getpid()
    _prctl(_SUBREAPER, 1)  # what the child leaves behind becomes ours, and is ended
    child = os.fork()
    if child:
        try:
            status = _wait(child)
        finally:
            _end_descendants()
            _keep_tracebacks(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in reversed(made):
                with suppress(OSError):  # not empty
                    folder.rmdir()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _end(status)
    _prctl(_DEATH, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.getppid() != parent:
        raise Ended(143)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    confinement.confine([*writable, temporary])


def note_stage(text: str) -> None:
    """Say what the command is doing, for the parent to repeat if it is killed."""
    if _stage is not None:
        data = text.encode("utf-8", "replace")[:_STAGE_BYTES]
        _stage[:] = data.ljust(_STAGE_BYTES, b"\0")


def traceback_file(text: str) -> Path:
    """Store a traceback, and where it will lie: the parent brings it out of the temporary folder."""
    with tempfile.NamedTemporaryFile("w", prefix=_PREFIX, suffix=_TRACEBACK, delete=False) as file:
        file.write(text)
    return _kept / Path(file.name).name


def _obstacle() -> str | None:
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        return f"not known on {sys.platform}"
    if "torch" in sys.modules or threading.active_count() > 1:
        return "threads run already"
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        return "the processes of torchrun talk over the network"
    if os.environ.get("NORMFOLD_CONFINE", "on").lower() in ("off", "0", "no", "false"):
        return "NORMFOLD_CONFINE is off"
    missing = confinement.lacks()
    return f"this kernel has no {' and no '.join(missing)}" if len(missing) > 1 else None


def _make(folder: Path) -> list[Path]:
    """Make a folder that a command will write to, and those above it; what cannot be made the command reports."""
    missing = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return []
    return missing


def _wait(child: int) -> int:
    """Wait for the child's status, and pass on to it what was sent to this process."""
    while True:
        found = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if found.si_signo != signal.SIGCHLD:
            if found.si_code == _FROM_USER:
                with suppress(ProcessLookupError):
                    os.kill(child, found.si_signo)
            continue
        done, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if done and not os.WIFSTOPPED(status):
            return status
        if done and os.WSTOPSIG(status) == signal.SIGSTOP:  # not by the terminal
            os.kill(child, signal.SIGKILL)


def _prctl(what: int, value: int) -> None:
    ctypes.CDLL(None).prctl(what, ctypes.c_ulong(value), 0, 0, 0)


def _end_descendants() -> None:
    """End what the child started and did not wait for: nothing of it outlives the command."""
    for _ in range(1000):
        listed = Path(f"/proc/self/task/{os.getpid()}/children")
        try:
            left = [int(word) for word in listed.read_text().split()]
        except OSError:  # a kernel without the list
            return
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _end(status: int) -> NoReturn:
    if os.WIFEXITED(status):
        raise Ended(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        raise Ended(128 + number)
    raise _killed(number)


def _killed(number: int) -> NormfoldError:
    assert _stage is not None
    stage = bytes(_stage).rstrip(b"\0").decode("utf-8", "replace") or "starting"
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGXCPU:
        return LoadError(
            "the file takes too long to be read, and was given up",
            found=f"the limit of processor time, while {stage}",
            hint="is it a model? `--trust-pickle` does not lift this limit",
        )
    kind: type[NormfoldError] = LoadError if stage.startswith("loading") else InternalError
    why = "out of memory, or killed by hand" if number == signal.SIGKILL else "a library crashed"
    return kind(
        f"the process was ended by {name} while {stage}",
        found=why,
        hint="run it again on a machine with more memory"
        if number == signal.SIGKILL
        else "please report it, with the command",
    )


def _keep_tracebacks(temporary: Path) -> None:
    """Bring tracebacks out of the temporary folder: plain files, into new ones, and no more than is read."""
    for path in list(temporary.glob(f"*{_TRACEBACK}"))[:1]:
        with suppress(OSError):
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if stat.S_ISREG(os.fstat(source).st_mode):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with (
                    open(source, "rb") as old,
                    open(os.open(_kept / path.name, flags, 0o600), "wb") as new,
                ):
                    new.write(old.read(_LONGEST))


def sweep() -> None:
    """Remove temporary folders of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        found = _OWN.fullmatch(path.name)
        if found is None or path.is_symlink() or Path(f"/proc/{found[1]}").exists():
            continue
        with suppress(OSError):
            if path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
