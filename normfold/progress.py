"""What a run says while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: what is being done, in a few words.
        done, total: how much of it; ``total`` is None where it is not known.
        text: a detail behind the stage.
    """

    stage: str
    done: int = 0
    total: int | None = None
    text: str = ""

    def __str__(self) -> str:
        parts = [self.stage]
        if self.total:
            parts.append(f"{self.done} of {self.total}")
        return ", ".join([*parts, self.text] if self.text else parts)


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A listener that says nothing."""
