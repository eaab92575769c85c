"""The graph around a site, before and after: what a page shows where one site is chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Around:
    """Lines of the graph's text: the nodes of a site, what they read and who reads them; the same place after."""

    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
