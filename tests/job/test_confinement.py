"""What a confined process cannot do, whatever runs in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from normfold.job import confinement

pytestmark = pytest.mark.skipif(bool(confinement.lacks()), reason=f"no {confinement.lacks()}")

TRY = """
import fcntl, os, resource, socket, subprocess, sys, threading, time
from pathlib import Path
out, outside = Path(sys.argv[1]), Path(sys.argv[2])
from normfold.job import confinement
start = time.perf_counter()
held = confinement.confine([out])
assert held.held and "torch" not in sys.modules, held
assert time.perf_counter() - start < 0.5
def refused(what, call):
    try:
        call()
    except OSError as error:
        assert error.errno in (1, 13, 18, 30), (what, error)
    else:
        raise SystemExit(f"allowed: {what}")
def all_of_it():
    refused("write", lambda: open(outside / "a", "w"))
    refused("append", lambda: open(outside / "there", "a"))
    refused("truncate", lambda: os.truncate(outside / "there", 0))
    refused("remove", lambda: os.remove(outside / "there"))
    refused("rename in", lambda: os.rename(outside / "there", out / "there"))
    refused("link", lambda: os.link(outside / "there", out / "link"))
    refused("mkdir", lambda: os.mkdir(outside / "folder"))
    refused("symlink", lambda: os.symlink("x", outside / "s"))
    refused("through a symlink", lambda: open(out / "away" / "a", "w"))
    refused("run", lambda: subprocess.run([sys.executable, "-c", ""]))
    refused("exec", lambda: os.execv("/bin/true", ["true"]))
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            refused("socket", lambda: socket.socket(family, kind))
    refused("memory", lambda: open("/proc/self/mem", "r+b"))
    refused("owner", lambda: os.chown(outside / "there", os.getuid(), os.getgid()))
    refused("attribute", lambda: os.setxattr(outside / "there", "user.a", b"b"))
    refused("type into a terminal", lambda: fcntl.ioctl(0, 0x5412, b"x"))
    refused("limits of another", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (9, 9)))
    refused("priority of another", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))
assert os.system("true") != 0
all_of_it()
worker = threading.Thread(target=all_of_it)
worker.start(); worker.join()
child = os.fork()
if not child:
    all_of_it(); os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
(out / "a").write_text("allowed")
(out / "b").mkdir(); os.rename(out / "a", out / "b" / "a")
assert (outside / "there").read_text() == "reading is possible"
print("done", file=sys.stderr)
"""


def test_nothing_leaves_it(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (outside / "there").write_text("reading is possible")
    (out / "away").symlink_to(outside)
    ran = subprocess.run(
        [sys.executable, "-c", TRY, out, outside], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.endswith("done\n")
    assert (outside / "there").read_text() == "reading is possible"
    assert sorted(path.name for path in outside.iterdir()) == ["there"]


def test_a_python_caller_is_not_confined() -> None:
    assert str(confinement.Confinement()) == "not confined: called from Python"
