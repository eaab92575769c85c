"""``python -m tests.fuzz [--count 10000] [--commands 200] [--only pt2] [--seed 0]``.

Each case runs in a child process that may write in one temporary folder only. A finding is an exception that is no
documented error, a message about a refused write, a crash, or an exit code that is not documented.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
BATCH = 250
SECONDS = 120  # for a batch, and for a command
IMPORTED = (
    "normfold.cli", "normfold.conversion", "normfold.inspection", "normfold.report.text", "normfold.steps.deliver",
    "normfold.train.checkpoint", "onnxruntime", "safetensors.torch", "torch.export.pt2_archive._package",
    "torch.onnx",
)  # fmt: skip
DOCUMENTED = {0, 1, 2, 3, 4}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=10_000, help="cases of each kind; %(default)s")
    parser.add_argument(
        "--commands", type=int, default=200, help="of these through the command line"
    )
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    for name in IMPORTED:  # once, before the children are made
        importlib.import_module(name)
    from tests.fuzz.kinds import KINDS

    torch.set_num_threads(1)
    failed = 0
    for name, kind in KINDS.items():
        if not asked.only or name in asked.only:
            failed += _fuzz(name, kind, asked)
    print("nothing found" if not failed else f"{failed} findings")
    return int(failed > 0)


def _fuzz(name: str, kind: Any, asked: argparse.Namespace) -> int:
    """How many findings there are."""
    start, seeds = time.perf_counter(), kind.seeds()
    found: Counter[str] = Counter()
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work: list[Callable[[], Counter[str]]] = []
        for first in range(0, asked.count, BATCH):
            cases = range(first, min(first + BATCH, asked.count))
            work.append(partial(_reads, name, kind, seeds, cases, asked.seed))
        for at in range(min(asked.commands, asked.count)):
            work.append(partial(_command, kind, _case(kind, seeds, name, at, asked.seed)))
        for part in work:
            found += _child(part, Path(folder))
    bad = {text: count for text, count in found.items() if text.startswith("FOUND")}
    shown = ", ".join(f"{count} {text}" for text, count in sorted(found.items()) if text not in bad)
    print(f"{name:14} {time.perf_counter() - start:6.0f} s  {shown}", flush=True)
    for text, count in bad.items():
        print(f"    {count} x {text}", flush=True)
    return sum(bad.values())


def _case(kind: Any, seeds: list[Any], name: str, at: int, seed: int) -> Any:
    from tests.fuzz.mutate import damaged, damaged_text

    draw = random.Random(f"{seed} {name} {at}")
    right = draw.choice(seeds)
    return damaged(right, draw, seeds) if kind.suffix else damaged_text(right, draw)


def _child(work: Callable[[], Counter[str]], folder: Path) -> Counter[str]:
    """What ``work`` counted in a confined process of its own; how that ended, if it did not end well."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        with suppress(BaseException):
            os.close(reading)
            from normfold.job import confinement

            confinement.confine([folder])
            os.chdir(folder)
            tempfile.tempdir = str(folder)
            faulthandler.disable()
            signal.alarm(SECONDS)
            for text, count in work().items():
                os.write(writing, f"{count}\t{text}\n".encode())
            status = 0
        os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        lines = [line.rstrip("\n").split("\t", 1) for line in pipe]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = Counter({text: int(count) for count, text in lines})
    if code:
        found[f"FOUND a process that ended with {code}"] += 1
    return found


def _reads(name: str, kind: Any, seeds: list[Any], cases: range, seed: int) -> Counter[str]:
    from normfold.errors import NormfoldError

    found: Counter[str] = Counter()
    silent = io.StringIO()
    for at in cases:
        case = _case(kind, seeds, name, at, seed)
        if kind.suffix:
            path = Path(f"case{kind.suffix}")
            path.write_bytes(case)
            case = path
        try:
            with redirect_stdout(silent), redirect_stderr(silent):
                kind.read(case)
            found["read"] += 1
        except NormfoldError as error:
            text = str(error)
            if "Permission" in text or error.exit_code not in DOCUMENTED:
                found[f"FOUND case {at}: {text[:300]!r}"] += 1
            found["refused"] += 1
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} at {last.filename}:{last.lineno}: {str(error)[:120]!r}"
            found[f"FOUND {text} (case {at})"] += 1
    return found


def _command(kind: Any, case: Any) -> Counter[str]:
    from normfold.cli import main as cli

    if kind.suffix or "--config" in kind.command:
        path = Path(f"case{kind.suffix or '.toml'}")
        path.write_bytes(case) if kind.suffix else path.write_text(case, "utf-8", errors="replace")
        case = str(path)
    if "\0" in case:
        return Counter({"commands": 1})  # no shell can give it
    sys.argv = ["normfold", *(case if word == "{}" else word for word in kind.command)]
    sys.path.append(str(Path(__file__).parents[2]))
    out = io.StringIO()
    status: Any = None
    try:
        with redirect_stdout(out), redirect_stderr(out):
            cli()
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        return Counter({f"FOUND {type(error).__name__} out of the command line: {case[:80]!r}": 1})
    text = out.getvalue()
    if status not in DOCUMENTED or "Traceback" in text or "\x1b[" in text:
        return Counter({f"FOUND exit {status}: {text[:300]!r}, {case[:80]!r}": 1})
    return Counter({"commands": 1, f"exit {status}": 1})


if __name__ == "__main__":
    sys.exit(main())
