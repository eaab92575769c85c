"""The certificate: is the un-baked result the same expression as the original? Tested in prime fields, exactly.

There is no tolerance, and no proved bound either: signs and unknown functions are not polynomials of a low degree.
Where the networks as a whole do not settle it, they are compared part by part (`normfold.judge.local`), and large
ones are so at once. Shapes other than those tried, rounding, and numbers too large for their types are other lines
of the verdict.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from normfold.ir import Graph
from normfold.judge.identity import Trial, sites_of, state_of
from normfold.judge.local import certify_parts
from normfold.report.certificate import Certificate

LARGE = 10**9  # numbers among the parameters: a network that is compared part by part at once


def certify(
    original: Graph, result: Graph, seed: int = 0, primes: int = 3, small: bool = True
) -> Certificate:
    """Test that an un-baked result is the captured original, in so many prime fields.

    It runs at the smallest sizes that the guards admit: in the first field at batch 2, so that an axis that is
    exchanged with the batch shows, in the others at batch 1; where it takes no such batch, at the example's.

    Args:
        original: above `LARGE` parameters it is compared part by part at once, a smaller one where the whole is
            not certified; then an output that differs comes with the place where the difference begins.
        small: where sizes are fixed, evaluate both networks at smaller ones all the same, with so much of what is
            stored for each place as there are places left. What is not equal there is tried at the full sizes.

    Raises:
        ValueError: the result is baked; its weights are rounded, and no identity of the original's.
    """
    if result.baked:
        raise ValueError("a certificate is about un-baked algebra: the weights are rounded")
    if _count(original) > LARGE:
        return certify_parts(original, result, seed, primes, small)
    found = Trial(original, result, seed).certificate(primes, small)
    if found:
        return found
    if not found.ok:
        return _located(found, certify_parts(original, result, seed, 1, small))
    parts = certify_parts(original, result, seed, primes, small)
    both = zip(found.outputs, parts.outputs, strict=True)
    outputs = tuple(whole if whole.state == "equal" else part for whole, part in both)
    covered, left = sites_of(original, result, outputs)
    return replace(
        parts,
        state=state_of(outputs),
        outputs=outputs,
        covered=covered,
        left=left,
        seconds=found.seconds + parts.seconds,
        evaluations=found.evaluations + parts.evaluations,
    )


def _located(found: Certificate, parts: Certificate) -> Certificate:
    """A certificate that failed, with the places where the parts begin that differ."""
    outputs = tuple(
        part if whole.state == part.state == "differs" else whole
        for whole, part in zip(found.outputs, parts.outputs, strict=True)
    )
    seconds = found.seconds + parts.seconds
    return replace(
        found, outputs=outputs, seconds=seconds, evaluations=found.evaluations + parts.evaluations
    )


def _count(graph: Graph) -> int:
    seen = {str(node.target): node.meta.get("val") for node in graph.nodes if node.op == "get_attr"}
    return sum(value.numel() for value in seen.values() if isinstance(value, Tensor))
