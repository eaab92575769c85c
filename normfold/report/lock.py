"""The lock of `check`: what is known of every model, to be committed, and what has changed since, in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.report.cases import Drift, Entry
from normfold.report.causes import Causes, Edits

SCHEMA = 1
_DEEP = 3  # levels of the file that have a line for each entry
_FOLDED = ("gone", "converted")
_SIZE, _BYTES = 0.02, 1024  # a file may grow by this share, or by so many bytes
_TIME = 0.02  # an interval may lie this much behind the other one
_SHARE = 0.005  # of ops in integers
_ERROR = 10.0  # times what it was
# what a lock holds of a model; a list has one shape for all, a dict with "" one for all values
_TIME_SHAPE = {"ratio": float, "low": float, "high": float, "machine": str}
_SHAPE: dict[str, Any] = {
    "verdict": str,
    "job": [str],
    "files": {"": str},
    "versions": {"": str},
    "sites": {"": {"kind": str, "state": str}},
    "kernels": {"": int},
    "opset": int,
    "sizes": {"": int},
    "errors": {"": float},
}
_MORE = {"integers": float, "time": _TIME_SHAPE, "variables": {"": str}}
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A result and what it was made of.

    Attributes:
        words: the command, its model and its options.
        files: SHA-256 of what was read, by path.
        machine: what its time was measured on.
        variables: of the environment that the user's code asked for, each with a mark of its value.
    """

    entry: Entry
    words: Sequence[str]
    files: Mapping[str, str]
    machine: str
    variables: Mapping[str, str] = field(default_factory=dict)


def record(run: Run) -> dict[str, Any]:
    """What the lock says of a model, as plain data."""
    data = run.entry.data
    made: dict[str, Any] = {
        "verdict": run.entry.state,
        "job": list(run.words),
        "files": dict(run.files),
        "versions": data.get("versions", {}),
        "sites": _recorded_sites(run.entry),
        "kernels": data.get("census", {}),
        "opset": data.get("opset", 0),
        "sizes": {
            item["path"].rpartition("/")[2]: item["size"] for item in data.get("artefacts", ())
        },
        "errors": {
            item["kind"]: float(f"{item['needed_tolerance']:.2g}")
            for item in data.get("checks", ())
            if item.get("needed_tolerance")
        },
    }
    if run.variables:
        made["variables"] = dict(run.variables)
    counted = [item for item in data.get("quantization", ()) if item["integer"] or item["floats"]]
    if counted:
        integer, floats = (sum(counted[-1][key].values()) for key in ("integer", "floats"))
        made["integers"] = round(integer / (integer + floats), 4)
    placed = [item["placement"] for item in data.get("quantization", ()) if item["placement"]]
    timed = [item for item in (data.get("timing"), *reversed(placed)) if item]
    if timed:
        numbers = (timed[0]["ratio"], *timed[0]["interval"])
        made["time"] = dict(
            zip(("ratio", "low", "high"), (round(x, 3) for x in numbers), strict=True),
            machine=run.machine,
        )
    return made


def _recorded_sites(entry: Entry) -> dict[str, dict[str, str]]:
    """What became of each site, and of those that are left why, and at which line."""
    found = {
        item["site"]: {key: item[key] for key in ("kind", "state", "code", "line") if item[key]}
        for item in entry.data.get("sites", ())
    }
    for item in entry.left():
        place = [
            item.get("reason"),
            item.get("detail"),
            item.get("node") and f"at `{item['node']}`",
        ]
        own = found[item["site"]]
        own["line"] = next(x["line"] for x in entry.data["sites"] if x["site"] == item["site"])
        own["why"], own["at"] = ", ".join(filter(None, place)), item.get("line", "")
    return found


