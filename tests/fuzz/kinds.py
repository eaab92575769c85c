"""What is damaged, and who reads it: seeds for each kind of file and text, and the reader that must not fall."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        suffix: of its files; empty for texts.
        seeds: right ones.
        read: what normfold does with a damaged one, given its path or its text.
        command: the same through the command line; ``{}`` stands for the path or the text.
    """

    suffix: str
    seeds: Callable[[], list[Any]]
    read: Callable[[Any], object]
    command: tuple[str, ...]


def make() -> nn.Module:
    """The network whose weights the files hold."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _contents() -> list[Any]:
    net = make()
    extra = {
        "state_dict": net.state_dict(),
        "epoch": 3,
        "loss": np.float64(0.5),
        "sparse": torch.eye(3).to_sparse(),
    }
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return [net, net.state_dict(), extra, nn.utils.spectral_norm(nn.Linear(4, 4)), attention]


def _zips() -> list[bytes]:
    return [_saved(content) for content in _contents()]


def _legacy() -> list[bytes]:
    return [_saved(content, _use_new_zipfile_serialization=False) for content in _contents()]


def _programs() -> list[bytes]:
    found = []
    for dynamic in (None, ({0: torch.export.Dim("b", min=2, max=64)},)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                make(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic
            )
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
        found.append(buffer.getvalue())
    return found


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    return [save({name: value.contiguous() for name, value in make().state_dict().items()})]


def _arrays(archive: bool) -> list[bytes]:
    images, labels = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype("f4"), np.arange(4)
    buffer = io.BytesIO()
    if archive:
        np.savez(buffer, x=images, y=labels)
    else:
        np.save(buffer, images)
    return [buffer.getvalue()]


_KEY = {"model": "m", "steps": 3}


def _resumed() -> list[bytes]:
    import tempfile

    from normfold.report.training import TrainingReport
    from normfold.train.checkpoint import save_checkpoint

    optimizer = torch.optim.AdamW(make().parameters())
    saved = {
        "report": TrainingReport("prepbn"),
        "step": 3,
        "state": make().state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "c.pt", _KEY, saved)
        return [(Path(folder) / "c.pt").read_bytes()]


def _load(path: Path) -> object:
    from normfold.load import load

    return load(path, factory="tests.fuzz.kinds:make", inputs=["2x3x8x8"])


def _data(path: Path) -> object:
    from normfold.data.sources import columns
    from normfold.load.values import read_file

    return columns(read_file(path), ["x"], str(path))


def _resume(path: Path) -> object:
    from normfold.train.checkpoint import load_checkpoint

    return load_checkpoint(path, _KEY)


def _pipeline(text: str) -> object:
    from normfold.rewrite import parse

    return parse(text)


def _inputs(text: str) -> object:
    from normfold.load import load

    return load(make(), inputs=[text])


def _configuration(text: str) -> object:
    import tempfile

    from normfold.cli.settings import Option, settings
    from normfold.cli.table import TABLE

    commands = {
        command.name: {
            item.key: Option(item.keyword, item.many, item.named) for item in command.options
        }
        for command in TABLE
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "normfold.toml").write_text(text, "utf-8", errors="replace")
        return settings(commands, "convert", folder=Path(folder)), settings(
            commands, "quantize", Path(folder) / "normfold.toml"
        )


def _models(text: str) -> object:
    import tempfile

    from normfold.cli import check

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "normfold.toml"
        path.write_text(text, "utf-8", errors="replace")
        return check.runs(path)


def _locks() -> list[bytes]:
    from normfold.report import lock

    return [lock.text({"net": _LOCKED, "other": {**_LOCKED, "sites": {}}}).encode()]


def _lock(path: Path) -> object:
    """Read, and every model of it compared with another result."""
    from normfold.report import lock

    others = [_LOCKED, {**_LOCKED, "opset": 7, "files": {"net.pt": "cc", "net.py": "dd"}}]
    known = lock.read(path).values()
    return [list(lock.compare(item, other)) for item in known for other in others]


def _reports() -> list[bytes]:
    from tests.report.runs import mixed

    return [mixed().to_json().encode()]


def _report(path: Path) -> object:
    from normfold.report.rendering import RENDERINGS, render_file

    return [render_file(path, render) for render in RENDERINGS.values()]


_LOCKED: dict[str, Any] = {
    "verdict": "pass",
    "job": ["convert", "net.pt", "--to=folded"],
    "files": {"net.pt": "aa", "net.py": "bb"},
    "versions": {"torch": "2.13.0"},
    "sites": {
        "bn": {"kind": "batch-norm", "state": "gone", "line": "net.py:3: x = self.bn(x)"},
        "norm": {"kind": "layer-norm", "state": "left", "code": "NF118", "line": "net.py:4: y", "why": "w"},
    },
    "kernels": {"Conv": 3},
    "opset": 20,
    "sizes": {"net.onnx": 1000},
    "errors": {"rounding": 1e-7},
    "integers": 0.9,
    "time": {"ratio": 0.5, "low": 0.4, "high": 0.6, "machine": "one"},
}  # fmt: skip
_MODEL = ("--model", "tests.fuzz.kinds:make", "--input", "2x3x8x8")
_NET = ("tests.fuzz.kinds:make", "--input", "2x3x8x8")
KINDS = {
    "pt": Kind(".pt", _zips, _load, ("convert", "{}", *_MODEL, "-o", "out", "--verify", "off")),
    "pt-legacy": Kind(".pt", _legacy, _load, ("convert", "{}", *_MODEL, "-o", "out", "--verify", "off")),
    "pt2": Kind(".pt2", _programs, _load, ("convert", "{}", "-o", "out", "--verify", "off")),
    "safetensors": Kind(".safetensors", _safetensors, _load, ("inspect", "{}", *_MODEL)),
    "npz": Kind(".npz", lambda: _arrays(True), _data, ("quantize", *_NET, "--data", "{}", "-o", "out")),
    "npy": Kind(".npy", lambda: _arrays(False), _data, ("quantize", *_NET, "--data", "{}", "-o", "out")),
    "resume": Kind(".pt", _resumed, _resume, ("inspect", "{}", *_MODEL)),
    "pipeline": Kind(
        "",
        lambda: ["canonicalize,fold-affine{direction=both max-gain=1000},restore,bake",
                 "center-stream{untie=true}", "quantize-weights{bits=4 block=32 layers=a|b}"],
        _pipeline,
        ("plan", *_NET, "--passes", "{}"),
    ),
    "input": Kind("", lambda: ["2x3x8x8", "input:2x3x8x8:f32", "x:1x3x224x224:i64"], _inputs,
                  ("inspect", "tests.fuzz.kinds:make", "--input", "{}")),
    "configuration": Kind(
        "",
        lambda: [
            'to = "rmsnorm"\nseed = 3\n[convert]\nverify = "each"\nrequire = ["fold-affine>=1"]\n',
            'trust-module = ["a"]\n[quantize]\ntarget = ["ort-x86"]\ndata = "x.npz"\npixels = [0, 1]\n',
        ],
        _configuration,
        ("convert", *_NET, "--config", "{}", "-o", "out", "--verify", "off"),
    ),
    "models": Kind(
        "",
        lambda: [
            '[models.net]\nnetwork = "tests.fuzz.kinds:make"\ninput = ["2x3x8x8"]\nrequire = ["batch-norm==0"]\n',
            'to = "folded"\n[models.a]\nnetwork = "a.pt"\ncommand = "quantize"\nallow-unproved = true\nseed = 3\n',
        ],
        _models,
        ("check", "--config", "{}", "--only", "none"),  # nothing may be started here
    ),
    "lock": Kind(".lock", _locks, _lock, ("report", "{}")),
    "report": Kind(".json", _reports, _report, ("report", "{}")),
}  # fmt: skip
