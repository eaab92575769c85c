"""quantize-tables: tables of embeddings become integers and scales, and heads that read the same table.

E[ids]  ->  (s round(E / s))[ids]        s = max|E| / (2^(bits - 1) - 1) over a row, or a block of it

x E'  ->  x (s round(E / s))'            the head of a language model that is tied to its table: stored once

Rows are not sums, in which errors cancel: in 4 bits a table costs many times as much as all other weights do
(`benchmarks/int4.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import fx

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.expressions import evaluate, is_static
from normfold.ir.grids import limits, scale_of
from normfold.ops.integer_ops import on_grid
from normfold.ops.integers import quantized_weight
from normfold.ops.linear import Linear, linear_of
from normfold.ops.table import row_of
from normfold.rewrite import Between, Decline, Effect, Exactness, Match, Pass, Reason, Rewriter

_SMALLEST = 16  # of the blocks that kernels have


@dataclass(frozen=True)
class QuantizeTables(Pass):
    """Put tables of embeddings on grids, and heads that are tied to them. `bake` behind it stores integers.

    Options:
        bits: 4 to 8. Below 8 they are stored in 8 all the same, but for 4 in blocks.
        block: features that share a scale (a power of two from 16, halved until it divides a row); 0: all of a
            row, as where none divides it.

    Exact:    no: values are rounded.
    Declines: on-a-grid.
    """

    name: ClassVar[str] = "quantize-tables"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    effects: ClassVar[frozenset[Effect]] = frozenset({Effect.STORES_INTEGERS})

    bits: Annotated[int, Between(4, 8)] = 8
    block: Annotated[int, Between(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block and (self.block < _SMALLEST or self.block.bit_count() > 1):
            raise UsageError(
                f"option `block` of pass `{self.name}` is not a block that kernels have",
                found=f"{self.block}",
                hint=f"a power of two from {_SMALLEST}, or 0 for one scale per row",
            )

    def match(self, graph: Graph) -> Iterable[Match]:
        for node in graph.nodes:
            table = linear_of(node) if row_of(node).lookup and not is_static(node) else None
            if table is not None:
                yield Match(node, (), table)

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        if quantized_weight(match.plan):
            return Decline(Reason.ON_A_GRID, match.node)
        return match.planned(match.plan, f"{self.bits} bits")

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        weight = match.plan.weight
        block = self.block
        while block and weight.meta["val"].shape[1] % block:
            block = block // 2 if block > _SMALLEST else 0
        low, high = limits(self.bits, block)
        axis = 1 if block else 0
        exact, dtype = evaluate(rewriter.graph.module, weight), weight.meta["val"].dtype
        name = str(weight.target) if weight.op == "get_attr" else match.node.name
        found = scale_of(exact, axis, self.bits, block, clip=True, dtype=dtype)
        scale = rewriter.attribute(f"{name}_scale", found)
        values = rewriter.expression(
            on_grid, weight, scale, None, axis, block, low, high, "nearest"
        )
        heads = list(_heads(weight))
        for reader in [*_lookups(weight), *heads]:
            rewriter.set_argument(reader.node, reader.weight_position, values, same=True)
        also = f", {len(heads)} products with it too" if heads else ""
        rewriter.record(f"{match.node.name}: table in {self.bits} bits{also}")


def _lookups(weight: fx.Node) -> list[Linear]:
    """Every op that takes rows of a table."""
    found = (linear_of(user) for user in weight.users if row_of(user).lookup)
    return [linear for linear in found if linear is not None and linear.weight is weight]


def _heads(weight: fx.Node) -> Iterator[Linear]:
    """Products that have an output for each row of a table."""
    for user in weight.users:
        linear = None if is_static(user) or row_of(user).lookup else linear_of(user)
        if linear is not None and linear.weight is weight and linear.out_axis == 0:
            yield linear
