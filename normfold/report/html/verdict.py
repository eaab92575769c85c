"""What a verdict rests on, differences from the lock, where a result leaves the original, how long it takes."""

from __future__ import annotations

import math
from typing import Any

from normfold.report.cases import Entry
from normfold.report.html.elements import (
    Element,
    bar,
    code,
    element,
    interval,
    pill,
    plain,
    section,
    table,
)

_LEAST = -17.0  # power of ten at which an error has no bar


def errors(entry: Entry, place: str) -> Element | None:
    """The error that ended the run."""
    error = entry.error
    if error is None:
        return None
    parts = [(key, error.get(key)) for key in ("what", "where", "found", "hint")]
    rows = [x for k, v in parts if v for x in (element("dt", k), element("dd", plain(v)))]
    return section("The run ended with an error", element("dl", *rows))


def verdict(entry: Entry, place: str) -> Element | None:
    """Everything that was judged."""
    rows = [
        (pill(case.state), case.kind, case.text, case.name, _took(case.seconds))
        for case in entry.cases()
        if case.kind != "lock"
    ]
    if not rows or entry.error is not None:
        return None
    return section(
        "What the verdict rests on",
        table(("", "line", "found", "of", "seconds"), rows, "Everything that was judged"),
    )


def _took(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds else ""


def drift(entry: Entry, place: str) -> Element | None:
    """Differences from the lock."""
    if not entry.drift:
        return None
    rows = [
        element(
            "li",
            pill("fail" if item.state == "fail" else "note", item.kind),
            f" {plain(item.text)} ",
            code(item.line) if item.line else None,
        )
        for item in entry.drift
    ]
    return section("Since the lock", element("ul", *rows))


def layers(entry: Entry, place: str) -> Element | None:
    """The error of each layer, in the result and in the original."""
    found = entry.data.get("layers")
    if not found or not found["layers"]:
        return None
    rows = [
        (
            code(item["path"]),
            plain(item["op"]),
            _error(item["original"]),
            _error(item["error"], "bad" if item["state"] == "exceeds" else ""),
            _number(item["limit"]),
            item["state"],
        )
        for item in found["layers"]
    ]
    return section(
        "Error per layer",
        table(
            ("layer", "op", "original", "result", "limit", ""),
            rows,
            "Errors against float64, relative; bars by powers of ten",
        ),
        about=f"What leaves each module, as {found['kind']} runs it.",
    )


def _error(value: float | None, kind: str = "") -> Element:
    if value is None or not math.isfinite(value):
        return bar(1.0, "not finite", "bad")
    share = 1 - math.log10(max(value, 10**_LEAST)) / _LEAST
    return bar(share, f"{value:.1e}", kind)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def speed(entry: Entry, place: str) -> Element | None:
    """Times relative to the original's, with their intervals."""
    data = entry.data
    found: list[tuple[str, dict[str, Any], str]] = []
    timing = data.get("timing")
    if timing:
        found.append((timing["b"], timing, timing["verdict"]))
    for made in data.get("quantization", ()):
        if made["placement"]:
            placed = made["placement"]
            words = "in floats: integers were slower" if placed["whole"] else "beside its floats"
            found.append((f"{made['scheme']} for {made['target']}", placed, words))
    if not found:
        return None
    top = max(1.0, *(item["interval"][1] for _, item, _ in found)) * 1.05
    rows: list[tuple[Any, ...]] = [("the original", interval(1, 1, 1, top, "1"), "")]
    for name, item, words in found:
        low, high = item["interval"]
        text = f"{item['ratio']:.3g} ({low:.3g} to {high:.3g})"
        rows.append((name, interval(low, item["ratio"], high, top, text), words))
    return section(
        "Time",
        table(("", "of the original's time", ""), rows, "Relative times, with 95 % intervals"),
    )
