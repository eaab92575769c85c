"""What a graph as a whole is in: asked for by passes before they run."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """A state of a graph.

    Attributes:
        made_by: the pass that is named to who lacks it.
    """

    CANONICAL = "canonical"  # norms are written as core and channel affine
    BAKED = (
        "baked"  # weights were rounded to their types: what is rewritten later starts from those
    )

    @property
    def made_by(self) -> str:
        return {State.CANONICAL: "canonicalize", State.BAKED: "bake"}[self]
