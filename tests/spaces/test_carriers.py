"""What a carrier goes through commutes with matrices of the features; what holds a space, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.inspection import list_spaces
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.spaces.carriers import FEATURES, made_into, made_of
from normfold.spaces.spaces import Space, space_of
from normfold.spaces.symmetry import LINEAR, NONE, POINTWISE
from tests.nets import Compose, Encoder, perturb

BATCH, TOKENS, WIDTH = 2, 4, 6
FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "sum": (lambda m, x: x + m.other(x), True),
    "difference": (lambda m, x: x - m.other(x), True),
    "a number": (lambda m, x: x + 3.0, False),
    "a column": (lambda m, x: x + m.score(x), False),
    "scaled": (lambda m, x: x * 0.5, True),
    "negated": (lambda m, x: -x, True),
    "divided": (lambda m, x: x / 3.0, True),
    "a quotient of it": (lambda m, x: 3.0 / x, False),
    "gate of tokens": (lambda m, x: x * torch.sigmoid(m.score(x)), True),
    "quotient by tokens": (lambda m, x: x / m.score(x).exp(), True),
    "tokens by it": (lambda m, x: m.score(x) / x, False),
    "gate of features": (lambda m, x: x * torch.sigmoid(m.other(x)), False),
    "mean over tokens": (lambda m, x: x.mean(1, keepdim=True).expand(-1, TOKENS, -1), True),
    "mean over features": (lambda m, x: x.mean(2, keepdim=True).expand(-1, -1, WIDTH), False),
    "attention": (lambda m, x: torch.softmax(m.other(x) @ m.other(x).mT, -1) @ x, True),
    "fused attention": (
        lambda m, x: F.scaled_dot_product_attention(m.other(x), m.other(x), x, is_causal=True),
        True,
    ),
    "masked": (lambda m, x: x.masked_fill(m.score(x) > 0, 0.0), True),
    "masked by one": (lambda m, x: x.masked_fill(m.score(x) > 0, 1.0), False),
    "chosen": (lambda m, x: torch.where(m.score(x) > 0, x, m.other(x)), True),
    "chosen by feature": (lambda m, x: torch.where(m.other(x) > 0, x, m.other(x)), False),
    "two axes exchanged": (lambda m, x: x.transpose(0, 1), True),
    "heads": (lambda m, x: x.view(BATCH, TOKENS, 2, 3).transpose(1, 2), True),
    "tokens joined": (lambda m, x: torch.cat([x, m.other(x)], 1)[:, :TOKENS], True),
    "tokens rolled": (lambda m, x: x.roll(1, 1), True),
    "relu": (lambda m, x: torch.relu(x), False),
    "soft": (lambda m, x: torch.softmax(x, -1), False),
    "soft over tokens": (lambda m, x: torch.softmax(x, 1), False),
}


def graph_of(forward: Callable[[Any, Tensor], Tensor]) -> Graph:
    torch.manual_seed(0)
    module = Compose(
        lambda m, x: m.head(forward(m, m.write(x)).reshape(BATCH, -1)),
        write=nn.Linear(5, WIDTH),
        other=nn.Linear(WIDTH, WIDTH),
        score=nn.Linear(WIDTH, 1),
        head=nn.Linear(TOKENS * WIDTH, 3),
    )
    return capture(perturb(module), (torch.randn(BATCH, TOKENS, 5),), dynamic={})


def values_of(graph: Graph) -> dict[fx.Node, Any]:
    seen: dict[fx.Node, Any] = {}
    Evaluator(graph.module, Float64(), lambda node, value: seen.__setitem__(node, value))(
        *graph.args
    )
    return seen


def times(matrix: Tensor, value: Tensor, ids: Tensor) -> Tensor:
    """The matrix times the features of a tensor, wherever its layout says that they lie."""
    ids = ids.expand(value.shape)
    result = torch.empty_like(value)
    moved = {
        int(f): value[ids == f] for f in ids.unique()
    }  # each in the same order of the other places
    for f in moved:
        result[ids == f] = sum(matrix[f, other] * moved[other] for other in moved)
    return result


@pytest.mark.parametrize("name", FORWARDS)
def test_a_matrix_of_the_features_goes_through(name: str) -> None:
    """op(T x) = T op(x), for whatever a value is said to be made of; and what is not said does not hold."""
    forward, expected = FORWARDS[name]
    graph = graph_of(forward)
    values = values_of(graph)
    matrix = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    carried = 0
    known: dict[fx.Node, Tensor] = {}
    write = next(node for node in graph.nodes if op_name(node) == "linear")
    known[write] = layout.channel(3, 2, WIDTH)
    for node in graph.nodes:
        if node.op != "call_function" or is_static(node) or not isinstance(values[node], Tensor):
            continue
        for source in [part for part in node.all_input_nodes if part in known]:
            try:
                ids = made_into(node, source, known[source], FEATURES)
            except LayoutError:
                continue
            if ids is None or bool((ids < 0).any()) or ids.unique().numel() != WIDTH:
                continue
            try:
                parts = made_of(node, ids, FEATURES)
            except LayoutError:
                continue
            if not parts:
                continue
            changed = dict(values)
            for part, inner in parts:
                changed[part] = times(matrix, values[part], inner)
            wanted = times(matrix, values[node], ids)
            torch.testing.assert_close(Float64().call(node, changed), wanted)
            known[node] = ids
            carried += 1
            break
    head = next(
        node for node in graph.nodes if op_name(node) == "linear" and shape_of(node)[-1] == 3
    )
    reached = any(node in known for node in _behind_forward(head))
    assert reached == expected
    assert carried or not expected


def _behind_forward(head: fx.Node) -> list[fx.Node]:
    """The reshape in front of the head and what it reads."""
    (flat,) = [part for part in head.all_input_nodes if not is_static(part)]
    return [part for part in flat.all_input_nodes if not is_static(part)]


def space(forward: Callable[[Any, Tensor], Tensor]) -> Space:
    graph = graph_of(forward)
    return space_of(next(node for node in graph.nodes if op_name(node) == "linear"), 2)


def test_a_number_that_is_added_holds_a_space() -> None:
    """x + 1 does not commute with a matrix: it was said to."""
    found = space(lambda m, x: m.other(x + 1.0))
    assert found.symmetry == POINTWISE
    assert [op_name(node) for node in found.held_by] == ["add"]


def test_features_in_two_orders() -> None:
    found = space(lambda m, x: m.other(x + x.roll(1, 2)))
    assert found.tangled
    assert found.symmetry == NONE


def test_what_attention_gives_is_of_the_space_of_its_values() -> None:
    found = space(lambda m, x: m.other(torch.softmax(m.other(x) @ m.other(x).mT, -1) @ x))
    assert "matmul" in {op_name(node) for node in found.members}
    assert {op_name(node) for node in found.readers} == {"linear"}
    assert found.symmetry == LINEAR


def test_a_stream_of_norms_as_inspect_shows_it() -> None:
    """Behind fold-affine a stream of LayerNorms leaves what center-stream and compress-stream use."""
    graph = capture(perturb(Encoder()), (torch.randn(2, 5, 8),))
    rows = list_spaces(graph)
    stream = max(rows, key=lambda row: row.tensors)
    assert stream.symmetry == "orthogonal maps that fix 1, positive scale, adding c * 1"
    assert stream.held_by == ("layer_norm norm1", "layer_norm norm2")
    assert "permutations" in list_spaces(graph, "canonicalize")[0].symmetry, "with gains"


def test_what_holds_a_space() -> None:
    found = space(
        lambda m, x: m.other(x) + m.other(torch.relu(x)) + m.other(x.mean(1, keepdim=True))
    )
    assert [op_name(node) for node in found.held_by] == ["relu"]
