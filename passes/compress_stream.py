"""compress-stream: a stream whose features sum to zero is kept in d - 1 numbers (CRMSNorm).

x = U y           U of d x (d - 1), its columns a basis of the vectors that sum to zero
writers           y = U^-1 W z: one row less
readers           W x = (W U) y: one column less
norm              a function of y (see normfold/rewrite/basis.py)

What cannot absorb the change reads or writes d features through one explicit op.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from normfold.ir import Graph
from normfold.ir.sites import norm_sites
from normfold.ir.states import State
from normfold.ops.groups import centred_groups
from normfold.report import Warned
from normfold.rewrite import Caution, Decline, Exactness, Match, Pass, Rewriter
from normfold.rewrite.basis import Basis
from normfold.rewrite.compression import Compression, Region, narrow


@dataclass(frozen=True)
class CompressStream(Pass):
    """Store what center-stream has centred in d - 1 numbers, and turn its RMSNorms into CRMSNorms (Jiang et al.
    2023, arXiv 2305.14858). It saves 1/d of the stream, and rows of d - 1 numbers are seldom aligned: measure.

    Options:
        basis: ``orthonormal`` keeps a stock RMSNorm, of d - 1 features and eps d / (d - 1); ``drop-last`` leaves
            out one feature, and its norm is written as primitive ops.

    Exact:    up to rounding.
    Declines: parameter-shared, no-gain, grouped-features, not-per-channel.
    """

    name: ClassVar[str] = "compress-stream"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    basis: Literal["orthonormal", "drop-last"] = "orthonormal"

    def match(self, graph: Graph) -> Iterable[Match]:
        compression = Compression(graph, partial(Basis, self.basis), centred_groups)
        region_of = {region.norms[0]: region for region in compression.regions}
        for node in list(graph.nodes):
            if node in compression.declined:
                yield Match(node, norm_sites(node), compression.declined[node])
            elif node in region_of:
                yield _match(region_of[node])

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        return match.plan if isinstance(match.plan, Decline) else match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        for value in match.plan.values:
            narrow(value, rewriter)


def _match(region: Region) -> Match:
    norms = region.norms
    sites = tuple(site for norm in norms for site in norm_sites(norm))
    width = region.values[0].basis.width - 1
    match = Match(norms[0], sites, region, f"norm of {width} features")
    if width % 8 == 0:
        return match
    text = (
        f"width {width} is {'odd' if width % 2 else 'not a multiple of 8'}: rows are no longer 16-byte "
        "aligned, and tensor cores want multiples of 8 (int8: 16); `--to rmsnorm` keeps the width"
    )
    return match.planned(region, warnings=(Warned(match.path, Caution.UNALIGNED_WIDTH.code, text),))
