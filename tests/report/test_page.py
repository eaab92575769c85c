"""The page for people: what is in it, and what it never has."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from normfold.report import Report, Timing
from normfold.report.cases import Drift, Entry
from normfold.report.html import html
from normfold.report.layers import Layer, LayerReport
from normfold.report.quantization import (
    Evidence,
    LayerTime,
    MixedReport,
    Placement,
    QuantizationReport,
)
from tests.report.runs import mixed

VOID = {"meta", "input", "br", "img", "link"}
NASTY = "</script><script>alert(1)</script> & <b>\x00"


class Page(HTMLParser):
    """Elements by name, with attributes and text; ids; whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.setdefault(tag, []).append({**dict(attrs), "text": ""})
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.found[tag][-1]["text"] += data

    def texts(self, tag: str) -> list[str]:
        return [item["text"] for item in self.found.get(tag, [])]


@pytest.fixture(scope="module")
def report() -> Report:
    """With everything that a report may have."""
    timing = Timing("a", "b", "ort", "x", 20, 1, 1.0, 1.02, 1.02, (1.0, 1.04), (0.98, 1.06))
    layers = LayerReport(
        "onnxruntime-all",
        (
            Layer("conv", "conv2d, net.py:3", 1e-7, 2e-7, 5e-7, "agrees"),
            Layer("head", "linear", 1e-7, float("nan"), 5e-7, "exceeds"),
        ),
    )
    frontier = ((1e6, 0.5), (2e6, 0.1), (4e6, 0.01))
    whole = ((1e6, 0.6, 12.5), (2e6, 0.1, 3.125))
    made = QuantizationReport(
        "int8",
        "ort-x86",
        evidence=Evidence("synthesised: 16 images", 0.1, 0.9, 0.5, {"conv": 0.25}, 1.0),
        integer={"Conv": 9},
        floats={"Conv": 1, "Gemm": 2},
        blocked={"gelu": "no kernel"},
        placement=Placement("ort-x86", 0.5, (0.45, 0.55), False, (LayerTime(("a", "b"), 2e-3, 1e-3),)),
        mixed=MixedReport("bytes", 2.5e6, 2e6, 0.1, 0.1, {"conv": 4}, frontier, (("conv", 9, {4: 0.1}),), whole),
        drift={"samples": 8, "kl": 0.01},
    )  # fmt: skip
    return replace(mixed(), timing=timing, layers=layers, quantization=[made], opset=20)


def entry(report: Report, name: str = "net", **more: Any) -> Entry:
    return Entry(name, json.loads(report.to_json()), **more)


def test_every_part_is_there(report: Report) -> None:
    drift = (
        Drift("site", "fail", "`bn` stopped folding", "net.py:3: x"),
        Drift("kernels", "note", "n"),
    )
    page = Page(html([entry(report, drift=drift)]))
    assert page.texts("h3") == [
        "What the verdict rests on",
        "Since the lock",
        "Norms",
        "Error per layer",
        "Integers",
        "Time",
        "Passes",
        "How it was made",
    ]
    text = page.texts("body")[0]
    for words in (
        "onnxruntime-all",
        "not finite",
        "2.00 ms",
        "1.02 (0.98 to 1.06)",
        "9 of 10",
        "3.12",
        "0.25 times",
    ):
        assert words.replace("2.00 ms", "2 ms") in text
    assert len(page.found["svg"]) == 1
    assert "currentColor" in html([entry(report)])


def test_sites_say_why_and_show_the_graph(report: Report) -> None:
    page = Page(html([entry(report)]))
    leaves = [item for item in page.found["li"] if "data-text" in item]
    assert len(leaves) == len(report.sites)
    assert {item["data-state"] for item in leaves} == {x.state for x in report.sites}
    options = [item["value"] for item in page.found["option"]]
    assert {x.kind for x in report.sites} <= set(options)
    left = next(x for x in report.sites if x.state == "left" and x.code)
    text = next(item["text"] for item in leaves if left.code.lower() in item["data-text"])
    assert "hint" in text
    assert {"Before", "After"} <= set(page.texts("figcaption"))
    assert any("batch_norm" in text for text in page.texts("pre"))


def test_nothing_is_asked_of_anywhere(report: Report) -> None:
    text = html([entry(report), entry(report, "b")])
    for tag in ("link", "img", "iframe", "object"):
        assert f"<{tag}" not in text
    assert (
        re.findall(r"""(?:src|srcset|action|xlink:href)=|url\((?!#)|@import|fetch\(""", text) == []
    )
    assert all(x.startswith("#") for x in re.findall(r'href="([^"]*)"', text))
    assert len(text) < 2_000_000


def test_what_a_report_says_is_text(report: Report) -> None:
    error = {"what": NASTY, "where": NASTY, "found": NASTY, "hint": NASTY}
    bad = [
        Entry(NASTY, {"ok": False, "exit_code": 4, "error": error}),
        entry(replace(report, model=NASTY, job=f'network = "{NASTY}"', notes=[NASTY])),
    ]
    text = html(bad)
    page = Page(text)
    assert len(page.found["script"]) == 1
    assert "\x00" not in text
    assert "alert(1)" not in page.texts("script")[0]


def test_labels_and_headings(report: Report) -> None:
    page = Page(html([entry(report), entry(report, "other")]))
    assert [item["lang"] for item in page.found["html"]] == ["en"]
    assert all(item.get("aria-label") for item in page.found["nav"])
    assert all(item.get("aria-label") for item in page.found["div"] if item.get("role") == "region")
    assert all(item["text"] for item in page.found["label"])
    assert all(item["text"] for item in page.found["caption"])
    assert all(item["scope"] == "col" for item in page.found["th"])
    ids = [item["id"] for tag in page.found.values() for item in tag if "id" in item]
    assert {"model-0", "model-1"} <= set(ids)
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#(.*?)\)", html([entry(report), entry(report, "other")]))
    assert used
    assert set(used) <= set(ids)


def test_an_error_and_an_old_report(report: Report) -> None:
    error = {"what": "no capture", "where": "net.py:3", "found": None, "hint": "a hint"}
    data = json.loads(report.to_json())
    for key in ("around", "opset"):  # of an earlier version
        del data[key]
    page = Page(html([Entry("a", {"ok": False, "exit_code": 4, "error": error}), Entry("b", data)]))
    assert "The run ended with an error" in page.texts("h3")
    assert page.texts("title") == ["normfold: 1 error, 1 pass"]


def test_without_matplotlib_the_numbers_stay(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = html([entry(report)])
    assert "<svg" not in text
    assert "3 choices as numbers" in text
