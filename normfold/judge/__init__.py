"""Comparison with the original, verdicts, bisecting."""

from normfold.judge.bisect import Culprit, bisect
from normfold.judge.verifier import Verifier

__all__ = ["Culprit", "Verifier", "bisect"]
