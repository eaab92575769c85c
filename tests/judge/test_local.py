"""The certificate in parts: what a cut proves, what it forgets, and where a difference begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from examples.gpt import GPT
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Evaluator, Float64
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name
from normfold.ir.provenance import module_path
from normfold.judge import certificate
from normfold.judge.certificate import certify
from normfold.judge.local import _separate, certify_parts
from normfold.rewrite import Rewriter, parse, run_pipeline
from tests.judge.mutants import mutants
from tests.judge.test_certificate import CENTRED, FOLD, NETS, rewritten
from tests.nets import perturb
from tests.passes.centred import Branch, network

aten = torch.ops.aten


@pytest.mark.parametrize("name", NETS)
def test_exact_rewrites_are_identities_part_by_part(name: str) -> None:
    graph, result = rewritten(name)
    found = certify_parts(graph, result)
    assert found.state == "certified", found
    assert found.evaluations == 6, "in parts, and never as a whole"
    assert found.parts >= 1
    assert set(found.covered) == set(result.sites)
    assert f"in {found.parts} parts of at most {found.largest} ops" in found.words


def blocks(count: int) -> tuple[Graph, Graph]:
    """Pre-norm blocks; the result keeps their stream without its mean."""
    torch.manual_seed(0)

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for norm, branch in zip(m.norms, m.branches, strict=True):
            x = x + branch(norm(x))
        return m.head(m.last(x))

    net = network(
        wiring,
        stem=nn.Linear(6, 6),
        norms=nn.ModuleList(nn.LayerNorm(6) for _ in range(count)),
        branches=nn.ModuleList(Branch() for _ in range(count)),
        last=nn.LayerNorm(6),
        head=nn.Linear(6, 3),
    )
    graph = capture(perturb(net), (torch.randn(2, 5, 6),))
    return graph, run_pipeline(graph, parse(CENTRED))[0]


def test_a_stream_without_its_mean_is_cut_too() -> None:
    few, many = (certify_parts(*blocks(count)) for count in (2, 5))
    assert few
    assert many
    assert many.parts > few.parts
    assert many.largest == few.largest, "the parts of a deeper network are no larger"


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: rewritten("residual"), lambda: blocks(2)])
def test_no_cut_hides_a_fault(make: Callable[[], tuple[Graph, Graph]]) -> None:
    graph, result = make()
    (x,) = graph.args
    (wanted,) = Evaluator(graph.module, Float64())(x)
    caught = 0
    for fault, wrong in list(mutants(result))[::2]:
        (found,) = Evaluator(wrong.module, Float64())(x)
        error = float(((found - wanted).abs().max() / wanted.abs().max()).nan_to_num(torch.inf))
        state = certify_parts(graph, wrong, primes=1).state
        assert state == ("certified" if error < 1e-12 else "failed"), (fault, error)
        caught += state == "failed"
    assert caught >= 20


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_difference_is_located(place: int) -> None:
    graph, result = blocks(5)
    module = f"branches.{place}"
    writer = _last(result, "linear", module)
    Rewriter(result).set_argument(writer, 2, None)
    result.recompile()
    for found in (certify(graph, result), certify_parts(graph, result)):
        assert found.state == "failed"
        why = found.outputs[0].why
        assert f"it begins at `linear`, {module}" in why
        assert "centred.py:" in why or "nets.py:" in why


def _last(graph: Graph, op: str, path: str) -> fx.Node:
    found = [
        n
        for n in graph.nodes
        if op_name(n) == op and not is_static(n) and module_path(n).startswith(path)
    ]
    return found[-1]


# -- what networks choose by value ------------------------------------------------------------------


class Chosen(nn.Module):
    """The three best of all places, and what is made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.scores, self.head = nn.Conv2d(4, 1, 1), nn.Linear(4, 3)
        self.last = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Any:
        x = F.silu(self.norm(self.conv(x)))
        best, places = self.scores(x).flatten(1).topk(3)
        tokens = x.flatten(2).transpose(1, 2)
        chosen = tokens.gather(1, places[..., None].expand(-1, -1, 4)).mean(1)
        return best, self.last(self.head(chosen))


