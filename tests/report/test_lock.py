"""What changed since a lock, each difference in one sentence with its cause."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normfold.errors import UsageError
from normfold.report import lock
from normfold.report.cases import Drift, Entry
from normfold.report.verdict import Artefact, Verdict
from tests.report.runs import mixed

WORDS = ("convert", "net.pt", "--to=folded")
FILES = {"net.pt": "a" * 64, "net.py": "b" * 64}


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    """A record as a run makes it, with the numbers that only integers have."""
    made = Artefact("out/net.onnx", "onnx", "ort-x86", 2_000_000, "0" * 64, Verdict("pass", "", ""))
    report = replace(mixed(), artefacts=(made,), opset=20, census={"Conv": 2})
    entry = Entry("net", json.loads(report.to_json()))
    found = lock.record(lock.Run(entry, WORDS, FILES, "one, 2 cores"))
    found["versions"] = {"torch": "2.13.0", "onnxruntime": "1.31.1"}
    found["integers"] = 1.0
    found["time"] = {"ratio": 0.5, "low": 0.48, "high": 0.52, "machine": "one, 2 cores"}
    found["errors"] = {"rounding": 1e-7}
    return found


def differences(old: dict[str, Any], **changes: Any) -> list[Drift]:
    return list(
        lock.compare(old, {**copy.deepcopy(old), **changes}, lambda path, line: f"line {line or 7}")
    )


def test_nothing_changed(old: dict[str, Any]) -> None:
    assert differences(old) == []


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"sizes": {"net.onnx": 2_100_000}}, "fail", "has 2.1 MB, had 2 MB (+5.0%)"),
        ({"sizes": {"net.onnx": 1_000_000}}, "note", "has 1 MB, had 2 MB (-50.0%)"),
        ({"sizes": {}}, "fail", "`net.onnx` is not written any more"),
        ({"opset": 23}, "fail", "opset 23, was 20"),
        ({"integers": 0.9}, "fail", "90.0% run in integers, did 100.0%"),
        ({"kernels": {"Conv": 2, "Pad": 3}}, "note", "ops of the file: Pad 0 to 3"),
        ({"errors": {"rounding": 2e-6}}, "note", "rounding errs by 2.0e-06, by 1.0e-07 before"),
        ({"time": None}, "note", "it is not timed any more"),
    ],
)
def test_a_difference_that_nothing_explains(
    changes: dict[str, Any], state: str, words: str, old: dict[str, Any]
) -> None:
    (found,) = differences(old, **changes)
    assert found.state == state
    assert words in found.text
    assert "time" in changes or found.text.endswith("nothing that the lock knows of has changed")


def test_a_small_difference_is_none(old: dict[str, Any]) -> None:
    assert differences(old, sizes={"net.onnx": 2_020_000}, errors={"rounding": 5e-7}) == []
    small = {**old, "sizes": {"net.onnx": 1700}}
    assert differences(small, sizes={"net.onnx": 1900}) == []


@pytest.mark.parametrize(
    ("time", "state", "words"),
    [
        (
            (0.55, 0.54, 0.56),
            "fail",
            "10% slower: takes 0.55 (0.54 to 0.56) of the original's time",
        ),
        ((0.55, 0.515, 0.58), "", ""),  # the intervals overlap
        ((0.4, 0.38, 0.42), "note", "faster: "),
    ],
)
def test_times(time: tuple[float, ...], state: str, words: str, old: dict[str, Any]) -> None:
    now = dict(zip(("ratio", "low", "high"), time, strict=True), machine="one, 2 cores")
    found = differences(old, time=now)
    assert [item.state for item in found] == ([state] if state else [])
    assert all(words in item.text for item in found)
    (other,) = differences(old, time={**now, "low": 0.6, "machine": "another"})
    assert (other.state, other.text.endswith("(one, 2 cores): not compared")) == ("note", True)


def test_a_checkpoint_is_another_one(old: dict[str, Any]) -> None:
    (found,) = differences(old, files={**FILES, "net.pt": "c" * 64})
    assert (found.kind, found.state) == ("input", "fail")
    assert f"`net.pt` is not the file of the lock (sha256 {'c' * 12}, was {'a' * 12})" in found.text


def test_an_edited_source_is_said_and_is_a_cause(old: dict[str, Any]) -> None:
    files = {**FILES, "net.py": "c" * 64, "other.py": "d" * 64}
    said = "`net.py` was edited since the lock (line 7)"
    first, second = differences(old, files=files)
    assert (first.state, first.text) == ("note", said)
    assert second.text == "`other.py` was not read for the lock (line 7)"
    found, *_ = differences(old, files=files, opset=18)
    assert found.text == f"opset 18, was 20; {said}, or {second.text}"


def test_the_cause_of_a_site_is_the_edit_of_its_own_file(old: dict[str, Any]) -> None:
    name = next(name for name, site in old["sites"].items() if site["state"] == "gone")
    stuck = {"kind": "batch-norm", "state": "left", "code": "NF103", "at": "net.py:12: z = y + 1"}
    files = {**FILES, "a.py": "c" * 64, "net.py": "d" * 64}
    found, *_ = differences(old, files=files, sites={**old["sites"], name: stuck})
    assert found.text.endswith("; `net.py` was edited since the lock (line 12)")
    words = [*WORDS, "--opset=18"]
    found = differences(old, files=files, sites={**old["sites"], name: stuck}, job=words)[1]
    assert "(line 12), or options of the job: `--opset=18` is new" in found.text
    found, *_ = differences(old, files=files, opset=18)
    assert "`a.py` was not read for the lock (line 7), or `net.py` was edited" in found.text


def test_other_versions_are_said_and_are_a_cause(old: dict[str, Any]) -> None:
    versions = {"torch": "3.0", "onnxruntime": "1.31.1"}
    said = "the lock was made with torch 2.13.0, this is 3.0"
    (found,) = differences(old, versions=versions)
    assert (found.state, found.text) == ("note", said)
    bigger, _ = differences(old, versions=versions, sizes={"net.onnx": 3_000_000})
    assert bigger.text.endswith(f"(+50.0%); {said}")


def test_options_of_the_job(old: dict[str, Any]) -> None:
    words = ["convert", "net.pt", "--opset=18"]
    said, found = differences(old, job=words, opset=18)
    options = "options of the job: `--opset=18` is new, `--to=folded` is gone"
    assert (said.state, said.text) == ("note", options)
    assert found.text == f"opset 18, was 20; {options}"


def test_requirements_change_nothing_that_is_made(old: dict[str, Any]) -> None:
    job = [*old["job"], "--require=size<1"]
    said, opset = differences(old, job=job, opset=old["opset"] - 1)
    assert "--require=size<1" in said.text
    assert opset.text.endswith("nothing that the lock knows of has changed")


def test_variables_are_a_cause(old: dict[str, Any]) -> None:
    (opset,) = differences(
        {**old, "variables": {"ACT": "unset"}}, opset=17, variables={"ACT": "12"}
    )
    assert opset.text.endswith("of the environment: `ACT`")


def test_a_file_that_was_not_read_is_not_another_one(old: dict[str, Any]) -> None:
    files = {name: x for name, x in old["files"].items() if name.endswith(".py")}
    found = [item.text for item in differences(old, files=files, opset=17)]
    assert any("is not read any more" in text for text in found)
    assert not any("is another file" in text for text in found)


def test_nothing_is_said_of_files_that_were_not_written(old: dict[str, Any]) -> None:
    nothing: dict[str, Any] = {"sizes": {}, "kernels": {}, "opset": 0, "verdict": "fail"}
    assert not list(differences(old, **nothing))
    assert differences(old, **{**nothing, "verdict": "pass"})


def test_sites(old: dict[str, Any]) -> None:
    gone = next(name for name, site in old["sites"].items() if site["state"] == "gone")
    left = next(name for name, site in old["sites"].items() if site["state"] == "left")
    stuck = {"kind": "batch-norm", "state": "left", "code": "NF103", "line": "net.py:9: y = f(x)"}
    stuck |= {"why": "the norm has another reader, at `add`", "at": "net.py:12: z = y + 1"}

    def said(name: str, site: dict[str, str] | None) -> Drift:
        sites = {**old["sites"], **({} if site is None else {name: site})}
        if site is None:
            del sites[name]
        (found,) = differences(old, sites=sites)
        return found

    worse = said(gone, stuck)
    assert (worse.state, worse.line) == ("fail", "net.py:12: z = y + 1")
    assert "stopped folding, and is left: NF103 the norm has another reader, at `add`" in worse.text
    assert "; its line was `" in worse.text
    assert said(left, {**old["sites"][left], "state": "gone", "code": ""}).text.startswith(
        f"`{left}` (batch-norm) folds now"
    )
    assert "for another reason: " in said(left, {**old["sites"][left], "code": "NF999"}).text
    assert said("new", stuck).text.startswith("`new` (batch-norm) is new, and is left: NF103")
    assert "is not in the network any more" in said(gone, None).text


def test_a_new_name_hides_no_norm_that_stopped_folding(old: dict[str, Any]) -> None:
    gone = next(name for name, site in old["sites"].items() if site["state"] == "gone")
    sites = {name: site for name, site in old["sites"].items() if name != gone}
    stuck = {"kind": old["sites"][gone]["kind"], "state": "left", "code": "NF105"}
    (found,) = differences(old, sites={**sites, "other": stuck})
    assert found.state == "fail"
    assert f"`other` (batch-norm), which was `{gone}`, stopped folding" in found.text
    folds, more = differences(old, sites={**sites, "other": {**stuck, "state": "gone"}})
    assert {folds.state, more.state} == {"note"}


def test_the_file_is_sorted_and_has_a_line_for_each_site(
    old: dict[str, Any], tmp_path: Path
) -> None:
    text = lock.text({"b": old, "a": old})
    lines = text.splitlines()
    assert text.index('"a": {') < text.index('"b": {')
    assert all(sum(f'"{site}": {{' in line for line in lines) == 2 for site in old["sites"])
    path = tmp_path / "normfold.lock"
    path.write_text(text)
    assert lock.read(path) == {"a": old, "b": old}
    assert lock.read(tmp_path / "none") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 9, "models": {}}',
        '{"schema": 1, "models": {"a": 3}}',
        "[" * 99999,
    ],
)
def test_a_damaged_lock_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "normfold.lock"
    path.write_text(text)
    with pytest.raises(UsageError, match="the lock cannot be read") as caught:
        lock.read(path)
    assert "--update" in str(caught.value.hint)
