"""What this machine has of all that targets need."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

import torch

from normfold.targets.tensorrt import Gpu, candidates, probe

_PACKAGES = {
    "torch": "everything",
    "onnx": "--export onnx",
    "onnxscript": "--export onnx",
    "onnx-ir": "--export onnx",
    "onnxruntime": "judging ONNX files",
    "openvino": "--target openvino, --export openvino",
    "safetensors": "safetensors files",
    "timm": "timm:NAME",
    "transformers": "Hugging Face folders",
}


def environment() -> list[dict[str, str]]:
    """Rows of what is there: ``what``, ``version`` (or what is missing), ``needed for``."""
    rows = []
    for package, purpose in _PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            present = importlib.util.find_spec(package.replace("-", "_")) is not None
            found = "present" if present else "missing"
        rows.append(_row(package, found, purpose))
    return rows + _engines()


def _engines() -> list[dict[str, str]]:
    """The builders of engines and what each lacks, the GPU, and what `--export trt` would do."""
    device, rows, taken = probe(), [], ""
    for item in candidates():
        found, purpose = "missing", f"--export trt: {item.kind.hint}"
        if item.backend is not None:
            found = item.backend.version
            targets = ", ".join(item.backend.architectures())
            purpose = f"--export trt: builds for {targets or 'the GPU of this machine'}"
        if item.backend is not None and item.lacks is not None:
            parts = (item.lacks.what, item.lacks.found, item.lacks.hint)
            purpose = "--export trt: " + "; ".join(part for part in parts if part)
        if item.lacks is None:
            taken = taken or f"{item.kind.name} {found}"
        rows.append(_row(item.kind.name, found, purpose))
    if isinstance(device, Gpu):
        purpose = "running engines"
        if not torch.cuda.is_available():
            purpose += ": torch sees no GPU, a build with CUDA is needed"
        rows.append(_row("GPU", f"{device.name} ({device.arch})", purpose))
    else:
        rows.append(_row("GPU", "none", f"running engines: {device}"))
    doing = f"taken by --export trt{'' if isinstance(device, Gpu) else ': builds, does not run'}"
    nothing = "--export trt writes the ONNX file and a build script, and exits with 3"
    return [*rows, _row("engine builder", taken or "none", doing if taken else nothing)]


def _row(what: str, found: str, purpose: str) -> dict[str, str]:
    return {"what": what, "version": found, "needed for": purpose}
