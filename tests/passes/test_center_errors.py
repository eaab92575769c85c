"""A wrong conversion is noticed: errors are injected into center-stream, and the verdict has to fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import normfold
from normfold.ir.graph import op_name, shape_of
from normfold.job.presets import PRESETS
from normfold.rewrite.centering import Centering
from normfold.rewrite.centred_parameters import center_along, center_writer
from normfold.rewrite.rewriter import Rewriter
from normfold.spaces.writers import Writer, writer_of
from tests.passes.centred import TOKENS, D, Held, pre_norm

PRESET = PRESETS["rmsnorm"]
aten = torch.ops.aten


def scaled(m: Any, x: Tensor) -> Any:
    """Pre-LN blocks with LayerScale."""
    x = m.stem(x)
    x = x + m.a(x) * m.s1()
    return m.head(m.norm(x + m.b(x) * m.s2()))


def tied(m: Any, ids: Tensor) -> Any:
    x = m.table(ids)
    return F.linear(m.norm(x + m.a(x)), m.table.weight)


@pytest.fixture
def net() -> tuple[nn.Module, Tensor]:
    return pre_norm(scaled, s1=Held(D), s2=Held(D)), torch.randn(TOKENS)


@pytest.fixture
def table() -> tuple[nn.Module, Tensor]:
    return pre_norm(tied, table=nn.Embedding(11, D)), torch.randint(0, 11, (2, 5))


def fails(built: tuple[nn.Module, Tensor], pipeline: str = PRESET) -> None:
    """Assert that the verdict on the result fails, and that bisect names the pass."""
    module, x = built
    graph = normfold.capture(module, (x,))
    for verify in ("final", "each"):
        _, report = normfold.run(graph, pipeline, verify=verify)
        assert not report.ok
    culprit = normfold.bisect(graph, pipeline)
    assert culprit is not None
    assert culprit.spec.startswith("center-stream")
    assert culprit.before is not None
    assert culprit.before.ok
    assert not culprit.after.ok


def test_without_errors_the_verdict_passes(
    net: tuple[nn.Module, Tensor], table: tuple[nn.Module, Tensor]
) -> None:
    for module, x in (net, table):
        _, report = normfold.run(normfold.capture(module, (x,)), PRESET, verify="each")
        assert report.ok


@pytest.mark.parametrize("left", ["stem", "a.down", "b.down"])
def test_one_writer_left_uncentred(
    left: str, net: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(rewriter: Rewriter, node: fx.Node, groups: Tensor) -> fx.Node:
        writer = writer_of(node)
        assert writer is not None
        if left.replace(".", "_") in str(_leaf(writer.weight)):
            return writer.weight
        return center_writer(rewriter, node, groups)

    monkeypatch.setattr("normfold.passes.center_stream.center_writer", forgetful)
    fails(net)


def _leaf(node: fx.Node) -> str:
    """Names of the parameters behind a weight."""
    if node.op == "get_attr":
        return str(node.target).replace(".", "_")
    return " ".join(_leaf(source) for source in node.all_input_nodes)


def test_a_bias_left_uncentred(
    net: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(rewriter: Rewriter, value: fx.Node, *more: Any) -> fx.Node:
        return value if len(shape_of(value)) == 1 else center_along(rewriter, value, *more)

    monkeypatch.setattr("normfold.rewrite.centred_parameters.center_along", forgetful)
    fails(net)


def test_eps_changed(net: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as much: constant rows show it where random ones hide it."""
    insert = Rewriter.insert_before

    def careless(self: Rewriter, anchor: fx.Node, target: Any, *args: Any) -> fx.Node:
        if target is aten.rms_norm.default:
            args = (*args[:3], 10 * args[3])
        return insert(self, anchor, target, *args)

    monkeypatch.setattr(Rewriter, "insert_before", careless)
    fails(net)


def test_layer_scale_merged_after_centring(
    net: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """s (P W) is not P (s W): centred as if the scale were not in the weight already."""

    def hasty(rewriter: Rewriter, node: fx.Node, groups: Tensor) -> fx.Node:
        writer = writer_of(node)
        assert writer is not None
        scale = _layer_scale(writer)
        if scale is None:
            return center_writer(rewriter, node, groups)
        column = rewriter.expression(aten.reshape.default, scale, [-1, 1])
        plain = rewriter.expression(aten.div.Tensor, writer.weight, column)
        rewriter.set_argument(node, writer.weight_position, plain)
        center_writer(rewriter, node, groups)
        late: fx.Node = rewriter.expression(
            aten.mul.Tensor, node.args[writer.weight_position], column
        )
        rewriter.set_argument(node, writer.weight_position, late)
        return late

    monkeypatch.setattr("normfold.passes.center_stream.center_writer", hasty)
    fails(net)


def _layer_scale(writer: Writer) -> fx.Node | None:
    graph: fx.Graph = writer.node.graph
    if "down" not in _leaf(writer.weight):
        return None
    name = "s1" if "a_down" in _leaf(writer.weight) else "s2"
    found: fx.Node = next(node for node in graph.nodes if str(node.target) == f"{name}.value")
    return found


def test_a_tied_head_shared_wrongly(
    table: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is centred for the stream, and the head reads the centred one."""

    def greedy(rewriter: Rewriter, node: fx.Node, groups: Tensor) -> fx.Node:
        writer = writer_of(node)
        assert writer is not None
        result = center_writer(rewriter, node, groups)
        if op_name(node) == "embedding":
            for user in list(writer.weight.users):
                if user.op == "call_function" and op_name(user) == "linear":
                    user.replace_input_with(writer.weight, result)
        return result

    monkeypatch.setattr("normfold.passes.center_stream.center_writer", greedy)
    fails(table, PRESET.replace("center-stream", "center-stream{untie=true}"))


def test_a_tied_head_that_is_not_corrected(
    table: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rank-one term left out, the logits are off by the means of the table's rows."""
    monkeypatch.setattr(
        "normfold.passes.center_stream.correct_head",
        lambda rewriter, head, table, centred: head.replace_input_with(table, centred),
    )
    fails(table, PRESET.replace("center-stream", "center-stream{correct-heads=true}"))


def test_a_reader_that_sees_the_mean_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sigmoid on the stream, taken for an op that does not mind."""

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.a(x)
        return m.head(m.norm(x)) + torch.sigmoid(x)[..., :3]

    find = Centering.find_reader

    def blind(self: Centering, member: Any, user: fx.Node, position: int) -> None:
        if op_name(user) != "sigmoid":
            find(self, member, user, position)

    monkeypatch.setattr(Centering, "find_reader", blind)
    fails((pre_norm(wiring), torch.randn(TOKENS)))
