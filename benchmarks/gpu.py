"""What only a GPU can show, into one JSON file; `benchmarks/gpu.sh` sets a machine up and calls this.

python -m benchmarks.gpu [--dry-run] [--out FILE] [--limit 470] [--parts NAME ...]

Every part has a process and a time limit of its own; what it found before it failed or was stopped is kept, with
its error, and the others go on. ``--dry-run`` runs all of them on the CPU with a tiny network: engines are built
where TensorRT-RTX is installed, and not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 470.0  # seconds for everything
PACKAGES = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "timm", "transformers"),
    *("pytest", "hypothesis", "tensorrt", "tensorrt-rtx"),
)
Found = Iterator[dict[str, Any]]  # what a part has found so far, piece by piece
_TESTS = "tests/targets/tensorrt"
_BULKY = ("passes", "sites", "census", "versions")  # of a report


@dataclass(frozen=True)
class Part:
    """Something to measure: its time limit in seconds, and a function of ``dry``."""

    limit: float
    run: Callable[[bool], Found]


def engine_tests(dry: bool) -> Found:
    """The tests of engines, where there is a GPU for them."""
    target = f"{_TESTS}/test_profiles.py" if dry else _TESTS
    command = [sys.executable, "-m", "pytest", "-m", "not family", "-q", "--tb=line", target]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (ran.stdout + ran.stderr).splitlines()
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", "".join(lines[-1:]))
    yield {"exit": ran.returncode, "counts": {kind: int(count) for count, kind in counts}}
    yield {"lines": [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]}
    if ran.returncode:
        raise RuntimeError(f"pytest: exit {ran.returncode}: {' / '.join(lines[-3:])}")


def network(name: str, dry: bool) -> tuple[Any, str, dict[str, Any]]:
    """A MODEL, its preset, and the options with which it is converted."""
    from benchmarks import models
    from examples import engines

    if dry:
        return models.tiny(), "folded" if name == "ResNet-20" else "rmsnorm", {}
    shipped = engines.SHIPPED[name]
    return engines.MODELS / shipped.file, shipped.to, shipped.options


def samples(name: str, dry: bool) -> tuple[Any, Any, Any]:
    """Inputs, labels, and what the original answers."""
    import torch

    from benchmarks import models
    from examples import accuracy, shapes

    model, _, _ = network(name, dry)
    if dry:
        images, labels = models.example_input(model, 20), torch.zeros(20, dtype=torch.long)
    else:
        model = accuracy.load(model)
        images, labels = map(torch.from_numpy, shapes.test_set(shapes.TEST_IMAGES))
    with torch.no_grad():
        return images, labels, torch.cat([model(part) for part in images.split(250)])


def judged(name: str, dry: bool, run: Callable[[Any], Any]) -> dict[str, Any]:
    """Logits of ``run`` on batches of up to 20 against the original's."""
    import torch

    images, labels, wanted = samples(name, dry)
    with torch.no_grad():
        got = torch.cat([run(part).float().cpu() for part in images.split(20)])
    right = [(y.argmax(1) == labels).double().mean().item() for y in (wanted, got)]
    return {
        "images": len(images),
        "relative_error": ((got - wanted).norm() / wanted.norm()).item(),
        "agreement": (got.argmax(1) == wanted.argmax(1)).double().mean().item(),
        "top1_before": right[0],
        "top1_after": right[1],
    }


def engine(name: str, dry: bool, **options: Any) -> Found:
    """An engine of a shipped network: built, judged by normfold, run here on the test images, timed."""
    import torch

    import normfold
    from normfold.errors import NormfoldError
    from normfold.targets.tensorrt.engine import Engine

    model, to, given = network(name, dry)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = normfold.convert(model, to, export="trt", output=folder, **given, **options)
        yield {"convert_seconds": time.perf_counter() - start, **report_of(result)}
        paths = list(Path(folder).glob("*.engine"))
        if not paths:
            yield {"ran": False, "why": "no engine was written"}
            return
        yield {"bytes": paths[0].stat().st_size}
        try:
            opened = Engine(paths[0])
        except NormfoldError as error:
            yield {"ran": False, "why": " ".join(str(error).split())}
            return
        yield {"ran": True, **judged(name, dry, lambda x: opened.run([x])[0])}
        x = samples(name, dry)[0][:8].cuda()
        module = result.graph.module.cuda()
        yield {"timing": timing((lambda: module(x), opened.prepare([x])), torch.cuda.synchronize)}


def timing(calls: tuple[Callable[[], Any], Callable[[], Any]], wait: Callable[[], None]) -> Any:
    """The rewritten network in torch, eager, against the engine, at batch 8."""
    import torch

    from normfold.judge.bench import measure
    from normfold.judge.pairs import Pair

    with torch.no_grad():
        return measure(
            Pair(*calls, ("torch", "engine"), "cuda", "8", None, wait), seconds=1
        ).to_dict()


def half(dry: bool) -> Found:
    """Typed networks in fp16 by the GPU's own kernels in torch: no TensorRT is needed for it."""
    import normfold

    device = "cpu" if dry else "cuda"
    for name in ("ResNet-20", "ViT"):
        model, to, given = network(name, dry)
        result = normfold.convert(model, to, export=None, precision="fp16", **given)
        yield {name: judged(name, dry, placed(result.graph.module, device))}


def placed(module: Any, device: str) -> Callable[[Any], Any]:
    """The module on a device, called with inputs from anywhere."""
    module = module.to(device)
    return lambda x: module(x.to(device))


