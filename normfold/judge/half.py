"""Run a graph as a runtime would that computes everything in the types of the graph.

torch's own kernels on the CPU sum the squares of a half-precision norm in float32, and so does onnxruntime: what
overflows on a GPU passes there. Here every square is rounded to its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.graph.graph import argument, op_name
from normfold.graph.precision import RoundedInterpreter
from normfold.graph.squares import summed

# A value below it stands for minus infinity, as in logits that are masked; what stands for it in half precision
# is below the other.
_MASKED, _STANDS_FOR = -1e8, -1e4

_HALF = (torch.float16, torch.bfloat16)
_STEPWISE = {"layer_norm", "rms_norm", "group_norm", "instance_norm"}


class StrictInterpreter(RoundedInterpreter):
    """Runs a GraphModule; norms in half precision go step by step."""

    def run_node(self, n: fx.Node) -> Any:
        x = self.env.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        if n.op != "call_function" or not isinstance(x, Tensor) or x.dtype not in _HALF:
            return super().run_node(n)
        found = summed(n, x)
        if found is None:
            return super().run_node(n)
        centred, dims = found
        squares = centred * centred
        if op_name(n) in _STEPWISE:
            return self._norm(n, centred, squares.mean(dims, keepdim=True), x.shape)
        lost = torch.isinf(squares).sum(dims) > 0
        leaves, tree = pytree.tree_flatten(super().run_node(n))
        leaves[0] = leaves[0].masked_fill(lost.reshape(leaves[0].shape), torch.inf)
        return pytree.tree_unflatten(leaves, tree)

    @torch.no_grad()
    def __call__(self, leaves: Sequence[Any]) -> list[Tensor]:
        """Flat outputs for flat inputs."""
        results = pytree.tree_leaves(self.run(*leaves, enable_io_processing=False))
        return [leaf for leaf in results if isinstance(leaf, Tensor)]

    def _norm(self, node: fx.Node, x: Tensor, power: Tensor, shape: torch.Size) -> Tensor:
        eps = argument(node, "eps")
        power = power + (torch.finfo(x.dtype).eps if eps is None else eps)
        x = (x / power.sqrt()).reshape(shape)
        per_channel = op_name(node) in ("group_norm", "instance_norm")
        for part, apply in (("weight", torch.mul), ("bias", torch.add)):
            source = argument(node, part)  # an RMS norm has no bias
            if source is not None:
                value = self.env[source]
                x = apply(x, value.reshape(-1, *[1] * (len(shape) - 2)) if per_channel else value)
        return x


def distance(reference: Tensor, result: Tensor) -> tuple[float, float]:
    """|result - reference| / |reference|, or the share of integers that differ; and the largest difference.

    Infinite where one of them is NaN or infinite and the other is not.
    """
    if reference.is_complex():
        reference, result = torch.view_as_real(reference), torch.view_as_real(result)
    if not reference.is_floating_point():
        wrong = float((reference != result).double().mean()) if reference.numel() else 0.0
        return wrong, wrong
    expected, got = reference.double(), result.double()
    masked = (expected <= _MASKED) & (got <= _STANDS_FOR)
    same = (expected == got) | expected.isnan() | masked  # the original's own NaN is not judged
    difference, known = (expected - got)[~same], expected[expected.isfinite() & ~masked]
    if not bool(difference.isfinite().all()):
        return float("inf"), float("inf")
    error = float(difference.norm()) / (float(known.norm()) or 1.0)
    return error, float(difference.abs().max()) if difference.numel() else 0.0
