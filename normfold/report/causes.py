"""What changed in what a result is made of, and which of it is named behind a difference from the lock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Edits = Callable[[str, int], str]
"""How a source file was changed near a line (0: anywhere), given its path; empty where unknown."""

_PLACE = re.compile(r"(?P<path>.+?):(?P<line>\d+): ")
_MANY = 3

# options that judge, and change nothing
_ASKED = ("--require", "require =", "--max-", "--verify", "verify =")


@dataclass(frozen=True)
class Causes:
    """What changed.

    Attributes:
        options: of the job, in words; empty where they are the same.
        acting: those of them that change what is made, and variables of the environment, in words.
        files: each that is another one and no source, in words.
        sources: what is to be said of each source file, given a number of a line of it, or 0.
        versions: packages, in words; empty where they are the same.
    """

    options: str
    acting: tuple[str, ...]
    files: tuple[str, ...]
    sources: Mapping[str, Callable[[int], str]]
    versions: str

    @classmethod
    def of(cls, old: Mapping[str, Any], new: Mapping[str, Any], edits: Edits) -> Causes:
        """Of two records of a lock."""
        names = sorted(old["files"].keys() | new["files"].keys())
        changed = [name for name in names if old["files"].get(name) != new["files"].get(name)]
        plain = tuple(
            f"`{name}` {_read_before(name, old, new) or 'is another file than in the lock'}"
            for name in changed
            if not name.endswith(".py")
        )
        sources = {name: _edited(name, old, new, edits) for name in changed if name.endswith(".py")}
        acting = tuple(filter(None, (options(old, new, _ASKED), variables(old, new))))
        return cls(options(old, new), acting, plain, sources, versions(old, new))

    def because(self, line: str = "") -> str:
        """What is named behind a difference that shows at ``line`` (``path:number: text``).

        The edit of that line's own file that is nearest to it, and options; where that file was not edited, all
        that changed; packages only where nothing else did.
        """
        place = _PLACE.match(line)
        own = self.sources.get(place["path"]) if place else None
        if place and own:
            found = [own(int(place["line"])), *self.acting]
        else:
            found = [*self.acting, *self.files, *self.edited()]
        found = [text for text in found if text] or [self.versions]
        if not found[0]:
            return "; nothing that the lock knows of has changed"
        more = f", or {len(found) - _MANY} more" if len(found) > _MANY else ""
        return f"; {', or '.join(found[:_MANY])}{more}"

    def edited(self) -> Iterator[str]:
        """Each source file that is another one, in words."""
        return (text(0) for text in self.sources.values())


def _edited(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], edits: Edits
) -> Callable[[int], str]:
    what = _read_before(name, old, new) or "was edited since the lock"

    def text(line: int) -> str:
        detail = edits(name, line)
        return f"`{name}` {what}{detail and f' ({detail})'}"

    return text


def _read_before(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Of a file that only one of two runs has read, in words."""
    if name not in new["files"]:
        return "is not read any more"
    return "" if name in old["files"] else "was not read for the lock"


def options(old: Mapping[str, Any], new: Mapping[str, Any], but: tuple[str, ...] = ()) -> str:
    """Which options of the job changed, in words, but those that begin with one of ``but``."""
    added = [x for x in new["job"] if x not in old["job"] and not x.startswith(but or ("\0",))]
    removed = [x for x in old["job"] if x not in new["job"] and not x.startswith(but or ("\0",))]
    parts = [f"`{word}` is new" for word in added] + [f"`{word}` is gone" for word in removed]
    return f"options of the job: {', '.join(parts)}" if parts else ""


def variables(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which variables of the environment are others, in words; nothing where a lock does not know them."""
    if "variables" not in old and "variables" not in new:
        return ""
    a, b = old.get("variables", {}), new.get("variables", {})
    found = [f"`{name}`" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return f"of the environment: {', '.join(found)}" if found else ""


def versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which packages are others, in words."""
    a, b = old["versions"], new["versions"]
    if not b:  # of an error
        return ""
    found = ", ".join(
        f"{name} {a.get(name, 'missing')}, this is {b.get(name, 'missing')}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    )
    return found and f"the lock was made with {found}"