def synthesis(dry: bool) -> Found:
    """Seconds of an int8 file whose inputs are synthesised on the GPU, then on the CPU; random weights."""
    import normfold
    from benchmarks import models

    for device in ("cpu",) if dry else ("cuda", "cpu"):
        model: Any = models.make("tiny" if dry else "resnet50")
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"quantize": "int8", "device": device}
            start = time.perf_counter()
            result = normfold.convert(model, export="onnx", output=folder, **options)
            yield {device: {"seconds": time.perf_counter() - start, **report_of(result)}}


def norms(mode: str, dry: bool) -> Found:
    """LayerNorm against RMSNorm in torch: `benchmarks.gpu_norms`."""
    from benchmarks import gpu_norms

    batches = ["16"] if mode == "compile" else ["1", "16", "128"]
    arguments = ["--model", "vit_base", "gpt2", "swin_tiny", "--device", "cuda", "--seconds", "0.5"]
    if dry:
        batches = ["2"]
        arguments = ["--model", "tiny", "--device", "cpu", "--seconds", "0", "--rounds", "6"]
        arguments += ["--dtype", "fp32", "--compiler", "eager"]
    rows: list[dict[str, Any]] = []
    for row in gpu_norms.rows(gpu_norms.parsed([*arguments, "--mode", mode, "--batch", *batches])):
        print(gpu_norms.line(row), flush=True)
        rows.append(row)
        yield {"rows": rows}


PARTS = {
    "tests": Part(90, engine_tests),
    "engine-resnet-fp32": Part(60, partial(engine, "ResNet-20")),
    "engine-resnet-fp16": Part(60, partial(engine, "ResNet-20", precision="fp16")),
    "engine-vit-fp32": Part(60, partial(engine, "ViT")),
    "engine-vit-fp16": Part(60, partial(engine, "ViT", precision="fp16")),
    "engine-resnet-int8": Part(60, partial(engine, "ResNet-20", quantize="int8")),
    "half": Part(45, half),
    "synthesis": Part(90, synthesis),
    "norms-eager": Part(75, partial(norms, "eager")),
    "norms-compiled": Part(150, partial(norms, "compile")),
}


def report_of(result: Any) -> dict[str, Any]:
    """The report without what is long and not of the machine."""
    data = json.loads(result.report.to_json())
    return {"report": {key: value for key, value in data.items() if key not in _BULKY}}


def machine() -> dict[str, Any]:
    """The GPU, the cores, and versions; None for a package that is not there."""

    def version(package: str) -> str | None:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
        return None

    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    return {
        "gpu": said(["nvidia-smi", query, "--format=csv,noheader"]),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "commit": said(["git", "rev-parse", "HEAD"]),
    }


def said(command: Sequence[str]) -> str | None:
    """What a command prints, or None if it does not work here."""
    try:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def perform(name: str, dry: bool, path: Path) -> None:
    """Run a part in this process; after each piece the file holds all that was found."""
    found: dict[str, Any] = {}
    kept: dict[str, Any] = {"error": None, "result": found}
    try:
        for piece in PARTS[name].run(dry):
            found.update(piece)
            path.write_text(json.dumps(kept, default=str))
    except Exception as error:  # whatever it is, the other parts go on
        kept["error"] = f"{type(error).__name__}: {error}"
        kept["traceback"] = traceback.format_exc()[-2000:]
    path.write_text(json.dumps(kept, default=str))


def child(command: Sequence[str], limit: float) -> str | None:
    """Run a command for at most ``limit`` seconds; what went wrong, or None. All that it started ends with it."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status == 0:
            return None
        output.seek(0)
        tail = output.read().decode(errors="replace")[-1500:]
        return f"stopped after {limit:.0f} s" if status is None else f"exit {status}: {tail}"


def isolated(name: str, dry: bool, path: Path, limit: float) -> str | None:
    """`perform` in a process of its own; what went wrong with the process."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", name, "--out", str(path)]
    return child([*command, "--dry-run"] if dry else command, limit)


def measured(name: str, dry: bool, seconds: float, apart: bool) -> dict[str, Any]:
    """What became of a part that has so many seconds left."""
    start, limit = time.perf_counter(), min(PARTS[name].limit, seconds)
    if limit < 5:
        return {"error": "not started: no time is left", "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        path, wrong = Path(folder) / "found.json", None
        if apart:
            wrong = isolated(name, dry, path, limit)
        else:
            perform(name, dry, path)
        found: dict[str, Any] = {"error": None}
        with contextlib.suppress(
            OSError, ValueError
        ):  # stopped before the first piece, or while writing
            found = json.loads(path.read_text())
    found["error"] = found["error"] or wrong
    return {**found, "seconds": time.perf_counter() - start}


def main(arguments: Sequence[str] | None = None, apart: bool = True) -> None:
    """Run the parts, each in a process of its own (in this one if not ``apart``), and write the file."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "gpu.json")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        perform(options.child, options.dry_run, options.out)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "dry_run": options.dry_run, "parts": {}}
    missing = [name for name, version in found["machine"]["packages"].items() if version is None]
    print(
        f"GPU: {found['machine']['gpu'] or 'none'}; not installed: {', '.join(missing) or 'nothing'}"
    )
    for name in options.parts:
        left = options.limit - (time.perf_counter() - start)
        part = found["parts"][name] = measured(name, options.dry_run, left, apart)
        print(f"{part['seconds']:7.1f} s  {name:20}{outcome(part)}", flush=True)
        found["seconds"] = time.perf_counter() - start
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {options.out}")


def outcome(part: dict[str, Any]) -> str:
    """One line about a part."""
    if part["error"]:
        return "failed: " + " ".join(part["error"].split())[:150]
    result = part.get("result", {})
    if result.get("ran") is False:
        return f"not run: {result['why'][:150]}"
    return str(result["counts"]) if "counts" in result else "done"


if __name__ == "__main__":
    main()