def text(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The lock as it is written: sorted, so that what changed is a line of a diff."""
    return _written({"schema": SCHEMA, "models": models}, 0) + "\n"


def _written(value: Any, depth: int) -> str:
    if not isinstance(value, Mapping) or depth > _DEEP or not value:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    inner = "  " * (depth + 1)
    rows = [
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_written(value[key], depth + 1)}"
        for key in sorted(value)
    ]
    return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The models of a lock; none where there is no file.

    Raises:
        UsageError: it is not a lock, or one of another version.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        models = _models(json.loads(text))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        found, hint = str(error)[:200], "`normfold check --update` writes it anew"
        if isinstance(error, ValueError) and _CONFLICT.search(text):
            found, hint = "marks of a merge conflict", f"take one side, or resolve them; {hint}"
        raise UsageError(
            "the lock cannot be read", where=str(path), found=found, hint=hint
        ) from error
    return models


def _models(data: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(data, dict) or not isinstance(data.get("models"), dict):
        raise ValueError("no object with `schema` and `models`")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')!r}; this version has {SCHEMA}")
    for name, item in data["models"].items():
        if not isinstance(item, dict):
            raise ValueError(f"`{name}` is damaged")
        optional = {key: shape for key, shape in _MORE.items() if item.get(key) is not None}
        if not _fits(item, {**_SHAPE, **optional}):
            raise ValueError(f"`{name}` is damaged")
    models: dict[str, dict[str, Any]] = data["models"]
    return models


def _fits(value: Any, shape: Any) -> bool:
    """Whether plain data has a shape."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if "" in shape:
            return all(_fits(item, shape[""]) for item in value.values())
        return all(key in value and _fits(value[key], inner) for key, inner in shape.items())
    if isinstance(value, bool):
        return False
    if shape is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, shape) and (shape is str or value >= 0)


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], edits: Edits = lambda path, line: ""
) -> Iterator[Drift]:
    """Every difference of a model from its lock: what is worse fails, the rest is said.

    Args:
        edits: how a source file was changed near one of its lines.
    """
    causes = Causes.of(old, new, edits)
    because = causes.because()
    yield from _inputs(old, new, causes)
    yield from _sites(old["sites"], new["sites"], causes)
    # else nothing was written, which has its own reason
    if new["sizes"] or new["verdict"] != "fail":
        yield from _files(old, new, because)
    for text in causes.edited():
        yield Drift("source", "note", text)
    if causes.versions:
        yield Drift("version", "note", causes.versions)


def _files(old: Mapping[str, Any], new: Mapping[str, Any], because: str) -> Iterator[Drift]:
    """What is written."""
    if old["opset"] != new["opset"] and new["opset"]:
        yield Drift("opset", "fail", f"opset {new['opset']}, was {old['opset']}{because}")
    for name, size in new["sizes"].items():
        before = old["sizes"].get(name)
        if before is None or not before:
            yield Drift("file", "note", f"`{name}` is a new file{because}")
        elif abs(size / before - 1) > _SIZE and abs(size - before) > _BYTES:
            grown = size > before
            words = f"`{name}` has {_bytes(size)}, had {_bytes(before)} ({size / before - 1:+.1%})"
            yield Drift("size", "fail" if grown else "note", words + because)
    for name in sorted(old["sizes"].keys() - new["sizes"].keys()):
        yield Drift("file", "fail", f"`{name}` is not written any more{because}")
    yield from _kernels(old, new, because)
    yield from _time(old.get("time"), new.get("time"), because)
    worse = [
        f"{kind} errs by {error:.1e}, by {old['errors'][kind]:.1e} before"
        for kind, error in new["errors"].items()
        if old["errors"].get(kind) and error > _ERROR * old["errors"][kind]
    ]
    if worse:
        yield Drift("error", "note", f"{'; '.join(worse)}{because}")


def _inputs(old: Mapping[str, Any], new: Mapping[str, Any], causes: Causes) -> Iterator[Drift]:
    """What the result is made of."""
    for name in sorted(old["files"].keys() & new["files"].keys()):
        if old["files"][name] != new["files"][name] and not name.endswith(".py"):
            yield Drift(
                "input",
                "fail",
                f"`{name}` is not the file of the lock (sha256 {new['files'][name][:12]}, was "
                f"{old['files'][name][:12]})",
            )
    if causes.options:
        yield Drift("job", "note", causes.options)


