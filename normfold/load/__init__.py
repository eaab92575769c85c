"""Load a trained network and example inputs for it, safely."""

from normfold.load.api import load
from normfold.load.types import Loaded

__all__ = ["Loaded", "load"]
