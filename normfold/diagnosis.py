"""doctor: what this machine has, and what stands in the way of capturing a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from normfold.graph.capture import quiet
from normfold.load import load

_PACKAGES = {
    "torch": "everything",
    "onnx": "--export onnx",
    "onnxscript": "--export onnx",
    "onnx-ir": "--export onnx",
    "onnxruntime": "verifying ONNX files",
    "safetensors": "safetensors files",
    "timm": "timm:NAME",
    "transformers": "Hugging Face folders",
    "tensorrt": "TensorRT engines (needs a GPU)",
    "tensorrt-rtx": "TensorRT-RTX engines",
}


def environment() -> list[dict[str, str]]:
    """Rows of what is installed: ``what``, ``version`` ("missing" if absent), ``needed for``."""
    rows = []
    for package, purpose in _PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            present = importlib.util.find_spec(package.replace("-", "_")) is not None
            found = "present" if present else "missing"
        rows.append({"what": package, "version": found, "needed for": purpose})
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    rows.append({"what": "GPU", "version": gpu, "needed for": "running TensorRT engines"})
    return rows


def obstacles(model: str, inputs: Sequence[Any] = (), **loading: Any) -> list[str]:
    """What torch.export's draft mode reports about a model: one text for each obstacle, none if it captures."""
    loaded = load(model, inputs=inputs, **loading)
    if loaded.exported is not None:
        return []
    from torch.export import draft_export

    with quiet(), torch.no_grad():
        program = draft_export(loaded.module, loaded.args, loaded.kwargs)
    report = getattr(program, "_report", None)
    return [failure.print({}) for failure in report.failures] if report is not None else []
