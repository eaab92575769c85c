"""The graph: capture, parameter expressions, feature layouts, the op table, text form, baking."""

from normfold.ir.capture import capture
from normfold.ir.graph import Graph
from normfold.ir.sites import Site

__all__ = ["Graph", "Site", "capture"]
