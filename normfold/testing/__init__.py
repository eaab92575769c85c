"""Checks of passes of one's own: functions that raise AssertionError, for pytest or a plain script.

from normfold.testing import check

check(MyPass(), network, (torch.randn(2, 8),))

Every function takes a pass, a network (in which all parameters and statistics get values that are not their
initial ones, in a copy) and its inputs.
"""

from normfold.testing.checks import (
    check,
    declines,
    equivalent,
    golden,
    idempotent,
    limit,
    no_op,
    reads_only,
)
from normfold.testing.mutants import Mutants, mutants
from normfold.testing.running import perturbed

__all__ = [
    "Mutants",
    "check",
    "declines",
    "equivalent",
    "golden",
    "idempotent",
    "limit",
    "mutants",
    "no_op",
    "perturbed",
    "reads_only",
]
