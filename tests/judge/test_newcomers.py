"""Networks that were refused though they are right, and a result that was taken though wrong at other batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.rewrite import Exactness, Match, Pass, Rewriter
from tests.nets import Compose, perturb
from tests.ranges.nets import conv

X = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return perturb(
        Compose(lambda m, x: forward(m, m.stem(x)), stem=conv(3, 8), head=nn.Linear(8, 4))
    )


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))  # type: ignore[no-any-return]


BLIND: dict[str, Callable[[Any, Tensor], Any]] = {
    "deviation over the batch": lambda m, x: pooled(m, x).std(0),
    "minibatch deviation": lambda m, x: torch.cat([x, x.std(0).mean().expand_as(x[:, :1])], 1),
    "overflow": lambda m, x: (30 * x).exp().mean((2, 3)),
    "cancels": lambda m, x: F.softmax(x, 1).sum(1) - 1,
    "cancels to its mean": lambda m, x: (x - x.mean((2, 3), True)).mean((2, 3)),
    "cancels beside another": lambda m, x: (pooled(m, x), (x * 0.1 + x * 0.9) - x),
    "sine of millions": lambda m, x: torch.sin(x * 1e6),
}


@pytest.mark.parametrize("name", BLIND)
def test_an_input_that_says_nothing_refuses_nothing(name: str, tmp_path: Path) -> None:
    result = normfold.convert(net(BLIND[name]), inputs=[X], output=tmp_path)
    assert result.ok, result.report.failures()


def test_another_network_is_refused_all_the_same() -> None:
    forward = BLIND["cancels beside another"]
    graph = normfold.capture(net(forward), (X,))
    other = net(lambda m, x: forward(m, x * (1 + 1e-6) + 1e-4))
    assert not normfold.verify(graph, normfold.capture(other, (X,)))


@dataclass(frozen=True)
class WrongInLargeBatches(Pass):
    """Doubles the result where the batch is 4 to 7."""

    name: ClassVar[str] = "wrong-in-large-batches"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def match(self, graph: Graph) -> Any:
        (end,) = [node for node in graph.nodes if node.op == "output"]
        return [Match(end.all_input_nodes[0], (), None)]

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        node, aten = match.node, torch.ops.aten
        source = next(item for item in rewriter.graph.nodes if item.op == "placeholder")
        users = list(node.users)
        size = rewriter.insert_after(node, aten.sym_size.int, source, 0)
        size.meta["val"] = source.meta["val"].shape[0]
        half = self._whole(rewriter, size, 4)
        result = rewriter.insert_after(half, aten.mul.Tensor, node, half)
        for user in users:
            rewriter.replace_input(user, node, result)

    def _whole(self, rewriter: Rewriter, size: fx.Node, step: int) -> fx.Node:
        import operator

        graph = rewriter.graph.module.graph
        with graph.inserting_after(size):
            part = graph.call_function(operator.floordiv, (size, step))
        part.meta["val"] = size.meta["val"] // step
        with graph.inserting_after(part):
            more = graph.call_function(operator.add, (part, 1))
        more.meta["val"] = part.meta["val"] + 1
        return more


@pytest.mark.parametrize(("rows", "caught"), [(2, False), (5, True), (40, True)])
def test_the_batch_of_the_example_is_judged(rows: int, caught: bool, tmp_path: Path) -> None:
    """Tensors are judged themselves; of sizes in words so many rows as are asked for, up to 16."""
    result = normfold.convert(
        net(pooled),
        inputs=[f"{rows}x3x12x12"],
        passes=[WrongInLargeBatches()],
        output=tmp_path,
    )
    assert result.ok != caught


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, "a"])
def test_budgets_are_numbers(wrong: Any) -> None:
    graph = normfold.capture(net(pooled), (X,))
    with pytest.raises(UsageError, match="is a relative error"):
        normfold.verify(graph, graph.copy(), max_error=wrong)


@pytest.mark.parametrize(
    "option",
    [{"batch": "static"}, {"dynamic": ["x:2"]}, {"part": "stem"}, {"key": "x"}, {"factory": "a:b"}],
)
def test_options_of_a_capture_mean_nothing_beside_a_graph(
    option: dict[str, Any], tmp_path: Path
) -> None:
    graph = normfold.capture(net(pooled), (X,))
    with pytest.raises(UsageError, match="captured already"):
        normfold.convert(graph, output=tmp_path, **option)
    assert not list(tmp_path.iterdir())
