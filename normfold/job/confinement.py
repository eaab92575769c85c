"""The process of a job gives up what it does not need: writing elsewhere, starting programs, opening connections.

Landlock restricts writing to folders that are named, and TCP; seccomp refuses the system calls that start a
program, open a socket or reach into another process. Both are irrevocable, need no privileges and hold for the
calling thread and all that it starts: confine before torch is imported, which starts threads. Reading is not
restricted, and what was read may be written to the output folder.

Source: Linux, Documentation/userspace-api/landlock.rst and seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Confinement:
    """What holds for this process: ``kinds`` of what it gave up, or ``why`` it did not."""

    kinds: tuple[str, ...] = ()
    why: str = "called from Python"

    @property
    def held(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        return f"confined: {', '.join(self.kinds)}" if self.kinds else f"not confined: {self.why}"


_state = Confinement()


def state() -> Confinement:
    """What this process gave up."""
    return _state


def is_command() -> bool:
    """True in a process of the command line, confined or not."""
    return _state != Confinement()


def not_confined(why: str) -> None:
    """Note why this process gives up nothing."""
    global _state
    _state = Confinement(why=why)


def confine(writable: Sequence[Path]) -> Confinement:
    """Give up writing outside ``writable``, starting programs and opening connections, for good.

    Args:
        writable: folders, with all below them, and files that exist; others are left out.

    Returns:
        What was given up. Where the kernel has neither Landlock nor seccomp, nothing, and why.
    """
    global _state
    missing = lacks()
    kinds: list[str] = []
    if "Landlock" not in missing:
        _landlock(writable)
        kinds.append("writes in its own folders only")
    if "seccomp" not in missing:
        _seccomp()
        kinds += ["starts no program", "opens no connection"]
    _state = Confinement(
        tuple(kinds), f"this kernel has no {' and no '.join(missing)}" if missing else ""
    )
    return _state


def lacks() -> list[str]:
    """Which of Landlock and seccomp this kernel has not, or this processor is not known for."""
    missing = []
    if not sys.platform.startswith("linux"):
        return ["Landlock", "seccomp"]
    if _abi() < 1:
        missing.append("Landlock")
    if platform.machine() not in _MACHINES or _libc().prctl(_GET_SECCOMP, 0, 0, 0, 0) < 0:
        missing.append("seccomp")
    return missing


# --- Landlock ---

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same numbers on every processor
_NO_NEW_PRIVS, _SECCOMP, _GET_SECCOMP = 38, 22, 21  # of prctl
_EXECUTE, _WRITE, _TRUNCATE, _REFER = 1 << 0, 1 << 1, 1 << 14, 1 << 13
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract sockets and signals of others
_DEVICES = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/shm", "/dev/nvidia*", "/dev/dri", "/dev/kfd",
)  # fmt: skip


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _abi() -> int:
    return int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def _landlock(writable: Sequence[Path]) -> None:
    libc, abi = _libc(), _abi()
    files = _WRITE | (_TRUNCATE if abi >= 3 else 0)
    folders = files | _MAKE_AND_REMOVE | (_REFER if abi >= 2 else 0)
    handled = struct.pack(
        "<QQQ", folders | _EXECUTE, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0
    )
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(_CREATE, handled, ctypes.c_size_t(size), ctypes.c_uint32(0))
    _require(ruleset, "landlock_create_ruleset")
    devices = [Path(found) for pattern in _DEVICES for found in glob.glob(pattern)]
    for path in (*writable, *devices):
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there cannot be written to either
        rule = struct.pack("<Qi", folders if path.is_dir() else files, handle)
        done = libc.syscall(_ADD, ruleset, ctypes.c_uint32(1), rule, ctypes.c_uint32(0))
        os.close(handle)
        _require(done, "landlock_add_rule")
    _require(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _require(libc.syscall(_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock_restrict_self")
    os.close(ruleset)


def _require(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


# --- seccomp ---

# processor: its word in the filter's data, and its numbers of these calls
_CALLS = (
    # start a program, open a connection
    "execve", "execveat", "socket", "connect", "io_uring_setup", "bpf",
    # reach into another process, or into what outlives this one
    "ptrace", "process_vm_writev", "pidfd_getfd", "setpriority", "sched_setscheduler", "sched_setattr", "shmget",
    "msgget", "mq_open", "add_key", "keyctl",
    # change a file of others without writing to it (modes are changed where files are published)
    "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "removexattr",
)  # fmt: skip
_NONE = 0xFFFFFF  # no such call on this processor
_MACHINES: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (
        59, 322, 41, 42, 425, 321, 101, 311, 438, 141, 144, 314, 29, 68, 240, 248, 250, 92, 93, 94, 260, 188, 189,
        190, 197,
    )),
    "aarch64": (0xC00000B7, (
        221, 281, 198, 203, 425, 280, 117, 271, 438, 140, 119, 274, 194, 186, 180, 217, 219, _NONE, 55, _NONE,
        54, 5, 6, 7, 14,
    )),
}  # fmt: skip
_X32 = 0x40000000  # a second table of calls of x86-64
# Calls that are refused for some values of an argument: (number by processor, index of the argument, values).
_IOCTL = {"x86_64": 16, "aarch64": 29}
_TYPE_INTO_A_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: the shell would run it afterwards
_PRLIMIT = {"x86_64": 302, "aarch64": 261}  # of another process: any pid but 0
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCH, _ARGUMENTS = (
    0,
    4,
    16,
)  # offsets in the filter's data; arguments have eight bytes, low word first


def _seccomp() -> None:
    machine = platform.machine()
    arch, numbers = _MACHINES[machine]
    assert len(numbers) == len(_CALLS)
    steps = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for test, number in [
        (_AT_LEAST, _X32),
        *((_EQUAL, number) for number in numbers if number != _NONE),
    ]:
        steps += [(test, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_EQUAL, 0, 6, _IOCTL[machine]), (_LOAD, 0, 0, _ARGUMENTS + 8)]
    for value in _TYPE_INTO_A_TERMINAL:
        steps += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _REFUSE)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    steps += [(_EQUAL, 0, 3, _PRLIMIT[machine]), (_LOAD, 0, 0, _ARGUMENTS), (_EQUAL, 1, 0, 0)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(buffer))
    libc = _libc()
    _require(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _require(libc.prctl(_SECCOMP, 2, program, 0, 0), "prctl(PR_SET_SECCOMP)")
