"""Elements of a page: everything that a report says is text, and never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree as xml

Element = xml.Element
Content = str | xml.Element | None
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONG = 30  # characters of a cell that gets room for them
_MARKS = {"pass": "\u2713", "fail": "\u2717", "error": "!", "unproved": "?"}


def plain(text: object) -> str:
    """Text without characters that a page cannot hold."""
    return _FORBIDDEN.sub("\ufffd", str(text))


def element(name: str, /, *content: Content, **attributes: str) -> Element:
    """An element; of attributes ``class_`` is ``class``, and ``aria_label`` is ``aria-label``."""
    made = xml.Element(
        name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    )
    for part in content:
        if part is None:
            continue
        if isinstance(part, xml.Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
    return made


def pill(state: str, text: str | None = None) -> Element:
    """A state in its colour, and with a mark of its own for those who do not see colours."""
    mark = _MARKS.get(state)
    words = plain(state if text is None else text)
    return element("span", f"{mark} {words}" if mark else words, class_=f"pill {state}")


def section(title: str, *content: Content, about: str = "") -> Element:
    """A part of a chapter."""
    return element(
        "section", element("h3", title), element("p", about) if about else None, *content
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> Element:
    """A table that scrolls by itself where it is too wide; cells are elements or values."""
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(element("th", title, scope="col") for title in head))),
            element("tbody", *(element("tr", *map(_cell, row)) for row in rows)),
        ),
        class_="wide",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _cell(value: Any) -> Element:
    if isinstance(value, xml.Element):
        return element("td", value)
    text = plain(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = "number" if number else "long" if len(text) > _LONG else ""
    return element("td", text, **({"class_": kind} if kind else {}))


def code(text: object) -> Element:
    """Text as code."""
    return element("code", plain(text))


def bar(share: float, words: str, kind: str = "") -> Element:
    """A bar over a share of its width, with the number beside it."""
    inner = element("i", style=f"width:{100 * min(1.0, max(0.0, share)):.1f}%")
    track = element("span", inner, class_=f"bar {kind}".strip(), aria_hidden="true")
    return element("span", track, f" {words}", class_="measured")


def interval(low: float, middle: float, high: float, top: float, words: str) -> Element:
    """A bar with the interval that the number lies in."""
    ends = [100 * min(1.0, max(0.0, value / top)) for value in (low, middle, high)]
    inner = element("i", style=f"width:{ends[1]:.1f}%")
    whisker = element("b", style=f"left:{ends[0]:.1f}%;width:{max(0.5, ends[2] - ends[0]):.1f}%")
    track = element("span", inner, whisker, class_="bar", aria_hidden="true")
    return element("span", track, f" {words}", class_="measured")


def size(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number / 1e3:.2f} kB"
