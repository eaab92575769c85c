"""Reports as JUnit, SARIF, Markdown and JSON: what other programs read of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from sarif_pydantic import Sarif

from normfold.errors import UsageError
from normfold.report import Report
from normfold.report.cases import Drift, Entry
from normfold.report.junit import junit
from normfold.report.markdown import markdown
from normfold.report.rendering import read, rendering
from normfold.report.sarif import sarif
from normfold.report.verdict import Artefact, Verdict
from tests.report.jenkins import require_jenkins
from tests.report.runs import mixed

ROOT = Path(__file__).parents[2]
ERROR: dict[str, Any] = {
    "ok": False,
    "exit_code": 4,
    "error": {"what": "the network <cannot> | be \x00 captured", "where": "net.py:3", "hint": "no"},
}


@pytest.fixture(scope="module")
def report() -> Report:
    return mixed()


def plain(report: Report) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(report.to_json())
    return data


@pytest.fixture(scope="module")
def entries(report: Report) -> list[Entry]:
    """One that passed, one against its policy, one that could not be judged, one that ended with an error."""
    verdict = Verdict("not judged", "tensorrt", "not judged here (no driver)")
    engine = Artefact("out/net.engine", "trt", "trt", 10, "0" * 64, verdict)
    unmet = dataclasses.replace(report, unmet=("batch-norm==0, found 2",), model="a & b")
    missing = dataclasses.replace(report, artefacts=(engine,), missing=("no driver",))
    runs = {"good": report, "policy": unmet, "engine": missing}
    return [
        *(Entry(name, plain(item)) for name, item in runs.items()),
        Entry("broken <net>", ERROR),
    ]


def test_states(entries: list[Entry]) -> None:
    assert [entry.state for entry in entries] == ["pass", "fail", "unproved", "error"]
    assert [entry.exit_code for entry in entries] == [0, 1, 3, 4]


def test_junit_as_jenkins_reads_it(entries: list[Entry]) -> None:
    text = junit(entries)
    require_jenkins(text)
    suites = list(JUnitXml.fromstring(text.encode()))
    assert [suite.name for suite in suites] == [entry.name for entry in entries]
    for suite, entry in zip(suites, entries, strict=True):
        counts = Counter(case.state for case in entry.cases())
        assert (suite.failures, suite.errors, suite.skipped) == (
            counts["fail"],
            counts["error"],
            counts["unproved"],
        )
        assert suite.tests == len(entry.cases()) == len(list(suite))
    assert "found 2" in text


def test_every_sarif_result_has_a_place_and_an_identity(entries: list[Entry]) -> None:
    """GitHub refuses a file with a result at no file, and takes two of one identity for one."""
    twice = dataclasses.replace(
        entries[1],
        data={**entries[1].data, "unmet": ["a==0, found 1", "b==0, found 2"]},
        place="ci/n.toml:7",
    )
    (run,) = json.loads(sarif([twice, *entries[2:]]))["runs"]
    places = [item["locations"][0]["physicalLocation"] for item in run["results"]]
    assert {"ci/n.toml"} < {place["artifactLocation"]["uri"] for place in places}
    marks = [item["partialFingerprints"]["normfold/v1"] for item in run["results"]]
    assert len(set(marks)) == len(marks)


def test_sarif_as_code_scanning_reads_it(entries: list[Entry]) -> None:
    text = sarif(entries, ROOT)
    Sarif.model_validate_json(text)
    (run,) = json.loads(text)["runs"]
    levels = Counter(result["level"] for result in run["results"])
    left = sum(len(entry.left()) for entry in entries)
    assert levels == {"error": 2, "warning": 2, "note": left}
    known = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in run["results"]} == known
    assert known >= {"NF101", "normfold-policy", "normfold-run"}
    places = [
        result["locations"][0]["physicalLocation"]
        for result in run["results"]
        if result["ruleId"].startswith("NF") and "physicalLocation" in result["locations"][0]
    ]
    assert places
    for place in places:
        lines = (ROOT / place["artifactLocation"]["uri"]).read_text().splitlines()
        assert place["region"]["snippet"]["text"] in lines[place["region"]["startLine"] - 1]


def test_sarif_is_cut_at_the_limit_and_says_so(entries: list[Entry]) -> None:
    whole = json.loads(sarif(entries, ROOT))["runs"][0]["results"]
    cut = json.loads(sarif(entries, ROOT, most=5))["runs"][0]["results"]
    assert cut[:4] == whole[:4]
    assert cut[4]["message"]["text"].startswith(f"{len(whole) - 4} omitted")
    assert len(cut) == 5


def test_markdown_is_short_when_green(entries: list[Entry]) -> None:
    good, *bad = entries
    assert len(markdown([good]).splitlines()) == 3
    text = markdown(entries)
    table = [line for line in text.splitlines() if line.startswith("| ")][: len(entries) + 1]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table)
    for entry in bad:
        assert f"### {entry.name}".replace("<", "&lt;") in text
    assert "<cannot>" not in text
    assert "**fail** policy `batch-norm==0`: found 2" in text


def test_names_end_no_cell_and_no_code(report: Report) -> None:
    data = plain(report)
    name = "a`|<script>\nb"
    for site in data["sites"]:
        site["site"] = name
    drift = (Drift("<img>", "note", "`x`"),)
    text = markdown([Entry("net", {**data, "unmet": [name], "passes": []}, drift)])
    assert "<script>" not in text
    assert "<img>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `a")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 and line.count("`") == 2 for line in rows)


def test_a_check_of_which_nothing_could_be_judged() -> None:
    output = {"output": "y", "error": 0.0, "tolerance": None}
    check = {"kind": "rounding", "ok": True, "outputs": [output], "failures": [], "note": ""}
    (case,) = Entry("net", {"checks": [check]}).cases()
    assert (case.state, case.text) == ("pass", "nothing of it could be judged")


def test_an_error_stands_at_its_line() -> None:
    where = "/a b/net.py:17: raise ValueError"
    entry = Entry("net", {**ERROR, "error": {**ERROR["error"], "where": where}})
    assert entry.cases()[0].line == where
    assert f"{where.replace(' ', '%20')[:11]}" in sarif([entry], ROOT)
    assert Entry("net", {**ERROR, "error": {"what": "x", "where": "net.pt"}}).cases()[0].line == ""


@pytest.mark.parametrize(
    "text", ['{"error": null}', '{"error": {}}', '{"schema": 2}', '{"models": []}', "[]", "3"]
)
def test_data_of_another_program_is_no_report(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError):
        read(tmp_path / "x.json")


def test_a_form_that_nothing_writes_is_refused() -> None:
    with pytest.raises(UsageError, match="not written in this form"):
        rendering(Path("net.pdf"))
