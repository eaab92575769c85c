"""One page for people: self-contained, no requests to anywhere, readable on a phone, in the dark and in print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as xml

from normfold.report.cases import Entry
from normfold.report.html.elements import Element, element, pill, plain
from normfold.report.html.integers import integers
from normfold.report.html.made import files, how, passes
from normfold.report.html.sites import sites
from normfold.report.html.verdict import drift, errors, layers, speed, verdict

_HERE = Path(__file__).parent
_SECTIONS = (errors, verdict, drift, sites, layers, integers, speed, passes, files, how)


def html(entries: Sequence[Entry]) -> str:
    """The text of a page: a chapter for each model."""
    counts = Counter(entry.state for entry in entries)
    pills = [pill(state, f"{number} {state}") for state, number in counts.items()]
    title = f"normfold: {', '.join(f'{number} {state}' for state, number in counts.items())}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", (_HERE / "page.css").read_text(encoding="utf-8")),
    )
    several = len(entries) > 1
    body = element(
        "body",
        element("header", element("h1", "normfold"), element("p", *pills, class_="pills")),
        _contents(entries) if several else None,
        element("main", *(_chapter(number, entry) for number, entry in enumerate(entries))),
        element("script", (_HERE / "page.js").read_text(encoding="utf-8")),
    )
    page = element("html", head, body, lang="en")
    return "<!doctype html>\n" + xml.tostring(page, encoding="unicode", method="html") + "\n"


def _contents(entries: Sequence[Entry]) -> Element:
    rows = [
        element(
            "li",
            element("a", plain(entry.name), href=f"#model-{number}"),
            " ",
            pill(entry.state),
            " ",
            plain(entry.outcome),
        )
        for number, entry in enumerate(entries)
    ]
    return element("nav", element("ul", *rows), aria_label="Models")


def _chapter(number: int, entry: Entry) -> Element:
    more = " as before: nothing changed since an earlier run" if entry.cached else ""
    found = [section(entry, f"model-{number}") for section in _SECTIONS]
    return element(
        "article",
        element("h2", plain(entry.name), " ", pill(entry.state), id=f"model-{number}"),
        element("p", plain(entry.outcome), more, class_="outcome"),
        *found,
        aria_labelledby=f"model-{number}",
    )
