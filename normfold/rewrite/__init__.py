"""Passes, pipelines and the rewriter."""

from normfold.rewrite.adapter import FxPass
from normfold.rewrite.base import Decline, Exactness, Match, Pass
from normfold.rewrite.pipeline import parse, run_pipeline, text_of
from normfold.rewrite.reasons import Reason
from normfold.rewrite.rewriter import Rewriter

__all__ = [
    "Decline",
    "Exactness",
    "FxPass",
    "Match",
    "Pass",
    "Reason",
    "Rewriter",
    "parse",
    "run_pipeline",
    "text_of",
]
