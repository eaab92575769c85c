"""Training with norms that become affines: replacement, start, statistics, the end."""

from normfold.train.finalize import finalize
from normfold.train.refresh import refresh_statistics
from normfold.train.replace import Replaced, replace_norms
from normfold.train.tune import Tuned, tune

__all__ = ["Replaced", "Tuned", "finalize", "refresh_statistics", "replace_norms", "tune"]
