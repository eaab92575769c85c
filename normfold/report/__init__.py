"""The result objects and their renderings."""

from normfold.report.objects import (
    Applied,
    Check,
    Declined,
    OutputCheck,
    PassReport,
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
    "OutputCheck",
    "PassReport",
    "Report",
    "SiteStatus",
    "Timing",
    "Warned",
    "json_text",
]
