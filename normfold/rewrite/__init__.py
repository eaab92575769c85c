"""Passes, pipelines and the rewriter."""

from normfold.report.reasons import Caution, Reason
from normfold.rewrite.adapter import FxPass
from normfold.rewrite.base import Between, Decline, Effect, Exactness, Match, Pass
from normfold.rewrite.pipeline import parse, run_pipeline, text_of
from normfold.rewrite.rewriter import Rewriter

__all__ = [
    "Between",
    "Caution",
    "Decline",
    "Effect",
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
