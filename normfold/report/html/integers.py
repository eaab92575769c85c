"""What runs in integers, what layers cost, what ranges rest on, and which formats there were to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as xml

from normfold.report.cases import Entry
from normfold.report.html.elements import Element, bar, code, element, plain, section, table

_MOST = 200  # rows of a table


def integers(entry: Entry, place: str) -> Element | None:
    """Every quantisation of the run."""
    parts = [
        part
        for number, made in enumerate(entry.data.get("quantization", ()))
        for part in _one(made, f"{place}-{number}")
    ]
    return section("Integers", *parts) if parts else None


def _one(made: Mapping[str, Any], place: str) -> list[Element]:
    found = [_facts(made), _kernels(made), _layers(made), _ranges(made), _frontier(made, place)]
    return [part for part in found if part is not None]


def _facts(made: Mapping[str, Any]) -> Element:
    drift, evidence = made["drift"], made["evidence"] or {}
    figures = (
        ("agreement", "top-1 agreement {:.2%}"),
        ("kl", "KL {:.3g}"),
        ("snr_db", "{:.1f} dB"),
    )
    lost = [text.format(drift[key]) for key, text in figures if drift.get(key) is not None]
    facts = [
        ("scheme", f"{made['scheme']} for {made['target']}"),
        ("on grids", f"{made['weights']} weights, {made['activations']} activations"),
        ("ranges", evidence.get("source")),
        ("lost", f"{', '.join(lost)} on {drift.get('samples')} inputs" if lost else ""),
        (
            "foretold",
            f"KL up to {made['foretold']:.3g} on real inputs, in nine cases of ten"
            if made.get("foretold") is not None
            else "",
        ),
    ]
    facts += [("warning", text) for text in made.get("warnings", ())]
    rows = [x for k, v in facts if v for x in (element("dt", k), element("dd", plain(v)))]
    return element("dl", *rows)


def _kernels(made: Mapping[str, Any]) -> Element | None:
    integer, floats = made["integer"], made["floats"]
    kinds = [*integer, *(kind for kind in floats if kind not in integer)]
    if not kinds:
        return None
    rows = []
    for kind in kinds:
        whole, rest = integer.get(kind, 0), floats.get(kind, 0)
        rows.append((kind, bar(whole / (whole + rest), f"{whole} of {whole + rest}")))
    return table(("op", "in integers"), rows, "What the runtime runs in integers")


def _layers(made: Mapping[str, Any]) -> Element | None:
    """What stays in floats, with the times that say so; and what has no kernel."""
    placed = made["placement"]
    rows: list[tuple[Any, ...]] = []
    if placed:
        top = max((max(x["integers"], x["floats"]) for x in placed["layers"]), default=0.0) or 1.0
        rows = [
            (
                code(" + ".join(item["layers"])),
                bar(item["integers"] / top, f"{1e3 * item['integers']:.3g} ms"),
                bar(item["floats"] / top, f"{1e3 * item['floats']:.3g} ms"),
            )
            for item in placed["layers"][:_MOST]
        ]
    rows += [(code(name), plain(why), "") for name, why in [*made["blocked"].items()][:_MOST]]
    if not rows:
        return None
    return table(("layer", "in integers", "in floats"), rows, "Layers that stay in floats")


def _ranges(made: Mapping[str, Any]) -> Element | None:
    """Tensors whose measured range and whose statistics disagree."""
    evidence = made["evidence"]
    if not evidence or not evidence["apart"]:
        return None
    apart = sorted(evidence["apart"].items(), key=lambda pair: -abs(math.log(pair[1] or 1e-9)))
    rows = [
        (code(name), bar(abs(math.log2(ratio or 1e-9)) / 8, f"{ratio:.3g} times"))
        for name, ratio in apart[:_MOST]
    ]
    return table(("tensor", "measured width over that of its statistics"), rows, "Ranges")


def _frontier(made: Mapping[str, Any], place: str) -> Element | None:
    """What formats by layer there were to choose from: size or time against what is lost."""
    mixed = made["mixed"]
    if not mixed:
        return None
    scale, unit = (1e-6, "MB") if mixed["unit"] == "bytes" else (1.0, mixed["unit"])
    points = [(cost * scale, harm) for cost, harm in mixed["frontier"]]
    whole = [(cost * scale, harm, lost) for cost, harm, lost in mixed.get("measured", ())]
    panels = [("sum of divergences", points)]
    panels += [("changed answers, points", [(x, lost) for x, _, lost in whole])] if whole else []
    rows = [(f"{cost:.4g}", f"{harm:.3g}") for cost, harm in points[:_MOST]]
    more = [(f"{cost:.4g}", f"{harm:.3g}", f"{lost:.3g}") for cost, harm, lost in whole]
    head = (unit, "divergence", "changed answers, points")
    return element(
        "div",
        _plot(panels, mixed["cost"] * scale, unit, place),
        table(head, more, "Some choices as a whole, weights alone") if more else None,
        element(
            "details",
            element("summary", f"{len(points)} choices as numbers"),
            table((unit, "divergence"), rows, "Choices that no other beats, layer by layer"),
        ),
    )


def _plot(
    panels: list[tuple[str, list[tuple[float, float]]]], chosen: float, unit: str, place: str
) -> Element | None:
    """Losses over the cost as SVG; nothing where matplotlib is not installed: the tables have the numbers."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": place,
        "font.family": "sans-serif",
    }
    with rc_context(options):
        figure = Figure(figsize=(6, 0.8 + 2.4 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), sharex=True, squeeze=False)
        for axes, (title, points) in zip(grid[:, 0], panels, strict=True):
            axes.plot(*zip(*points, strict=True), marker=".", color="#123456")
            nearest = min(points, key=lambda point: abs(point[0] - chosen))
            axes.plot(*nearest, marker="o", color="#123456", markersize=9, fillstyle="none")
            axes.set_ylabel(title)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        grid[-1, 0].set_xlabel(unit)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for colour in ("#123456", "#000000", "black"):  # as the page's text, in the dark too
        text = text.replace(f": {colour}", ": currentColor")
    drawn = xml.fromstring(text[text.index("<svg") :])
    for part in drawn.iter():
        part.tag = part.tag.rpartition("}")[2]
        for key in list(part.attrib):
            name, value = key.rpartition("}")[2], part.attrib.pop(key)
            if name == "id":
                value = f"{place}-{value}"
            part.attrib[name] = value.replace("url(#", f"url(#{place}-")
            if name == "href":
                part.attrib[name] = f"#{place}-{value.removeprefix('#')}"
    for part in list(drawn):
        if part.tag == "metadata":
            drawn.remove(part)
    for key in ("width", "height"):
        drawn.attrib.pop(key, None)
    titles = " and ".join(title for title, _ in panels)
    words = f"{titles.capitalize()} over {unit}; the choice that was made has a ring"
    drawn.attrib |= {"role": "img", "aria-label": words, "class": "plot"}
    return element("figure", drawn, element("figcaption", words))
