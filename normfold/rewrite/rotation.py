"""A basis of as many numbers: a Hadamard rotation with random signs, and the streams that may be stored in it.

With h the largest divisor of d for which a Hadamard matrix H is known here and s random signs,

    y = x M / sqrt(h),   M = diag(s) (H (x) 1_(d/h))          M M' = h 1

Every feature of y is a sum of h features of x with random signs: an outlier channel is spread over that many.
|y| = |x|, so that an RMSNorm without gain is the same op (Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456). H is
made of those of order 2 and of Paley's (1933), which gives all orders that usual widths need (768 = 12 * 64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, is_symbolic, shape_of
from normfold.ops import groups as grouping
from normfold.ops.integers import StaysFloat
from normfold.ops.reads import is_tuple
from normfold.ops.table import is_norm
from normfold.rewrite.basis import Basis, Emit, Name
from normfold.rewrite.rewriter import Rewriter
from normfold.spaces.carriers import IN_ORDER
from normfold.spaces.traversal import Member, Traversal

aten = torch.ops.aten


def order(width: int) -> int:
    """The largest divisor of a width for which there is a matrix."""
    return max(size for size in range(1, width + 1) if width % size == 0 and _known(size))


def matrix(width: int, seed: int) -> Tensor:
    """M: (width, width) of -1, 0 and 1, float32."""
    size = order(width)
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (width, 1), generator=random) * 2.0 - 1.0
    return signs * torch.kron(hadamard(size), torch.eye(width // size))


def hadamard(size: int) -> Tensor:
    """H: (size, size) of -1 and 1, H H' = size, for every size that `order` gives."""
    if size == 1:
        return torch.ones(1, 1)
    if _prime(size - 1) and size % 4 == 0:  # I + S, S skew
        return torch.eye(size) + _conference(size - 1, skew=True)
    half = size // 2
    if _prime(half - 1) and half % 4 == 2 and half > 2:  # of a symmetric conference matrix
        mixed, same = (
            torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
            torch.tensor([[1.0, -1.0], [-1.0, -1.0]]),
        )
        return torch.kron(_conference(half - 1, skew=False), mixed) + torch.kron(
            torch.eye(half), same
        )
    return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard(half))


def _known(size: int) -> bool:
    if size <= 2:
        return True
    paley = _prime(size - 1) or (size // 2 % 4 == 2 and _prime(size // 2 - 1))
    return size % 4 == 0 and (paley or _known(size // 2))


def _prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, math.isqrt(number) + 1))


def _conference(q: int, skew: bool) -> Tensor:
    """C: (q + 1, q + 1), 0 on the diagonal, C C' = q, of the quadratic residues modulo a prime."""
    squares = {n * n % q for n in range(1, q)}
    residue = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, q)])
    at = torch.arange(q)
    found = torch.ones(q + 1, q + 1)
    found[0, 0] = 0
    found[1:, 1:] = residue[(at[:, None] - at[None, :]) % q]
    if skew:
        found[1:, 0] = -1
    return found


@dataclass(frozen=True)
class Rotation(Basis):
    """The basis for one width; ``nodes`` are those of M by type, which are there when the first op is written."""

    name: Name = field(default="orthonormal", init=False)
    seed: int
    nodes: dict[torch.dtype, fx.Node] = field(default_factory=dict, init=False, compare=False)

    @property
    def kept(self) -> int:
        return self.width

    @property
    def factor(self) -> float:
        return 1.0

    def prepare(self, rewriter: Rewriter, dtypes: Sequence[torch.dtype]) -> None:
        """Store M in every type that something of it is in."""
        for dtype in dtypes:
            stored = rewriter.constant(matrix(self.width, self.seed).to(dtype), "rotation")
            self.nodes.setdefault(dtype, stored)

    def narrow(self, emit: Emit, x: fx.Node, axis: int) -> fx.Node:
        return self._times(emit, x, axis, turned=False)

    def widen(self, emit: Emit, y: fx.Node, axis: int, factor: float) -> fx.Node:
        return self._times(emit, y, axis, turned=True)

    def read(self, emit: Emit, weight: fx.Node, axis: int, factor: float) -> fx.Node:
        return self._times(emit, weight, axis, turned=False)

    def norm(self, emit: Emit, y: fx.Node, eps: float, dtype: torch.dtype) -> fx.Node:
        return emit(aten.rms_norm.default, y, [self.width], None, eps)

    def _times(self, emit: Emit, x: fx.Node, axis: int, turned: bool) -> fx.Node:
        """x M, or x M', along an axis, over sqrt(h)."""
        rank = len(x.meta["val"].shape)
        last = axis % rank == rank - 1
        m = self.nodes[x.meta["val"].dtype]
        if turned:
            m = emit(aten.t.default, m)
        if not last:
            x = emit(aten.transpose.int, x, axis, rank - 1)
        product = emit(aten.matmul.default, x, m)
        if not is_static(product):
            facts.put(product, StaysFloat())
        result = emit(aten.mul.Tensor, product, order(self.width) ** -0.5)
        return result if last else emit(aten.transpose.int, result, axis, rank - 1)


class _Streams(Traversal[Member]):
    """What RMSNorms read, and what that is made of."""

    def find_sources(self, member: Member) -> None:
        if not is_tuple(member.node):
            super().find_sources(member)

    def is_read(self, member: Member) -> bool:
        return False


def rotatable(graph: Graph) -> dict[fx.Node, Tensor]:
    """Groups of the features of tensors that RMSNorms without gain read, and of what those are sums of."""
    streams = _Streams(IN_ORDER, Member)
    for node in graph.nodes:
        if is_norm(node, "rms-norm") and not is_static(node) and _bare(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            rank, width = len(shape_of(source)), shape_of(source)[-1]
            streams.member(source, grouping.over_last(rank, [width]))
    streams.follow()
    found: dict[fx.Node, Tensor] = {}
    for member in streams.members:
        if member.node.op == "call_function" and not is_tuple(member.node):
            found.setdefault(member.node, member.ids)
    return found


def _bare(norm: fx.Node) -> bool:
    sizes = argument(norm, "normalized_shape")
    if len(sizes) != 1 or is_symbolic(norm.meta["val"].shape[-1]) or argument(norm, "eps") is None:
        return False
    return argument(norm, "weight") is None and order(int(sizes[0])) > 1
