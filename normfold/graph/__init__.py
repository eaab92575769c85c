"""The graph: capture, parameter expressions, feature layouts, the op table, text form, baking."""

from normfold.graph.capture import capture
from normfold.graph.graph import Graph
from normfold.graph.sites import Site

__all__ = ["Graph", "Site", "capture"]
