"""Products with weights of 2, 4 and 8 bits, on the bytes that are written, in the runtimes that run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from benchmarks.int4 import ideal
from examples import gpt
from normfold.ir import Graph, capture
from normfold.targets.integer_census import integer_census
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession
from tests.nets import Compose
from tests.passes import known
from tests.passes.test_keep_grids import FOLD, NETS

OUTPUTS = 24


def layer(low: int, high: int, inputs: int, block: int = 0) -> Any:
    """One product with a weight on a grid, whose ends are in every block."""
    q = torch.randint(low, high + 1, (OUTPUTS, inputs)).float()
    size = block or inputs
    q[:, ::size], q[:, 1::size] = low, high
    scale = torch.rand(OUTPUTS, -(-inputs // size)) + 0.1
    module: Any = Compose(lambda m, x: m.fc(x), fc=nn.Linear(inputs, OUTPUTS))
    module.fc.weight.data = q * scale.repeat_interleave(size, 1)[:, :inputs]
    return module.eval()


def written(module: nn.Module, x: Tensor, path: Path, target: str = "ort-x86") -> Graph:
    """The captured original; its weights are in the file as they are."""
    graph = capture(module, (x,))
    result, report = normfold.run(graph, f"{FOLD},keep-grids,bake", verify="off")
    assert report.passes[-2].rewrites
    export_onnx(result, path, target=target)
    onnx.checker.check_model(path, full_check=False)
    return graph


# lowest and highest integer, inputs, block
GRIDS = [
    (-1, 1, 256, 0),
    (-1, 1, 200, 0),
    (-2, 1, 72, 0),
    (-1, 2, 100, 0),
    (0, 3, 96, 32),
    (-8, 7, 64, 16),
    (-8, 7, 200, 32),
    (-3, 12, 130, 0),
    (0, 15, 128, 64),
    (-127, 127, 160, 0),
    (-128, 127, 48, 16),
    (-10, 245, 72, 0),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_product_is_exact_to_rounding(grid: tuple[int, int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, x = tmp_path / "net.onnx", torch.randn(5, grid[2])
    graph = written(layer(*grid), x, path)
    assert normfold.verify(graph, path).ok
    census = integer_census(path)
    assert census.ops.get("MatMulNBits") == 1
    (node,) = (node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits")
    levels = {item.name: item.i for item in node.attribute}
    assert levels["accuracy_level"] == 1
    assert 2 ** levels["bits"] > grid[1] - grid[0]


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_exact_to_rounding(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape, *_ = NETS[name]
    graph = written(build(), torch.randn(shape), tmp_path / "net.onnx")
    assert normfold.verify(graph, tmp_path / "net.onnx").ok


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_bias_and_its_activation_do_not_unpack_the_weights(
    bits: int, activation: type[nn.Module], batch: int, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Linear(64, 96), activation(), nn.Linear(96, 32)).eval()
    x = torch.randn(batch, 64)
    result, _ = normfold.run(
        capture(net, (x,), dynamic=None),
        f"quantize-weights{{bits={bits} block=32}},bake",
        verify="off",
    )
    export_onnx(result, tmp_path / "net.onnx", target="ort-x86")
    found = integer_census(tmp_path / "net.onnx")
    assert found.integer == {"MatMul": 2}, found.ops


def test_a_session_rounds_the_inputs_of_a_dequantised_weight(tmp_path: Path) -> None:
    """Why the op of onnxruntime is written: its own reading of the standard form loses 8 bits of the inputs."""
    torch.manual_seed(0)
    module, x = layer(-8, 7, 256, 32), torch.randn(5, 256)
    for target, exact in (("ort-x86", True), ("openvino", False)):
        path = tmp_path / f"{target}.onnx"
        written(module, x, path, target)
        (got,) = RuntimeSession(path).run([x])
        with torch.no_grad():
            wanted = module.double()(x.double())
        module.float()
        error = float((got - wanted).abs().max() / wanted.abs().max())
        assert (error < 2e-6) == exact
        assert (error > 1e-3) == (not exact)


WITHOUT_THE_OP = [grid for grid in GRIDS if not (grid[3] and grid[2] % grid[3])]


@pytest.mark.parametrize("grid", WITHOUT_THE_OP, ids=str)
def test_openvino_unpacks_them(grid: tuple[int, int, int, int], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from normfold.targets.openvino import OpenvinoSession

    torch.manual_seed(0)
    path, x = tmp_path / "net.onnx", torch.randn(5, grid[2])
    module = layer(*grid)
    written(module, x, path, "openvino")
    types = {node.op_type for node in onnx.load(path).graph.node}
    assert types == {"DequantizeLinear", "MatMul", "Add"}
    (got,) = OpenvinoSession(path).run([x])
    with torch.no_grad():
        wanted = module.double()(x.double())
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6


def test_half_precision_is_unpacked_to_its_type(tmp_path: Path) -> None:
    """Scales stay float32, in which alone they are exact."""
    torch.manual_seed(0)
    path, x = tmp_path / "net.onnx", torch.randn(5, 128).half()
    graph = written(layer(-1, 1, 128).half(), x, path, "trt")
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"DequantizeLinear", "Cast"}
    (got,) = RuntimeSession(path, "none").run([x])
    with torch.no_grad():
        wanted = graph(x)
    assert float((got - wanted).abs().max()) < 4e-3 * float(wanted.abs().max())


def test_a_program_holds_the_integers(tmp_path: Path) -> None:
    """What torch.export writes runs without normfold: plain ops that unpack."""
    torch.manual_seed(0)
    module, x = known.mlp(), torch.randn(3, known.WIDTH)
    result = normfold.convert(
        module, inputs=(x,), passes=f"{FOLD},keep-grids,bake", export="pt2", output=tmp_path
    )
    assert result.ok, result.report.to_json()


def test_a_shared_weight_is_in_the_file_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: Any = Compose(lambda m, x: m.fc(torch.relu(m.fc(x))), fc=nn.Linear(64, 64))
    module.fc.weight.data = torch.randint(-1, 2, (64, 64)) * 0.2
    path = tmp_path / "net.onnx"
    graph = written(module.eval(), torch.randn(3, 64), path)
    names = [item.name for item in onnx.load(path).graph.initializer]
    assert sum("int2" in name for name in names) == 1
    assert normfold.verify(graph, path).ok


def test_the_shipped_gpt_in_4_bits_is_near_the_size_of_its_weights(tmp_path: Path) -> None:
    net, ids = gpt.load(), torch.randint(0, 96, (2, 128))
    normfold.convert(
        net, inputs=(ids,), quantize="int4-weights", dynamic=("ids:1",), output=tmp_path, name="gpt"
    )
    assert 1.0 < (tmp_path / "gpt.onnx").stat().st_size / ideal(net) < 1.05
