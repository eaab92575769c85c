"""The result objects and their renderings."""

from normfold.report.engine import EngineReport
from normfold.report.objects import (
    Applied,
    Check,
    Declined,
    Island,
    OutputCheck,
    PassReport,
    Precision,
    Report,
    SiteStatus,
    Warned,
    json_text,
)
from normfold.report.timing import Timing

__all__ = [
    "Applied",
    "Check",
    "Declined",
    "EngineReport",
    "Island",
    "OutputCheck",
    "PassReport",
    "Precision",
    "Report",
    "SiteStatus",
    "Timing",
    "Warned",
    "json_text",
]
