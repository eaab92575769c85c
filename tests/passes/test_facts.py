"""What is known of a value after a pass is true of it: for every pass, and every fact about numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.intervals import Interval
from normfold.ir.statistics import Statistics
from normfold.ops.groups import Centred
from normfold.passes import BUILT_IN
from normfold.rewrite import parse, run_pipeline
from tests.nets import Encoder, Residual
from tests.passes.orders import BEFORE, prepared_for

NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (Residual, (6, 4, 8, 8)),
    "encoder": (Encoder, (6, 7, 8)),
}


class _Values(fx.Interpreter):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        dynamic = n.op in ("placeholder", "call_function") and not is_static(n)
        if dynamic and isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
            self.found[n] = value.detach()
        return value


def values(graph: Graph, x: Tensor) -> dict[fx.Node, Tensor]:
    runner = _Values(graph)
    with torch.no_grad():
        runner.run(x, enable_io_processing=False)
    return runner.found


def measured(value: Tensor) -> tuple[Interval, Statistics, Centred | None]:
    dim = 1 if value.dim() == 4 else value.dim() - 1
    rest = [axis for axis in range(value.dim()) if axis != dim]
    std, mean = torch.std_mean(value.double(), rest)
    centred = None
    if float(value.mean(-1).abs().max()) < 1e-9 * float(value.abs().max()):
        centred = Centred(
            torch.zeros((1,) * (value.dim() - 1) + value.shape[-1:], dtype=torch.long)
        )
    return (
        Interval(float(value.min()), float(value.max())),
        Statistics("t", dim, mean, std),
        centred,
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_known_is_true(name: str, net: str) -> None:
    make, shape = NETS[net]
    torch.manual_seed(0)
    dtype = torch.float32 if "quantize" in BEFORE[name] or "quantize" in name else torch.float64
    x = torch.randn(shape, dtype=dtype)
    graph = prepared_for(name, make, (2, *shape[1:]), dtype)
    graph.samples = [((x,), {})]
    for node, value in values(graph, x).items():
        facts.drop(node)
        facts.put(node, *(fact for fact in measured(value) if fact is not None))
    after, report = run_pipeline(graph, parse(name))
    exact = all(item.exactness == "exact" for item in report)
    kept = 0
    for node, value in values(after, x).items():
        allowed = (1e-9 if exact else 0.1) * float(value.abs().max())
        interval, statistics, centred = measured(value)
        if (known := facts.get(node, Interval)) is not None:
            kept += 1
            assert known.low == pytest.approx(interval.low, abs=allowed), node
            assert known.high == pytest.approx(interval.high, abs=allowed), node
        if (stated := facts.get(node, Statistics)) is not None and not exact:
            stated = None
        if stated is not None:
            kept += 1
            assert torch.allclose(stated.mean, statistics.mean, atol=allowed, equal_nan=True), node
            assert torch.allclose(stated.std, statistics.std, atol=allowed, equal_nan=True), node
        if facts.get(node, Centred) is not None:
            kept += 1
            assert centred is not None, node
    assert kept or name == "replace-layernorm"
