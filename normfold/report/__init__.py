"""The result objects and their renderings."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.report.engine import EngineReport
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
    from normfold.report.range import Island, Range
    from normfold.report.timing import Timing

__all__ = [
    "Applied",
    "Check",
    "Declined",
    "EngineReport",
    "Island",
    "OutputCheck",
    "PassReport",
    "Range",
    "Report",
    "SiteStatus",
    "Timing",
    "Warned",
    "json_text",
]

# imported on first use, so that `normfold explain` reads the codes without the objects
_HOMES = {"EngineReport": "engine", "Island": "range", "Range": "range", "Timing": "timing"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module `normfold.report` has no attribute `{name}`")
    home = importlib.import_module(f"normfold.report.{_HOMES.get(name, 'objects')}")
    return getattr(home, name)
