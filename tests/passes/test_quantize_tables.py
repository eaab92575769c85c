"""quantize-tables: rows in integers, and the table of a tied head stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ops.integer_ops import take_rows
from normfold.rewrite import parse, run_pipeline
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession
from tests.passes.judge import golden_pass

ROWS = 400  # 400 x 96 bytes: more than constant folding merges


class Tied(nn.Module):
    """A table, a layer, and the table again as a head."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, width)
        self.layer = nn.Linear(width, width)
        self.shift = nn.Parameter(torch.randn(ROWS)) if bias else None

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (N,tokens) to (N,tokens,ROWS)."""
        return F.linear(torch.tanh(self.layer(self.table(ids))), self.table.weight, self.shift)


IDS = torch.randint(ROWS, (2, 5), generator=torch.Generator().manual_seed(1))


def tied(width: int = 96, bias: bool = True) -> Graph:
    return capture(Tied(width, bias).eval(), (IDS,))


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (8, 32), (4, 32)])
def test_by_hand(bits: int, block: int) -> None:
    module = Tied(96).eval()
    table, layer, shift = module.table.weight.detach().double(), module.layer.double(), module.shift
    assert shift is not None
    after, reports = run_pipeline(
        tied(), parse(f"quantize-tables{{bits={bits} block={block}}},bake")
    )
    assert reports[0].rewrites == 1
    (rows,) = (node for node in after.nodes if node.target is take_rows)
    nodes = [node for node in rows.args[:2] if isinstance(node, fx.Node)]
    q, scale = (after.value(node).double() for node in nodes)
    wide = scale.repeat_interleave(block, 1) if block else scale[:, None]
    assert float((q * wide - table).abs().max() / wide.abs().max()) < (0.51 if bits == 8 else 1.5)
    ids = torch.arange(20).reshape(4, 5)
    with torch.no_grad():
        x = torch.tanh(layer((q * wide)[ids]))
        wanted = x @ (q * wide).t() + shift
        torch.testing.assert_close(after(ids).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("width", [96, 112, 40])  # blocks of 32, of 16, and none
@pytest.mark.parametrize(
    "text",
    [
        "quantize-tables{block=32},quantize-weights{bits=4 block=32}",
        "quantize-tables{bits=4 block=32}",
        "quantize-tables,quantize-dynamic",
    ],
)
def test_the_file_holds_the_table_once(text: str, width: int, bias: bool, tmp_path: Path) -> None:
    after, _ = run_pipeline(tied(width, bias), parse(f"{text},bake"))
    for target in ("ort-x86", "openvino"):
        path = tmp_path / f"{target}.onnx"
        export_onnx(after, path, target=target)
        file = onnx.load(path)
        large = [x for x in file.graph.initializer if ROWS in x.dims and len(x.raw_data) > 12_000]
        assert len(large) == 1
        assert large[0].data_type != onnx.TensorProto.FLOAT
        packed = "GatherBlockQuantized" in {node.op_type for node in file.graph.node}
        assert packed == (target == "ort-x86" and "block" in text and width != 40)
        ids = torch.tensor([[3, 3, 399, 0, 17]])
        with torch.no_grad():
            wanted = after(ids)
        levels: tuple[Literal["all", "none"], ...] = ("all", "none")
        for level in levels:
            (found,) = RuntimeSession(path, level).run([ids])
            error = float((found - wanted).norm() / wanted.norm())
            assert error < 0.012, (target, level)  # MatMulNBits reads x in 8 bits


def test_a_table_is_put_on_one_grid() -> None:
    _, reports = run_pipeline(tied(), parse("quantize-tables,quantize-tables"))
    assert [item.code for item in reports[1].declined] == ["NF130"]


@pytest.mark.parametrize("block", [8, 48])
def test_blocks_that_no_kernel_has(block: int) -> None:
    with pytest.raises(UsageError, match="not a block that kernels have"):
        parse(f"quantize-tables{{block={block}}}")


def test_golden() -> None:
    golden_pass("quantize-tables/tied", tied())
