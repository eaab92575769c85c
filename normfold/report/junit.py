"""JUnit XML, in the form that Jenkins and GitLab read: a suite for each model, a test case for each verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as xml

from normfold.report.cases import Case, Entry

_ELEMENTS = {"fail": "failure", "error": "error", "unproved": "skipped"}
# what XML 1.0 has no characters for
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(entries: Sequence[Entry]) -> str:
    """The text of a file."""
    root = xml.Element("testsuites", name="normfold")
    for entry in entries:
        cases = entry.cases() or [Case("run", "", "pass", entry.outcome)]
        counts = Counter(case.state for case in cases)
        seconds = float(entry.data.get("seconds") or 0.0)
        suite = xml.SubElement(
            root,
            "testsuite",
            name=_clean(entry.name),
            tests=str(len(cases)),
            failures=str(counts["fail"]),
            errors=str(counts["error"]),
            skipped=str(counts["unproved"]),
            time=f"{seconds:.3f}",
        )
        for case in cases:
            _add(suite, case, entry.name)
        xml.SubElement(suite, "system-out").text = _clean(entry.outcome)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(suite: xml.Element, case: Case, model: str) -> None:
    test = xml.SubElement(
        suite,
        "testcase",
        name=_clean(f"{case.kind} {case.name}".strip()),
        classname=_clean(model),
        time=f"{case.seconds:.3f}",
    )
    if case.state in _ELEMENTS:
        first = case.text.partition("\n")[0]
        found = xml.SubElement(
            test, _ELEMENTS[case.state], message=_clean(first), type=_clean(case.kind)
        )
        found.text = _clean(case.text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
