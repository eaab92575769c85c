"""The certificate: is the un-baked result the same expression as the original? Tested in prime fields, exactly.

There is no tolerance, and no proved bound either: signs and unknown functions are not polynomials of a low degree.
Shapes other than those tried, rounding, and numbers too large for their types are other lines of the verdict.
"""

from __future__ import annotations

from normfold.ir import Graph
from normfold.judge.identity import Trial
from normfold.report.certificate import Certificate


def certify(
    original: Graph, result: Graph, seed: int = 0, primes: int = 3, small: bool = True
) -> Certificate:
    """Test that an un-baked result is the captured original, in so many prime fields.

    It runs at the smallest sizes that the guards admit: in the first field at batch 2, so that an axis that is
    exchanged with the batch shows, in the others at batch 1; where it takes no such batch, at the example's.

    Args:
        small: where sizes are fixed, evaluate both networks at smaller ones all the same, with so much of what is
            stored for each place as there are places left. What is not equal there is tried at the full sizes.

    Raises:
        ValueError: the result is baked; its weights are rounded, and no identity of the original's.
    """
    if result.baked:
        raise ValueError("a certificate is about un-baked algebra: the weights are rounded")
    return Trial(original, result, seed).certificate(primes, small)
