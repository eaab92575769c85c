"""Will the type hold it: the line of the verdict beside the algebra and the rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Island:
    """An op that stays in float32 in a network of half precision: module path, op, node, and why."""

    site: str
    op: str
    node: str
    why: str


@dataclass(frozen=True)
class Range:
    """Whether a type holds what is computed in it.

    Half precision fails where a value overflows in its arithmetic. Integers are not judged where two products can
    leave 16 bits on this processor: what that does to the outputs is in the verdict of the file.

    Attributes:
        type: ``float16``, ``bfloat16``, ``float32`` (of a network captured in one of these), or those of
            activations and weights: ``uint8 x int8``.
        target: that integers are for; empty for floats.
        largest: magnitude of a value on typical inputs, or that two products can have together.
        limit: what the type holds: of floats its largest number, of two products 32767.
        at: where the largest is made: module and line; where it fails, the first value that overflows.
        islands: ops that stay in float32.
        layers: that compute in integers, and how many of them can leave the limit (``saturating``).
        why: what the processor does, and what was done or could be, in words.
    """

    type: str
    state: Literal["ok", "failed", "not judged"]
    largest: float
    limit: float
    at: str = ""
    target: str = ""
    islands: tuple[Island, ...] = ()
    layers: int = 0
    saturating: int = 0
    why: str = ""

    @property
    def words(self) -> str:
        """What was found, for people."""
        state = "FAILED" if self.state == "failed" else self.state
        if self.target:
            return f"{self.type} for {self.target}: {state}; {self.layers} layers; {self.why}"
        at = f" at {self.at}" if self.at else ""
        if self.state == "failed":
            return f"{self.type}: {state}; a value overflows{at}"
        most = f"values up to {self.largest:.3g} of {self.limit:.3g}{at}"
        return f"{self.type}: {state}; {most}; ops in float32: {len(self.islands)}"
