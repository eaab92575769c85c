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
_NOWHERE = "normfold.toml"  # of runs that no configuration asks for
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
        omitted = _located(
            _result("normfold-omitted", "note", text), root or repository(), entries[0].place
        )
        found = [*found[: most - 1], omitted]
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
            rule, of = f"normfold-{case.kind}", f"{entry.name}/{case.name}".strip("/")
            result = _result(rule, _LEVELS[case.state], f"{what}: {case.text}", of)
            yield _located(result, root, case.line, entry.place)
    for site in entry.left():
        reason, hint = site.get("reason", ""), site.get("hint", "")
        text = f"{entry.name}: {site['kind']} `{site['site']}` is left: {reason or site['code']}"
        place = f"{entry.name}/{site['site']}"
        result = _result(site["code"], "note", text, place, reason, hint)
        yield _located(result, root, str(site.get("line", "")), entry.place)


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


def _located(result: dict[str, Any], root: Path, *lines: str) -> dict[str, Any]:
    """A result at the first line of some that is one: code scanning refuses a file where one has none."""
    located = (_location(line, root) for line in lines)
    location = next(filter(None, located), None) or _location(f"{_NOWHERE}:1", root)
    (logical,) = result.get("locations", [{}])
    return {**result, "locations": [{**logical, **(location or {})}]}


def _location(line: str, root: Path) -> Mapping[str, Any] | None:
    found = place(line, root)
    if found is None:
        return None
    uri = found.path.as_uri() if found.path.is_absolute() else quote(found.path.as_posix())
    region: dict[str, Any] = {"startLine": found.number}
    if found.text:
        region["snippet"] = {"text": found.text}
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}
