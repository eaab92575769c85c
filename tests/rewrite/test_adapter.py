"""Plain fx passes in a pipeline: what they add has shapes, what they may have made untrue is dropped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassResult

from normfold.errors import PassError
from normfold.ir import Graph, capture
from normfold.ir.sites import affine_sites
from normfold.ir.statistics import statistics_of
from normfold.rewrite import FxPass, parse, run_pipeline
from normfold.testing.shapes import untrue_shapes
from tests.nets import Residual, perturb


def graph() -> Graph:
    return capture(perturb(Residual()), (torch.randn(2, 4, 5, 6),))


def double_relu(module: fx.GraphModule) -> PassResult:
    """Replace relu by relu6: changes the function, so that the result can be seen."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            node.target = torch.ops.aten.relu6.default
    return PassResult(module, True)


def test_an_fx_pass_runs_in_a_pipeline() -> None:
    before = graph()
    after, reports = run_pipeline(
        before, [*parse("canonicalize"), FxPass(double_relu), *parse("fold-affine,bake")]
    )
    assert reports[1].modified
    assert reports[1].spec == "fx-pass{function=double_relu}"
    x = before.args[0] * 100
    assert float(after(x).max()) == 6.0
    assert float(before(x).max()) > 6.0


@pytest.mark.parametrize("function", [lambda m: None, lambda m: m, lambda m: PassResult(m, False)])
def test_an_fx_pass_that_changes_nothing(function: Any) -> None:
    _, reports = run_pipeline(graph(), [FxPass(function)])
    assert not reports[0].modified


@pytest.mark.parametrize("copied", [False, True])
def test_what_an_fx_pass_may_have_made_untrue_is_dropped(copied: bool) -> None:
    def shifted(module: fx.GraphModule) -> fx.GraphModule:
        double_relu(module)
        return copy.deepcopy(module) if copied else module

    before, _ = run_pipeline(graph(), parse("canonicalize"))
    assert any(statistics_of(node) for node in before.nodes)
    after, _ = run_pipeline(before, [FxPass(shifted)])
    assert not any(statistics_of(node) for node in after.nodes)
    sites = [site for node in before.nodes for site in affine_sites(node)]
    assert [site for node in after.nodes for site in affine_sites(node)] == sites
    same, _ = run_pipeline(before, [FxPass(copy.deepcopy)])
    assert any(statistics_of(node) for node in same.nodes)


def with_a_factor(module: fx.GraphModule) -> None:
    """Insert ``relu(x) * exp(g)`` the way fx passes do, with no word of shapes."""
    module.register_buffer("gain", torch.full((4, 1, 1), 0.5))
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.relu.default:
            with module.graph.inserting_after(node):
                gain = module.graph.get_attr("gain")
            with module.graph.inserting_after(gain):
                factor = module.graph.call_function(torch.ops.aten.exp.default, (gain,))
            with module.graph.inserting_after(factor):
                new = module.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
            node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)


def test_calls_that_an_fx_pass_adds_have_shapes() -> None:
    """And so its expressions are baked as those of other passes are."""
    before = graph()
    after, reports = run_pipeline(before, [*parse("canonicalize"), FxPass(with_a_factor)])
    assert reports[1].modified
    assert untrue_shapes(after) == []
    baked, _ = run_pipeline(after, parse("fold-affine,restore,bake"))
    assert not any(node.target is torch.ops.aten.exp.default for node in baked.nodes)


def test_a_module_that_is_traced_anew_has_shapes() -> None:
    before, _ = run_pipeline(graph(), parse("canonicalize"))
    after, _ = run_pipeline(before, [FxPass(fx.symbolic_trace), *parse("fold-affine,bake")])
    assert untrue_shapes(after) == []
    x = before.args[0]
    assert torch.allclose(after(x), before(x), atol=1e-5)


def test_an_fx_pass_that_adds_what_cannot_be_called() -> None:
    def wrong(module: fx.GraphModule) -> None:
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        value = output.all_input_nodes[0]
        with module.graph.inserting_before(output):
            new = module.graph.call_function(torch.ops.aten.permute.default, (value, [7]))
        output.replace_input_with(value, new)

    with pytest.raises(PassError, match="left a graph that does not hold together"):
        run_pipeline(graph(), [FxPass(wrong)])


def test_an_fx_pass_must_return_a_graph_module() -> None:
    with pytest.raises(PassError, match="must return a GraphModule"):
        run_pipeline(graph(), [FxPass(lambda module: nn.Identity())])
