"""keep-grids: what is on a grid is stored there, in the fewest bytes, and computes the same; nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.expressions import fetch
from normfold.ops.integer_ops import dequantize, stored_matmul
from normfold.report import PassReport
from normfold.rewrite import parse, run_pipeline
from normfold.targets.onnx import export_onnx
from tests.nets import Compose
from tests.passes import known
from tests.passes.judge import golden_pass

FOLD = "canonicalize,fold-affine{direction=backward},restore,bake"
WIDTH = known.WIDTH


def kept(
    module: nn.Module, x: Tensor, options: str = "", fold: str = FOLD
) -> tuple[Graph, PassReport]:
    """The network with its grids stored, judged by rounding against the original."""
    torch.manual_seed(0)
    graph = capture(module.eval(), (x,))
    result, report = normfold.run(graph, f"{fold},keep-grids{options},bake")
    assert report.ok, report.to_json()
    return result, report.passes[-2]


def stored_bits(graph: Graph) -> list[Any]:
    return [node.args[5] for node in graph.nodes if node.target in (stored_matmul, dequantize)]


def ideal_bytes(graph: Graph) -> int:
    """Integers in their bits, scales, zero points, and the floats that are left."""
    size = 0
    for name, value in graph.module.named_parameters():
        bits = next((b for b in (2, 4, 8) if name.endswith(f"_int{b}")), None)
        size += value.numel() * (8 * value.element_size() if bits is None else bits) // 8
    return size


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int], set[str]]] = {
    "ternary transformer": (known.transformer, (2, 6, WIDTH), [2] * 7, {"head"}),
    "4 bits, rows": (known.mlp, (3, WIDTH), [4] * 3, set()),
    "4 bits, blocks of 32": (lambda: known.mlp(4, 32), (3, WIDTH), [4] * 3, set()),
    "8 bits, rows": (lambda: known.mlp(8), (3, WIDTH), [8] * 3, set()),
    "8 bits, convolutions": (known.convnet, (2, 3, 9, 8), [8] * 3, {"head"}),
    "4 bits, convolutions": (lambda: known.convnet(4), (2, 3, 9, 8), [4] * 4, set()),
    "ternary convolutions": (lambda: known.convnet(2), (2, 3, 9, 8), [4, 4, 4, 2], set()),
}


@pytest.mark.parametrize("name", NETS)
def test_stored_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    build, shape, bits, left = NETS[name]
    module = build()
    graph, report = kept(module, torch.randn(shape))
    assert stored_bits(graph) == bits
    assert {item.site for item in report.declined} == left
    assert {item.code for item in report.declined} <= {"NF131"}
    floats = {
        n: p for n, p in graph.module.named_parameters() if p.is_floating_point() and p.dim() > 1
    }
    assert {n.removesuffix(".weight") for n in floats if "scale" not in n} == left


@pytest.mark.parametrize("name", ["ternary transformer", "4 bits, rows", "4 bits, blocks of 32"])
def test_the_file_has_the_ideal_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape, *_ = NETS[name]
    graph, _ = kept(build(), torch.randn(shape))
    made = export_onnx(graph, tmp_path / "net.onnx")
    assert 1.0 < made.bytes / ideal_bytes(graph) < 1.05


def test_binary_convolutions_are_said_so() -> None:
    torch.manual_seed(0)
    _, report = kept(known.convnet(2), torch.randn(2, 3, 9, 8))
    assert {(item.site, item.code) for item in report.warnings} == {
        (site, "NF203") for site in ("first", "depth", "up")
    }


def test_gains_folded_into_columns_move_weights_off_their_grids() -> None:
    """What does not read a norm keeps its grid; what does loses it, unless folding leaves it."""
    torch.manual_seed(0)
    module, x = known.transformer(), torch.randn(2, 6, WIDTH)
    _, report = kept(module, x, fold="canonicalize,fold-affine{split-norms=true},restore,bake")
    assert {item.site for item in report.applied} == {"out", "down"}
    assert {item.code for item in report.declined} == {"NF131"}
    assert "direction=backward" in report.declined[0].hint


def test_at_least_so_many_bits() -> None:
    torch.manual_seed(0)
    graph, _ = kept(known.transformer(), torch.randn(2, 6, WIDTH), "{least=4}")
    assert stored_bits(graph) == [4] * 7
    graph, _ = kept(known.convnet(4), torch.randn(2, 3, 9, 8), "{least=8}")
    assert (
        stored_bits(graph) == [8] * 3
    )  # of the head, 8 bits and scales would be half of the floats
    with pytest.raises(UsageError, match="not a size that kernels have"):
        parse("keep-grids{least=3}")


def test_only_the_layers_that_are_named() -> None:
    torch.manual_seed(0)
    _, report = kept(known.mlp(), torch.randn(3, WIDTH), "{layers=sec*|last}")
    assert [item.site for item in report.applied] == ["second", "last"]
    assert [item.code for item in report.declined] == ["NF126"]


def test_weights_are_baked_first() -> None:
    with pytest.raises(UsageError, match="wants a graph that is baked"):
        run_pipeline(capture(known.made_mlp(), (torch.randn(3, WIDTH),)), parse("keep-grids"))


def test_half_precision() -> None:
    """Three values survive their rounding to float16; sixteen do not, and the report says what they were."""
    torch.manual_seed(0)
    x = torch.randn(3, WIDTH, dtype=torch.float16)
    ternary: Any = Compose(lambda m, x: m.fc(x), fc=nn.Linear(WIDTH, 64))
    ternary.fc.weight.data = torch.randint(-1, 2, (64, WIDTH)) * 0.037
    _, report = kept(ternary.half(), x)
    assert report.rewrites == 1
    _, report = kept(known.mlp().half(), x)
    assert not report.rewrites
    assert {item.detail for item in report.declined} == {
        "it was on one of 4 bits before it was rounded to float16"
    }


def tied(readers: str) -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Any:
        if readers == "table":
            return F.linear(m.table(x), m.table.weight)
        return m.fc(F.relu(m.fc(x.float() @ m.table.weight[: len(x[0])].relu())))

    module: Any = Compose(forward, table=nn.Embedding(40, 32), fc=nn.Linear(32, 32))
    for part in (module.table, module.fc):
        part.weight.data = torch.randint(-1, 2, part.weight.shape) * 0.2
    return module, torch.randint(0, 40, (2, 5))


def test_a_table_that_is_looked_up_too_stays() -> None:
    module, x = tied("table")
    _, report = kept(module, x)
    assert [item.code for item in report.declined] == ["NF102"]


def test_a_weight_that_is_read_twice_is_stored_once() -> None:
    module, x = tied("layers")
    graph, report = kept(module, x)
    assert "fc" in [item.site for item in report.applied]
    products = [node for node in graph.nodes if node.target is stored_matmul]
    assert len({node.args[1] for node in products}) == len(products) - 1
    integers = [n for n, _ in graph.module.named_parameters() if "_int" in n]
    assert len(integers) == len(products) - 1


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (2, 2, 3, 16)])
@pytest.mark.parametrize("op", ["linear", "matmul", "addmm", "left"])
def test_products_of_every_form(op: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    if op in ("addmm", "left") and len(shape) != 2:
        pytest.skip("matrices only")
    torch.manual_seed(0)
    weight = torch.randint(-8, 8, (24, 16)) * (torch.rand(24, 1) + 0.1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.randn(24))

        def forward(self, x: Tensor) -> Tensor:
            if op == "linear":
                return F.linear(x, self.weight, self.bias)
            if op == "matmul":
                return x @ self.weight.t()
            if op == "left":
                return self.weight @ x.t()
            return torch.addmm(self.bias, x, self.weight.t())

    x = torch.randn(shape)
    graph = capture(Net().eval(), (x,), dynamic=None)
    result, report = normfold.run(graph, f"{FOLD},keep-grids,bake")
    assert report.ok
    assert report.passes[-2].rewrites == 1
    path = tmp_path / "net.onnx"
    export_onnx(result, path)
    assert normfold.verify(graph, path).ok


def test_one_input_is_not_worth_a_scale() -> None:
    """Every row of one input is on a grid; a scale for each is as large as the weight."""
    module = Compose(lambda m, x: m.fc(x), fc=nn.Linear(1, 32))
    _, report = kept(module, torch.randn(3, 1))
    assert [item.detail for item in report.declined] == ["scales would take as much as they save"]
    assert not report.rewrites


def test_integers_are_what_the_file_holds() -> None:
    torch.manual_seed(0)
    module: Any = known.mlp()
    graph, _ = kept(module, torch.randn(3, WIDTH))
    node = next(node for node in graph.nodes if node.target is stored_matmul)
    q, scale = (fetch(graph.module, str(node.args[place].target)) for place in (1, 2))  # type: ignore[union-attr]
    assert q.dtype == torch.uint8
    block: Any = node.args[4]
    values = (q.double() - 8) * scale.double().repeat_interleave(block, 1)[:, : q.shape[1]]
    torch.testing.assert_close(values, module.first.weight.double(), rtol=2.4e-7, atol=0)


def test_golden() -> None:
    torch.manual_seed(0)
    graph = capture(known.mlp(), (torch.randn(3, WIDTH),))
    golden_pass("keep-grids/mlp", graph, FOLD)
