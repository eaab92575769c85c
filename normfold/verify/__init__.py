"""Comparison with the original, verdicts, bisecting."""

from normfold.verify.bisect import Culprit, bisect
from normfold.verify.verifier import Verifier

__all__ = ["Culprit", "Verifier", "bisect"]
