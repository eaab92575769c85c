"""Quantised networks in onnxruntime: what is to run in integers does, and computes what the graph computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from normfold.domains.observed import measure
from normfold.ir import Graph, capture
from normfold.ranges.ranges import merge_ranges
from normfold.report.quantization_text import print_quantization
from normfold.rewrite import parse, run_pipeline
from normfold.targets.integer_census import IntegerCensus, integer_census
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession
from tests.nets import Compose, perturb
from tests.ranges.nets import gated, inverted, joined, residual
from tests.sampling import every_other

IMAGE = (4, 3, 12, 10)


NETS = [residual, inverted, gated, joined]


def integers(build: Callable[[], nn.Module], target: str = "ort-x86") -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    graph = capture(perturb(build()), (x,))
    folded, _ = run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))
    merge_ranges(measure(folded, [(x,)]), {})
    text = f"quantize-weights,quantize-activations{{target={target}}},bake"
    return run_pipeline(folded, parse(text))[0], x


def counted(graph: Graph, path: Path) -> IntegerCensus:
    export_onnx(graph, path)
    return integer_census(path)


@pytest.mark.parametrize("build", NETS)
def test_everything_runs_in_integers(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    graph, _ = integers(build)
    census = counted(graph, tmp_path / "net.onnx")
    assert census.floats == {}
    assert census.blocked == {}
    assert not {"Conv", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "Concat"} & census.ops.keys()
    assert census.ops["QuantizeLinear"] == 1  # of the input


@pytest.mark.parametrize(
    ("build", "level"), every_other((build, level) for build in NETS for level in ("all", "none"))
)
def test_the_file_computes_what_the_graph_computes(
    build: Callable[[], nn.Module], level: str, tmp_path: Path
) -> None:
    graph, x = integers(build)
    export_onnx(graph, tmp_path / "net.onnx")
    (got,) = RuntimeSession(tmp_path / "net.onnx", level).run([x])  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = graph(x)
    # a kernel may round a value between two steps to the other one
    assert float((got - wanted).abs().max()) < 0.04 * float(wanted.abs().max())


@pytest.mark.parametrize("size", [(6, 6), (6, 9)])
@pytest.mark.parametrize("bits", ["8", "4 block=16"])
def test_scales_of_a_matrix_lie_along_its_outputs(
    size: tuple[int, int], bits: str, tmp_path: Path
) -> None:
    """A square matrix with scales along the wrong axis runs, and is wrong: it cannot be made."""
    inputs, outputs = size[0] * 16, size[1] * 16
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-2, 2, outputs)[:, None])
    x = torch.randn(3, 5, inputs)
    graph = capture(layer.eval(), (x,))
    merge_ranges(measure(graph, [(x,)]), {})
    after, _ = run_pipeline(
        graph, parse(f"quantize-weights{{bits={bits}}},quantize-activations,bake")
    )
    export_onnx(after, tmp_path / "net.onnx", opset=21)
    (got,) = RuntimeSession(tmp_path / "net.onnx").run([x])
    with torch.no_grad():
        wanted = layer(x)
    error = (got - wanted).flatten(0, 1).norm(dim=0) / wanted.flatten(0, 1).norm(dim=0)
    assert float(error.max()) < (0.03 if bits == "8" else 0.2)


def test_the_census_names_the_rule(tmp_path: Path) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.gelu(m.first(x) + F.gelu(m.second(x)))

    graph, _ = integers(
        lambda: Compose(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(3, 4, 1))
    )
    census = counted(graph, tmp_path / "net.onnx")
    assert census.integer == {"Conv": 2}
    assert census.floats == {"Add": 1}
    (rule,) = census.blocked.values()
    assert "not on a grid" in rule


def test_dynamic_products(tmp_path: Path) -> None:
    layer, x = nn.Linear(32, 16), torch.randn(3, 5, 32)
    graph, _ = run_pipeline(capture(layer.eval(), (x,)), parse("quantize-dynamic,bake"))
    census = counted(graph, tmp_path / "net.onnx")
    assert census.integer == {"MatMul": 1}
    (got,) = RuntimeSession(tmp_path / "net.onnx").run([x])
    with torch.no_grad():
        torch.testing.assert_close(got, graph(x), rtol=1e-4, atol=1e-4)
        assert float((got - layer(x)).norm() / layer(x).norm()) < 0.02


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_tensorrt_gets_what_it_takes(target: str) -> None:
    from normfold.ir.graph import op_name

    graph, _ = integers(residual, target)
    grids = [node for node in graph.nodes if op_name(node) == "normfold::quantize"]
    assert grids
    for node in grids:
        zero = graph.value(node.args[2])  # type: ignore[arg-type]
        assert int(zero) == 0
        assert node.args[2].meta["val"].dtype == torch.int8  # type: ignore[union-attr]
    wide = [
        node
        for node in graph.nodes
        if op_name(node) == "normfold::dequantize" and node.args[5] == 32
    ]
    assert not wide  # no integer bias


def test_the_census_names_what_stands_between_integers(tmp_path: Path) -> None:
    """A border of ones is no padding of a convolution, and Pad has no integer kernel."""
    module = Compose(
        lambda m, x: m.last(F.pad(F.relu(m.first(x)), (1, 1, 1, 1), value=1.0)),
        first=nn.Conv2d(3, 8, 3),
        last=nn.Conv2d(8, 4, 3),
    )
    data = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    result = normfold.convert(module.eval(), quantize="int8", data=(data,), output=tmp_path)
    (made,) = result.report.quantization
    assert made.floats["Pad"] == 1
    (rule,) = [text for name, text in made.blocked.items() if "Pad" in name or "pad" in name]
    assert "between" in rule
    said: list[str] = []
    print_quantization(made, said.append)
    assert any("conversions between integers and floats are left" in text for text in said)
