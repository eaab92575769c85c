"""Which passes ran, what was written, and how to do it again."""

from __future__ import annotations

import shlex
import tomllib

from normfold.report.cases import Entry
from normfold.report.html.elements import Element, code, element, pill, plain, section, size, table

_STATES = {"pass": "pass", "fail": "fail", "not judged": "unproved"}


def passes(entry: Entry, place: str) -> Element | None:
    """Each pass with what it rewrote and declined."""
    rows = [
        (
            code(item["spec"]),
            item["exactness"],
            len(item["applied"]),
            len(item["declined"]),
            f"{item['seconds']:.2f}",
        )
        for item in entry.data.get("passes", ())
    ]
    if not rows:
        return None
    head = ("pass", "", "sites rewritten", "declined", "seconds")
    return section("Passes", table(head, rows, "The passes in their order"))


def files(entry: Entry, place: str) -> Element | None:
    """Each file with the verdict of its own bytes; its ops, counted."""
    data = entry.data
    rows = [
        (
            code(item["path"]),
            item["target"],
            size(item["size"]),
            pill(_STATES[item["verdict"]["state"]], item["verdict"]["state"]),
            item["verdict"]["why"],
            code(item["sha256"][:16]),
        )
        for item in data.get("artefacts", ())
    ]
    if not rows:
        return None
    counts = sorted(data.get("census", {}).items(), key=lambda pair: -pair[1])
    ops = ", ".join(f"{name} {count}" for name, count in counts)
    opset = f"Opset {data['opset']}. " if data.get("opset") else ""
    head = ("file", "for", "size", "", "verdict", "sha256")
    return section(
        "Files",
        table(head, rows, "What was written"),
        element("p", plain(f"{opset}Ops: {ops}.")) if ops else None,
    )


def how(entry: Entry, place: str) -> Element | None:
    """The job, the command that does it again, the machine and what it took."""
    data = entry.data
    if entry.error is not None:
        return None
    network, job = _job(str(data.get("job", "")))
    facts = [
        ("model", data.get("model")),
        ("inputs", data.get("inputs")),
        ("took", f"{data.get('seconds') or 0:.1f} s, {data.get('peak_memory_mb') or 0:.0f} MB"),
        ("parameters", _grown(data.get("parameters_before", 0), data.get("parameters_after", 0))),
        ("versions", ", ".join(f"{k} {v}" for k, v in data.get("versions", {}).items())),
        ("confinement", data.get("confinement")),
    ]
    rows = [x for k, v in facts if v for x in (element("dt", k), element("dd", plain(v)))]
    notes = [element("li", plain(text)) for text in data.get("notes", ())]
    return section(
        "How it was made",
        element("dl", *rows),
        element("ul", *notes) if notes else None,
        element(
            "p", "This, as ", code("job.toml"), ", and ", code(_again(network)), " do it again:"
        )
        if network
        else None,
        element("pre", plain(job)) if job else None,
    )


def _job(text: str) -> tuple[str, str]:
    """The network of a job, and its options as a configuration has them; nothing where only Python can say it."""
    try:
        network = tomllib.loads(text).get("network", "")
    except tomllib.TOMLDecodeError:
        return "", text
    lines = [line for line in text.splitlines() if not line.startswith("network = ")]
    return str(network), "\n".join(lines).strip()


def _again(network: str) -> str:
    return shlex.join(["normfold", "convert", network, "--config", "job.toml"])


def _grown(before: int, after: int) -> str:
    return f"{size(before)}, {size(after)} behind the passes" if before else ""
