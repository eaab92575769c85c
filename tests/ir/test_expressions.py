"""Which nodes are parameter expressions."""

from __future__ import annotations

import torch
from torch import fx

from normfold.ir.expressions import is_static


def test_of_a_network_of_thousands_of_ops() -> None:
    """Asked from its end, before any of its nodes has a mark."""
    graph, value = fx.Graph(), torch.zeros(1)
    inputs, weight = graph.placeholder("x"), graph.get_attr("w", type_expr=None)
    inputs.meta["val"] = weight.meta["val"] = value
    ends = [inputs, weight]
    for at, node in enumerate(ends):
        for _ in range(5000):
            node = graph.call_function(torch.ops.aten.relu.default, (node,))
            node.meta["val"] = value
        ends[at] = node
    assert [is_static(node) for node in ends] == [False, True]
