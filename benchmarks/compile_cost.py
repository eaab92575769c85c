"""What `normfold convert` costs beside a bare `torch.onnx.export`: wall, CPU and memory of whole processes.

    python -m benchmarks.compile_cost                       # resnet50 and vit_base_patch16_224
    python -m benchmarks.compile_cost resnet18 --runs 5
    python -m benchmarks.compile_cost --profile resnet50    # where normfold's own time goes
    python -m benchmarks.compile_cost tiny --runs 1         # does it work at all? half a minute

Every figure is of a process started afresh (Python and torch are imported in it), and the three kinds take turns,
so that a change of load hits all of them. Targets are those of the design (section 9); nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("resnet50", "vit_base_patch16_224")
KINDS = ("torch.onnx", "verify off", "verify final")
TARGETS = {"verify off": 1.0, "verify final": 1.3}  # of the wall time


@dataclass(frozen=True)
class Sample:
    """Cost of one process: seconds on the clock, seconds of CPU (all threads), peak resident MB."""

    wall: float
    cpu: float
    memory: float


def command(kind: str, model: str, folder: Path) -> list[str]:
    """The command line of one kind."""
    factory = f"benchmarks.models:{model}"
    if kind == "torch.onnx":
        return [sys.executable, "-m", "benchmarks.bare_export", factory, str(folder / "bare.onnx")]
    verify = kind.removeprefix("verify ")
    convert = [sys.executable, "-m", "normfold", "convert", factory, "--export", "onnx"]
    return [*convert, "-o", str(folder), f"--verify={verify}"]


def measure(arguments: list[str]) -> Sample:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            text = output.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(arguments)}: exit {process.returncode}\n{text}")
    scale = 1024 * 1024 if sys.platform == "darwin" else 1024
    return Sample(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / scale)


def compare(model: str, runs: int) -> dict[str, list[Sample]]:
    """Samples of every kind, the kinds taking turns."""
    found: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for turn in range(runs):
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                sample = measure(command(kind, model, Path(folder)))
            found[kind].append(sample)
            print(
                f"{model} {turn + 1}/{runs} {kind}: {sample.wall:.1f} s wall, {sample.cpu:.1f} s CPU, "
                f"{sample.memory:.0f} MB, load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
            )
    return found


def rows(model: str, found: dict[str, list[Sample]]) -> list[list[str]]:
    """One line of the table for each kind: median (min-max) and ratio to the bare export."""
    lines = []
    for kind, samples in found.items():
        line = [model, kind]
        for field in ("wall", "cpu", "memory"):
            target = TARGETS.get(kind) if field == "wall" else None
            values = [getattr(sample, field) for sample in samples]
            base = [getattr(sample, field) for sample in found["torch.onnx"]]
            digits = 0 if field == "memory" else 1
            middle = statistics.median(values)
            line.append(f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
            ratio = f"{middle / statistics.median(base):.2f}" if kind != "torch.onnx" else ""
            line.append(ratio + (f" (<= {target})" if target is not None else ""))
        lines.append(line)
    return lines


def table(lines: list[list[str]]) -> str:
    """Columns aligned, as Markdown."""
    head = ["model", "kind", "wall s", "x", "CPU s", "x", "peak MB", "x"]
    rule = ["-" * max(3, len(cell)) for cell in head]
    widths = [max(len(row[i]) for row in [head, rule, *lines]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *lines]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_cost")
    parser.add_argument("models", nargs="*", default=MODELS, help="factories of benchmarks.models")
    parser.add_argument("--runs", type=int, default=3, help="processes of each kind")
    parser.add_argument("--profile", metavar="MODEL", help="print normfold's time by stage instead")
    parser.add_argument(
        "--verify", choices=("final", "each", "off"), default="final", help="of --profile"
    )
    options = parser.parse_args(arguments)
    if options.profile:
        from benchmarks.stages import profile

        profile(f"benchmarks.models:{options.profile}", options.verify)
        return
    lines: list[list[str]] = []
    for model in options.models:
        lines += rows(model, compare(model, options.runs))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"medians of {options.runs} (min-max); {os.cpu_count()} cores, load average {load}\n")
    print(table(lines))


if __name__ == "__main__":
    main()
