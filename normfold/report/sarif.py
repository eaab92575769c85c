"""SARIF 2.1.0, as code scanning reads it: sites that are left and verdicts that failed, at the user's lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normfold.report.cases import Entry
from normfold.report.places import place
from normfold.report.places import root as repository

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"fail": "error", "error": "error", "unproved": "warning"}
MOST = 5000  # results that GitHub shows of a run; 25,000 make it refuse the file


def sarif(entries: Sequence[Entry], root: Path | None = None, most: int = MOST) -> str:
    """The text of a file.

    Args:
        root: paths below it are written relative to it, as code scanning wants them; the repository's, where the
            CI service says it, else the current folder.
        most: results; failures first. How many were left out stands in the last one's place.
    """
    found = [item for entry in entries for item in _results(entry, root or repository())]
    found.sort(key=lambda item: ("error", "warning", "note").index(item["level"]))
    if len(found) > most:
        text = f"{len(found) - most + 1} omitted: code scanning shows {most} of a run"
        found = [*found[: most - 1], _result("normfold-omitted", "note", text)]
    rules = {
        item["ruleId"]: {
            "id": item["ruleId"],
            "shortDescription": {"text": item.pop("_rule")},
            "help": {"text": item.pop("_help")},
        }
        for item in found
    }
    driver: dict[str, Any] = {"name": "normfold", "rules": list(rules.values())}
    versions = [entry.data.get("versions", {}).get("normfold") for entry in entries]
    if any(versions):
        driver["version"] = next(filter(None, versions))
    run = {"tool": {"driver": driver}, "results": found, "columnKind": "unicodeCodePoints"}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _results(entry: Entry, root: Path) -> Iterator[dict[str, Any]]:
    for case in entry.cases():
        if case.state in _LEVELS:
            what = f"{entry.name}: {case.kind} {case.name}".strip()
            result = _result(
                f"normfold-{case.kind}", _LEVELS[case.state], f"{what}: {case.text}", entry.name
            )
            yield _located(result, case.line, root)
    for site in entry.left():
        reason, hint = site.get("reason", ""), site.get("hint", "")
        text = f"{entry.name}: {site['kind']} `{site['site']}` is left: {reason or site['code']}"
        place = f"{entry.name}/{site['site']}"
        result = _result(site["code"], "note", text, place, reason, hint)
        yield _located(result, str(site.get("line", "")), root)


def _result(
    rule: str, level: str, text: str, place: str = "", meaning: str = "", hint: str = ""
) -> dict[str, Any]:
    made: dict[str, Any] = {"ruleId": rule, "level": level, "message": {"text": text}}
    if place:
        made["partialFingerprints"] = {"normfold/v1": f"{rule}:{place}"}
        made["locations"] = [
            {"logicalLocations": [{"fullyQualifiedName": place, "kind": "module"}]}
        ]
    return made | {"_rule": meaning or rule, "_help": hint or meaning or rule}


def _located(result: dict[str, Any], line: str, root: Path) -> dict[str, Any]:
    """A result at a source line, where there is one."""
    location = _location(line, root)
    return result if location is None else {**result, "locations": [location]}


def _location(line: str, root: Path) -> Mapping[str, Any] | None:
    found = place(line, root)
    if found is None:
        return None
    uri = found.path.as_uri() if found.path.is_absolute() else quote(found.path.as_posix())
    region: dict[str, Any] = {"startLine": found.number}
    if found.text:
        region["snippet"] = {"text": found.text}
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}