def chosen() -> tuple[Graph, Graph]:
    torch.manual_seed(0)
    graph = capture(perturb(Chosen()), (torch.randn(2, 3, 6, 5),))
    return graph, run_pipeline(graph, parse(FOLD))[0]


def test_behind_topk() -> None:
    graph, result = chosen()
    for found in (certify(graph, result), certify_parts(graph, result)):
        assert found.state == "certified"
        assert "topk" in {item.op for item in found.uncovered}


@pytest.mark.parametrize(("path", "wrong"), [("norm", {0, 1}), ("scores", {0}), ("last", {1})])
def test_a_fault_around_topk(path: str, wrong: set[int]) -> None:
    """One that moves the scores alone changes the places too: of the other output nothing is known then."""
    graph, result = chosen()
    broken = {"norm": "conv", "scores": "scores", "last": "head"}[path]
    node = next(
        n
        for n in result.nodes
        if op_name(n) in ("conv2d", "linear")
        and not is_static(n)
        and broken in str(n.meta["nn_module_stack"])
    )
    Rewriter(result).set_argument(node, 2, None)
    result.recompile()
    found = certify(graph, result)
    states = [output.state for output in found.outputs]
    assert {index for index, state in enumerate(states) if state == "differs"} == wrong, (
        found.outputs
    )
    if path == "scores":
        assert states[1] == "unknown"
        assert "`topk`" in found.outputs[1].why
        assert "decides on other numbers" in found.outputs[1].why


def _around(graph: fx.Graph, node: fx.Node, before: Any, after: Any, by: Any) -> None:
    """Put ops in front of topk and behind its scores."""
    (scores, *_) = node.args
    assert isinstance(scores, fx.Node)
    with graph.inserting_before(node):
        changed = graph.call_function(before, (scores, by))
    changed.meta = dict(scores.meta)
    node.replace_input_with(scores, changed)
    (best,) = [user for user in node.users if user.args[1] == 0]
    with graph.inserting_after(best):
        back = graph.call_function(after, (best, by))
    back.meta = dict(best.meta)
    best.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


@pytest.mark.parametrize(
    ("before", "after"), [(aten.mul.Tensor, aten.div.Tensor), (aten.add.Tensor, aten.sub.Tensor)]
)
def test_an_order_that_stays_is_no_fault(before: Any, after: Any) -> None:
    """A scale and a shift in front of topk, taken back behind it: right, and not known to be."""
    graph, result = chosen()
    (node,) = [n for n in result.nodes if op_name(n) == "topk"]
    _around(result.module.graph, node, before, after, 2.0)
    result.recompile()
    found = certify(graph, result)
    assert [output.state for output in found.outputs] == ["unknown", "unknown"]
    assert all("decides on other numbers" in output.why for output in found.outputs)


def test_an_order_that_stays_by_chance_is_not_equal() -> None:
    """A small integer for each place leaves the order of elements alone, and not that of the real numbers."""
    graph, result = chosen()
    (node,) = [n for n in result.nodes if op_name(n) == "topk"]
    scores = node.args[0]
    assert isinstance(scores, fx.Node)
    more = Rewriter(result).constant(torch.arange(12.0), "places")
    with result.module.graph.inserting_before(node):
        changed = result.module.graph.call_function(aten.add.Tensor, (scores, more))
    changed.meta = dict(scores.meta)
    node.replace_input_with(scores, changed)
    result.recompile()
    found = certify(graph, result)
    assert [output.state for output in found.outputs] == ["differs", "unknown"]


def test_another_choice_is_not_equal() -> None:
    graph, result = chosen()
    (node,) = [n for n in result.nodes if op_name(n) == "topk"]
    Rewriter(result).set_argument(node, 3, False)  # the three worst
    result.recompile()
    assert {output.state for output in certify(graph, result).outputs} == {"unknown"}