def _sites(old: Mapping[str, Any], new: Mapping[str, Any], causes: Causes) -> Iterator[Drift]:
    renamed = _renamed(old, new)
    for name, now in new.items():
        before = name if name in old else renamed.get(name, name)
        was, line = old.get(before), now.get("line", "")
        because = causes.because(now.get("at") or line)
        reason = now.get("code", "")
        if was is None:
            what = f"`{name}` ({now['kind']}) is new, and {_state(now)}{reason and f': {reason}'}"
            yield Drift("site", "note", what + because, line)
        elif was["state"] in _FOLDED and now["state"] not in _FOLDED:
            own = "" if before == name else f", which was `{before}`,"
            what = f"`{name}` ({now['kind']}){own} stopped folding, and {_state(now)}"
            what += f": {reason}" if reason else ""
            what += f" {now['why']}" if now.get("why") else ""
            if was.get("line") and _code(was["line"]) != _code(line):
                what += f"; its line was `{_code(was['line'])}`, is `{_code(line)}`"
            yield Drift("site", "fail", what + because, now.get("at") or line)
        elif was["state"] not in _FOLDED and now["state"] in _FOLDED:
            yield Drift("site", "note", f"`{name}` ({now['kind']}) folds now{because}", line)
        elif was.get("code", "") != reason:
            codes = f"{was.get('code') or 'none'} to {reason or 'none'}"
            yield Drift("site", "note", f"`{name}` {_state(now)} for another reason: {codes}", line)
    for name in sorted(old.keys() - new.keys() - {*renamed.values()}):
        what = f"`{name}` ({old[name]['kind']}) is not in the network any more"
        yield Drift("site", "note", what + causes.because(old[name].get("line", "")))


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Sites that are new and left, each with one of its kind that folded and is gone: a new name hides nothing."""
    gone = [name for name in old if name not in new and old[name]["state"] in _FOLDED]
    found = {}
    for name, now in new.items():
        if name not in old and now["state"] not in _FOLDED:
            other = next((x for x in gone if old[x]["kind"] == now["kind"]), None)
            if other is not None:
                gone.remove(other)
                found[name] = other
    return found


def _state(site: Mapping[str, Any]) -> str:
    return {"gone": "is folded away", "kept": "is kept", "left": "is left"}.get(
        site["state"], f"is {site['state']}"
    )


def _code(line: str) -> str:
    """The text of a source line, without its place."""
    return line.split(": ", 1)[-1].strip()


def _kernels(old: Mapping[str, Any], new: Mapping[str, Any], because: str) -> Iterator[Drift]:
    share, before = new.get("integers"), old.get("integers")
    if before is not None and (share or 0.0) < before - _SHARE:
        yield Drift(
            "integers", "fail", f"{share or 0:.1%} run in integers, did {before:.1%}{because}"
        )
    a, b = old["kernels"], new["kernels"]
    changed = [
        f"{op} {a.get(op, 0)} to {b.get(op, 0)}"
        for op in sorted(a.keys() | b.keys())
        if a.get(op, 0) != b.get(op, 0)
    ]
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        yield Drift("kernels", "note", f"ops of the file: {', '.join(changed[:6])}{more}{because}")


def _time(
    old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, because: str
) -> Iterator[Drift]:
    if old is None or new is None:
        if old is not None:
            yield Drift("time", "note", "it is not timed any more")
        return
    words = f"takes {_interval(new)} of the original's time, took {_interval(old)}"
    if old["machine"] != new["machine"]:
        if new["low"] > old["high"] or new["high"] < old["low"]:
            yield Drift(
                "time", "note", f"{words} on another machine ({old['machine']}): not compared"
            )
    elif new["low"] > old["high"] * (1 + _TIME):
        slower = new["ratio"] / old["ratio"] - 1
        yield Drift("time", "fail", f"{slower:.0%} slower: {words}{because}")
    elif new["high"] < old["low"] * (1 - _TIME):
        yield Drift("time", "note", f"faster: {words}{because}")


def _interval(time: Mapping[str, Any]) -> str:
    return f"{time['ratio']:.3g} ({time['low']:.3g} to {time['high']:.3g})"


def _bytes(size: float) -> str:
    return f"{size / 1e6:.4g} MB" if math.log10(size or 1) >= 5 else f"{size / 1e3:.4g} kB"
