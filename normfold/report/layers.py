"""Errors layer by layer: where a result leaves the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerState = Literal["agrees", "exceeds", "other"]


@dataclass(frozen=True)
class Layer:
    """What leaves one module, in the original and in a result, against the original in float64.

    Attributes:
        path: of the module.
        op: that makes it in the original, with the user's line.
        original: |y - r| / |r| of the original in its own type.
        error: of the result.
        limit: four times the former and a few ulps.
        state: ``other`` where passes made another tensor of it on purpose (a norm folded into the layer, a stream
            in another basis): what is made of it agrees again.
    """

    path: str
    op: str
    original: float
    error: float
    limit: float
    state: LayerState

    @property
    def place(self) -> str:
        """The module, the op and the user's line."""
        return f"`{self.path}` ({self.op})"

    @property
    def words(self) -> str:
        """Where it is and what it is off by, for people."""
        return f"{self.place}: {self.error:.2e}, {self.limit:.2e} allowed"


@dataclass(frozen=True)
class LayerReport:
    """The layers that are in both, in the order of the original; ``kind`` says how the result was run."""

    kind: str
    layers: tuple[Layer, ...] = ()

    @property
    def first(self) -> Layer | None:
        """The first layer from which on the result is another one; None if there is none."""
        return next((layer for layer in self.layers if layer.state == "exceeds"), None)

    @property
    def words(self) -> str:
        """What was found, for people."""
        if self.first is None:
            return f"{len(self.layers)} layers agree, or agree behind"
        return f"the first layer over its limit is {self.first.words}"
