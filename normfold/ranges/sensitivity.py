"""How much each layer suffers from fewer bits: the divergence of the outputs when its weights alone have them.

Omega_i(k) = 1/2 (KL(p || q) + KL(q || p)), mean over the inputs, p the float network's softmax and q that with
layer i at k bits (Cai et al. 2020, section 3.3, made symmetric). It ranks layers; it does not estimate a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.evaluation import Domain, Evaluator
from normfold.ir.expressions import evaluate
from normfold.ir.grids import Rounding, to_grid
from normfold.ir.provenance import module_path
from normfold.ops.integers import weighted
from normfold.ops.linear import Linear
from normfold.progress import Listener, Progress, silent


@dataclass(frozen=True)
class Layer:
    """A linear op: its path, how many weights and spatial axes it has, and its harm by number of bits."""

    path: str
    node: fx.Node
    weights: int
    kernel: int
    harm: dict[int, float]


def sensitivities(
    graph: Graph,
    inputs: Sequence[Sequence[Tensor]],
    formats: Callable[[Layer], Sequence[int]],
    blocks: int = 0,
    say: Listener = silent,
) -> list[Layer]:
    """The harm of every linear op of a baked graph in each of its formats; a forward pass for each.

    Args:
        formats: bits of a layer; from 32 on it is left as it is.
        blocks: inputs that share a scale in matrices of 4 bits; 0: all.
    """
    linears = [linear for node in graph.nodes if (linear := weighted(node)) is not None]
    reference = [_outputs(graph, leaves) for leaves in inputs]
    found = []
    for at, linear in enumerate(linears):
        weight = evaluate(graph.module, linear.weight)
        path = module_path(linear.node) or linear.node.name
        layer = Layer(path, linear.node, weight.numel(), linear.kernel, {})
        for bits in formats(layer):
            if bits < 32:
                swapped = _Swapped(linear, _rounded(weight, linear, bits, blocks))
                pairs = zip(reference, inputs, strict=True)
                total = sum(divergence(_outputs(graph, x, swapped), mine) for mine, x in pairs)
                layer.harm[bits] = total / len(inputs)
        found.append(layer)
        say(Progress("measuring layers", at + 1, len(linears)))
    return found


def _rounded(weight: Tensor, linear: Linear, bits: int, blocks: int) -> Tensor:
    rounding: Rounding = "squant" if bits < 8 else "nearest"
    if bits == 4 and blocks and not linear.kernel:
        assert linear.in_axis is not None
        return to_grid(weight, linear.in_axis, bits, blocks, rounding).values
    return to_grid(weight, linear.out_axis, bits, rounding=rounding).values


def joint_harm(
    graph: Graph, lowered: Iterable[Graph], inputs: Sequence[Sequence[Tensor]]
) -> list[tuple[float, float]]:
    """Of whole networks against the float one: `divergence`, and points of answers that are others.

    Both are means over the inputs; an answer is the largest number along the last axis.
    """
    reference = [_outputs(graph, leaves) for leaves in inputs]
    found = []
    for network in lowered:
        pairs = [
            (_outputs(network, leaves), mine)
            for leaves, mine in zip(inputs, reference, strict=True)
        ]
        changed = sum(float((a.argmax(-1) != b.argmax(-1)).double().mean()) for a, b in pairs)
        total = sum(divergence(*pair) for pair in pairs)
        found.append((total / len(inputs), 100 * changed / len(inputs)))
    return found


def first_float(outputs: Sequence[Tensor]) -> Tensor:
    """The first floating-point output, the one that is compared."""
    return next(leaf for leaf in outputs if leaf.is_floating_point())


def divergence(mine: Tensor, theirs: Tensor) -> float:
    """Symmetric KL of two sets of logits over the last axis, mean over the others, in nats."""
    p, q = F.log_softmax(theirs.double(), -1), F.log_softmax(mine.double(), -1)
    gap = torch.where(p == q, 0.0, p - q)  # of two classes that both rule out, too
    return float((0.5 * (p.exp() - q.exp()) * gap).sum(-1).mean())


class _Swapped(Domain):
    """A graph's own numbers, but for the weight of one linear op."""

    def __init__(self, linear: Linear, weight: Tensor) -> None:
        self.linear, self.weight = linear, weight

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node is self.linear.node:
            at = self.linear.weight_position
            args = (*args[:at], self.weight.to(args[at]), *args[at + 1 :])
        return super().run(node, args, kwargs)


def _outputs(graph: Graph, leaves: Sequence[Tensor], domain: Domain | None = None) -> Tensor:
    """The first float output."""
    return first_float(Evaluator(graph.module, domain)(*leaves))
