"""What a run says while it works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers, while it reads or writes folders, says nothing and shows no bars of its own."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()


def silent(progress: Progress) -> None:
    """A listener that says nothing."""
