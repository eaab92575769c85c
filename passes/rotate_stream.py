"""rotate-stream: a stream that only RMSNorms read is stored rotated, so that no feature is larger than the others.

x = y Q'          Q orthogonal: Hadamard with random signs
writers           y = (W z) Q
readers           W x = (W Q) y
norm              rms(x) = rms(y) Q'           the same op, once its gain is in its readers

Outlier features, which decide the grid of a whole tensor, are spread over all of them (Ashkboos et al. 2024,
arXiv 2404.00456).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from normfold.ir import Graph
from normfold.ir.sites import norm_sites
from normfold.ir.states import State
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Rewriter
from normfold.rewrite.compression import Compression, Region, narrow
from normfold.rewrite.rotation import Rotation, rotatable


@dataclass(frozen=True)
class RotateStream(Pass):
    """Rotate the streams that center-stream, or the network itself, reads through RMSNorms without gain.

    Options:
        seed: of the signs.

    Exact:    up to rounding.
    Declines: parameter-shared, no-gain, grouped-features, not-per-channel.
    """

    name: ClassVar[str] = "rotate-stream"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    seed: Annotated[int, Between(0, 2**63 - 1)] = 0

    def match(self, graph: Graph) -> Iterable[Match]:
        compression = Compression(
            graph, cache(partial(Rotation, seed=self.seed)), rotatable(graph).get
        )
        for node in list(graph.nodes):
            if node in compression.declined:
                yield Match(node, norm_sites(node), compression.declined[node])
        for region in compression.regions:
            norms = region.norms
            sites = tuple(site for norm in norms for site in norm_sites(norm))
            yield Match(norms[0], sites, region, f"{len(norms)} norms, {region.ops} explicit ops")

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        return match.plan if isinstance(match.plan, Decline) else match

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        region: Region = match.plan
        bases = dict.fromkeys(value.basis for value in region.values)
        for basis in bases:
            assert isinstance(basis, Rotation)
            basis.prepare(rewriter, sorted(_dtypes(rewriter.graph), key=str))
        for value in region.values:
            narrow(value, rewriter)


def _dtypes(graph: Graph) -> set[torch.dtype]:
    values = (node.meta.get("val") for node in graph.nodes)
    return {x.dtype for x in values if isinstance(x, Tensor) and x.is_floating_point()}
