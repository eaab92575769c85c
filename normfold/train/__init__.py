"""Training with norms that become affines: replacement, start, statistics, the end."""

from normfold.train.finalize import finalize
from normfold.train.refresh import refresh_statistics
from normfold.train.replace import Replaced, replace_norms

__all__ = ["Replaced", "finalize", "refresh_statistics", "replace_norms"]