def test_two_draws_are_two() -> None:
    net = network(
        lambda m, x: F.dropout(m.a(x), 0.5, True) - F.dropout(m.a(x), 0.5, True), a=nn.Linear(6, 6)
    )
    graph = capture(net, (torch.randn(2, 5, 6),))
    assert certify_parts(graph, graph.copy())
    result = graph.copy()
    (node,) = [n for n in result.nodes if op_name(n) == "sub"]
    node.args = (node.args[0], node.args[0])
    result.recompile()
    assert certify_parts(graph, result).outputs[0].state == "unknown"


# -- what a cut forgets -----------------------------------------------------------------------------


def test_signs_are_kept() -> None:
    net = network(lambda m, x: m.b(F.relu(m.a(x)).abs()), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    graph = capture(perturb(net), (torch.randn(2, 5, 6),))
    result = graph.copy()
    (node,) = [n for n in result.nodes if op_name(n) == "abs"]
    Rewriter(result).replace(node, node.args[0])  # type: ignore[arg-type]
    result.recompile()
    found = certify_parts(graph, result)
    assert found.state == "certified"
    assert found.evaluations == 6


def test_what_a_cut_forgets_is_found_by_the_whole() -> None:
    """The rows of a softmax sum to one, and those of any other positive numbers do not."""

    def wiring(m: Any, x: Tensor) -> Any:
        rows = m.a(x).softmax(-1)
        return rows, m.b(x) * rows.sum(-1, keepdim=True)

    graph = capture(
        perturb(network(wiring, a=nn.Linear(6, 6), b=nn.Linear(6, 6))), (torch.randn(2, 5, 6),)
    )
    result = graph.copy()
    (node,) = [n for n in result.nodes if op_name(n) == "mul" and not is_static(n)]
    Rewriter(result).replace(node, node.args[0])  # type: ignore[arg-type]
    result.recompile()
    found = certify_parts(graph, result)
    assert found.state == "certified"
    assert found.evaluations == 12
    assert found.parts == 0


def test_without_common_names_the_whole_is_one_part() -> None:
    graph, result = rewritten("residual")
    for index, node in enumerate(result.nodes):
        if node.op == "call_function":
            node.name = f"other_{index}"
    found = certify_parts(graph, result)
    assert found.state == "certified"
    assert found.parts == 1


def test_names_in_another_order() -> None:
    graph, result = rewritten("repvgg")
    first, second, *_ = [n for n in result.nodes if op_name(n) == "conv2d"]
    first.name, second.name = "swapped", first.name
    assert certify_parts(graph, result).state == "certified"


def test_a_large_network_is_compared_in_parts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, result = rewritten("residual")
    assert certify(graph, result).parts == 0
    monkeypatch.setattr(certificate, "LARGE", 10)
    assert certify(graph, result).parts > 0


def test_a_baked_result_is_refused() -> None:
    graph, result = rewritten("residual")
    baked, _ = run_pipeline(result, parse("bake"))
    with pytest.raises(ValueError, match="un-baked"):
        certify_parts(graph, baked)


def test_weights_are_freed_behind_each_use() -> None:
    """Of a tied table, too, nothing is kept between the first layer and the last one."""
    graph = capture(GPT(31, 12, 24, 2, 2).eval(), (torch.zeros(2, 7, dtype=torch.int64),))
    steps, names = _separate(graph.module.graph)
    alive, most, last = set[fx.Node](), 0, {}
    for node in steps.nodes:
        last.update(dict.fromkeys(node.all_input_nodes, node))
    tables = []
    for node in steps.nodes:
        alive.add(node)
        most = max(most, sum(other not in names for other in alive))
        alive -= {other for other in alive if last.get(other) is node}
        if node.op == "get_attr" and tuple(node.meta["val"].shape) == (31, 24):
            tables.append(node)
    assert len(tables) == 2
    assert most <= 3, "the weight, the bias and an expression of one op"
