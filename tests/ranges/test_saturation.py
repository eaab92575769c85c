"""Sums of two products: which layers can leave 16 bits, by brute force, and what is said of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.ir.expressions import fetch
from normfold.ranges import saturation
from normfold.ranges.saturation import has_vnni, integer_ranges
from normfold.report import Range
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y


def ranges(
    target: str, here: bool | None, monkeypatch: pytest.MonkeyPatch, **options: object
) -> tuple[Range, ...]:
    monkeypatch.setattr(saturation, "has_vnni", lambda: here)
    torch.manual_seed(0)
    given: dict[str, object] = {
        "quantize": "int8",
        "target": target,
        "export": (),
        "max_drop": 100.0,
    }
    x = torch.randn(8, 3, 8, 8)
    made = normfold.convert(perturb(Net()), inputs=(x,), **(given | options))  # type: ignore[arg-type]
    return tuple(made.report.ranges)


def test_of_unsigned_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = ranges("ort-x86", True, monkeypatch)
    assert (found.type, found.target, found.state) == ("uint8 x int8", "ort-x86", "ok")
    assert (found.layers, found.saturating, found.limit) == (2, 2, 32767)
    assert found.limit < found.largest <= 2 * 255 * 127
    assert "test_saturation.py" in found.at
    assert "this processor has VNNI" in found.why
    assert "without VNNI 2 can saturate" in found.why


@pytest.mark.parametrize("vnni", [False, None])
def test_without_vnni_that_is_not_judged(
    vnni: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = ranges("ort-x86", vnni, monkeypatch)
    assert (found.state, found.saturating) == ("not judged", 2)
    assert "`--no-vnni` puts weights in 7 bits" in found.why


@pytest.mark.parametrize(
    ("target", "options", "types", "why"),
    [
        ("ort-x86", {"vnni": False}, "uint8 x int8", "weights of 7 bits"),
        ("openvino", {"vnni": False}, "uint8 x int8", "weights of 7 bits"),
        ("ort-arm", {}, "int8 x int8", "sum in 32 bits"),
        ("trt", {}, "int8 x int8", "sum in 32 bits"),
    ],
)
def test_what_cannot_saturate(
    target: str,
    options: dict[str, object],
    types: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (found,) = ranges(target, False, monkeypatch, **options)
    assert (found.type, found.state, found.saturating, found.layers) == (types, "ok", 0, 2)
    assert found.largest <= found.limit
    assert why in found.why


def test_weights_alone_sum_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranges("ort-x86", False, monkeypatch, quantize="int8-weights", max_drop=None) == ()


def test_the_largest_sum_is_that_of_brute_force() -> None:
    torch.manual_seed(1)
    layer, x = nn.Linear(5, 3).eval(), torch.randn(2, 5)
    graph, _ = run_pipeline(normfold.capture(layer, (x,)), parse("quantize-dynamic,bake"))
    (found,) = integer_ranges(graph, "ort-x86")
    stored = [fetch(graph.module, str(n.target)) for n in graph.nodes if n.op == "get_attr"]
    (weight,) = (item for item in stored if item.dtype == torch.int8)
    columns = weight.int().T.tolist()
    sums = [
        a * v + b * w
        for column in columns
        for v, w in itertools.combinations(column, 2)
        for a in (0, 255)
        for b in (0, 255)
    ]
    assert found.type == "uint8 x int8"
    assert found.largest == max(map(abs, sums))
    assert found.saturating == int(max(sums) > 32767 or min(sums) < -32768)


def test_the_flags_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(saturation, "_CPUINFO", path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert has_vnni() is None
    path.write_text("model name\t: old\nflags\t\t: fpu avx2 avx512f\n")
    assert has_vnni() is False
    path.write_text("flags\t\t: fpu avx2 avx_vnni\n")
    assert has_vnni() is True
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_vnni() is None
