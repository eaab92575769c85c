"""How much each layer suffers from fewer bits: the divergence of the outputs when its weights alone have them.

Omega_i(k) = 1/2 (KL(p || q) + KL(q || p)), mean over the inputs, p the float network's softmax and q that with
layer i at k bits (Cai et al. 2020, section 3.3, made symmetric). It ranks layers; it does not estimate a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.graph import Graph
from normfold.graph.expressions import evaluate
from normfold.graph.grids import Rounding, to_grid
from normfold.graph.integers import weighted
from normfold.graph.ops import Linear
from normfold.graph.provenance import module_path
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
    runner = _Swapped(graph.module)
    reference = [runner.outputs(leaves) for leaves in inputs]
    found = []
    for at, linear in enumerate(linears):
        weight = evaluate(graph.module, linear.weight)
        path = module_path(linear.node) or linear.node.name
        layer = Layer(path, linear.node, weight.numel(), linear.kernel, {})
        for bits in formats(layer):
            if bits < 32:
                runner.swap(linear, _rounded(weight, linear, bits, blocks))
                pairs = zip(reference, (runner.outputs(leaves) for leaves in inputs), strict=True)
                total = sum(divergence(mine, theirs) for theirs, mine in pairs)
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


def joint_divergence(graph: Graph, lowered: Graph, inputs: Sequence[Sequence[Tensor]]) -> float:
    """`divergence` of a whole network from the float one, mean over the inputs."""
    mine, theirs = _Swapped(lowered.module), _Swapped(graph.module)
    pairs = ((mine.outputs(leaves), theirs.outputs(leaves)) for leaves in inputs)
    return sum(divergence(*pair) for pair in pairs) / len(inputs)


def first_float(outputs: Sequence[Tensor]) -> Tensor:
    """The first floating-point output, the one that is compared."""
    return next(leaf for leaf in outputs if leaf.is_floating_point())


def divergence(mine: Tensor, theirs: Tensor) -> float:
    """Symmetric KL of two sets of logits over the last axis, mean over the others, in nats."""
    p, q = F.log_softmax(theirs.double(), -1), F.log_softmax(mine.double(), -1)
    gap = p - q
    return float((0.5 * (p.exp() - q.exp()) * gap).sum(-1).mean())


class _Swapped(fx.Interpreter):
    """Runs a graph with the weight of one linear op replaced."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.linear: Linear | None = None
        self.weight: Tensor | None = None

    def swap(self, linear: Linear, weight: Tensor) -> None:
        self.linear, self.weight = linear, weight

    @torch.no_grad()
    def outputs(self, leaves: Sequence[Tensor]) -> Tensor:
        """The first float output."""
        return first_float(pytree.tree_leaves(self.run(*leaves, enable_io_processing=False)))

    def run_node(self, n: fx.Node) -> Any:
        if self.linear is None or n is not self.linear.node:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        changed = list(args)
        assert self.weight is not None
        changed[self.linear.weight_position] = self.weight.to(args[self.linear.weight_position])
        return self.call_function(n.target, tuple(changed), kwargs)
