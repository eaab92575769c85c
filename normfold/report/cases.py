"""What a report says, as cases with a state: what JUnit, SARIF and Markdown have in common.

Reports are read as plain data, as their JSON has it, so that those of earlier runs are rendered too.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["pass", "fail", "error", "unproved"]
_SOURCE = re.compile(r".+\.py:\d+(: |$)")  # a line of Python's
_WORST: tuple[State, ...] = ("error", "fail", "unproved", "pass")
_STATES: dict[str, State] = {
    "pass": "pass",
    "ok": "pass",
    "certified": "pass",
    "partly": "pass",  # other lines of the verdict stand in
    "fail": "fail",
    "failed": "fail",
    "not judged": "unproved",
}


@dataclass(frozen=True)
class Case:
    """One thing that was judged.

    Attributes:
        kind: ``load``, ``policy``, ``certificate``, ``rounding``, ``onnxruntime-all``, ``file``, ...
        name: what it is about: a pass, a file.
        text: what was found, in words.
        seconds: that it took.
        line: of the user's source, ``file:number: text``.
    """

    kind: str
    name: str
    state: State
    text: str = ""
    seconds: float = 0.0
    line: str = ""


@dataclass(frozen=True)
class Drift:
    """A difference from the lock.

    Attributes:
        kind: ``site``, ``size``, ``opset``, ``time``, ``input``, ``kernels``, ``version``, ...
        state: ``fail`` where it is worse, ``note`` where it is only another.
        line: of the user's source, ``file:number: text``.
    """

    kind: str
    state: Literal["fail", "note"]
    text: str
    line: str = ""


@dataclass(frozen=True)
class Entry:
    """One model of a run: its name, and its report as plain data, or that of the error that it ended with.

    Attributes:
        drift: how it differs from its lock.
        read, variables: the files that it was made from, and the environment variables that the user's code asked
            for, where that was recorded.
        cached: it is the result of an earlier run, and holds.
        place: ``file:number`` of where the configuration asks for it.
    """

    name: str
    data: Mapping[str, Any]
    drift: tuple[Drift, ...] = ()
    read: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    cached: bool = False
    place: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        more = {
            "cached": self.cached,
            "read": self.read,
            "variables": self.variables,
            "drift": self.drift,
            "place": self.place,
        }
        return {
            "name": self.name,
            **{key: _plain(value) for key, value in more.items() if value},
            **self.data,
        }

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> Entry:
        """From what `to_dict` made, or a report as a run writes it."""
        rest = dict(data)
        drift = tuple(Drift(**item) for item in rest.pop("drift", ()))
        read, variables = tuple(rest.pop("read", ())), tuple(rest.pop("variables", ()))
        cached = bool(rest.pop("cached", False))
        place = str(rest.pop("place", ""))
        return cls(str(rest.pop("name", name)), rest, drift, read, variables, cached, place)

    @property
    def error(self) -> Mapping[str, Any] | None:
        """What, where, found and hint of an error that ended the run."""
        return self.data.get("error")

    @property
    def exit_code(self) -> int:
        return int(self.data.get("exit_code", 0))

    @property
    def state(self) -> State:
        """The worst of its cases."""
        found = {case.state for case in self.cases()}
        return next((state for state in _WORST if state in found), "pass")

    @property
    def outcome(self) -> str:
        """What happened, in one line."""
        if self.error is not None:
            return str(self.error.get("what", ""))
        worse = next((item for item in self.drift if item.state == "fail"), None)
        if worse is not None and not self.exit_code:
            return f"not as its lock says: {worse.text}"
        return str(self.data.get("outcome", ""))

    def cases(self) -> list[Case]:
        """Everything that was judged, in the order of the run; no two have one kind and name."""
        worse = [item for item in self.drift if item.state == "fail"]
        found = [
            *_cases(self.data),
            *(Case("lock", item.kind, "fail", item.text, line=item.line) for item in worse),
        ]
        counts = Counter[tuple[str, str]]()
        for at, case in enumerate(found):
            key = (case.kind, case.name)
            counts[key] += 1
            if counts[key] > 1:
                found[at] = dataclasses.replace(case, name=f"{case.name} {counts[key]}".strip())
        return found

    def left(self) -> list[Mapping[str, Any]]:
        """The sites that are left, with the reason of the decline: site, kind, code, reason, hint, line."""
        declined = {
            (item["site"], item["code"]): item
            for part in self.data.get("passes", ())
            for item in part.get("declined", ())
        }
        return [
            {**site, **declined.get((site["site"], site["code"]), {})}
            for site in self.data.get("sites", ())
            if site["state"] == "left" and site["code"]
        ]


def _plain(value: Any) -> Any:
    """Tuples of objects as lists of dicts."""
    if not isinstance(value, tuple):
        return value
    return [dataclasses.asdict(item) if isinstance(item, Drift) else item for item in value]


def _cases(data: Mapping[str, Any]) -> Iterator[Case]:
    error = data.get("error")
    if error is not None:
        parts = [error.get("what"), *(f"{key}: {error[key]}" for key in _DETAILS if error.get(key))]
        where = str(error.get("where") or "")
        line = where if _SOURCE.match(where) else ""
        yield Case("run", "", "error", "\n".join(map(str, parts)), line=line)
    for item in data.get("passes", ()):
        yield from _verdict(item.get("check"), item["spec"])
        yield from _certificate(item.get("certificate"), item["spec"])
    for item in data.get("checks", ()):
        yield from _verdict(item, item.get("artefact", ""))
    for item in data.get("ranges", ()):
        yield Case("range", item["type"], _STATES[item["state"]], item.get("why") or item["at"])
    for item in data.get("quantization", ()):
        if item.get("ok") is False:
            yield Case("policy", item["scheme"], "fail", str(data.get("outcome", "")))
    for item in data.get("artefacts", ()):
        verdict = item["verdict"]
        name = item["path"].rpartition("/")[2]
        yield Case("file", name, _STATES[verdict["state"]], verdict["why"])
    for text in data.get("unmet", ()):
        name, _, found = text.partition(", ")
        yield Case("policy", name, "fail", found or text)
    if data.get("ok") and error is None:
        for text in _required(data):
            yield Case("policy", "".join(text.split()), "pass", "met")
    for text in data.get("missing", ()):
        yield Case("machine", "", "unproved", text)


def _required(data: Mapping[str, Any]) -> list[str]:
    """The requirements of a job."""
    try:
        return list(map(str, tomllib.loads(data.get("job") or "").get("require", ())))
    except (tomllib.TOMLDecodeError, TypeError):  # of a report that was written by hand
        return []


_DETAILS = ("where", "found", "hint")


def _verdict(check: Mapping[str, Any] | None, name: str) -> Iterator[Case]:
    if check is not None:
        found = check.get("failures") or [_within(check)]
        text = "; ".join(filter(None, [*found, check.get("note")]))
        state: State = "pass" if check.get("ok") else "fail"
        yield Case(check["kind"], name, state, text, check.get("seconds") or 0.0)


def _within(check: Mapping[str, Any]) -> str:
    """What a check that passed found: the output that used most of its tolerance, or the agreement."""
    numbers = [item for item in check.get("outputs", ()) if item["error"] is not None]
    outputs = [item for item in numbers if item["tolerance"] is not None]
    if numbers and not outputs:
        return "nothing of it could be judged"
    if outputs:
        worst = max(outputs, key=lambda item: item["error"] / (item["tolerance"] or 1e-30))
        return f"error {worst['error']:.1e} at most, {worst['tolerance']:.1e} allowed"
    agreement, decibels = check.get("agreement"), check.get("snr_db") or ()
    parts = [] if agreement is None else [f"agreement {agreement:.1%}"]
    parts += [f"{value:.1f} dB" for value in decibels if value is not None]
    return ", ".join(parts)


def _certificate(found: Mapping[str, Any] | None, name: str) -> Iterator[Case]:
    if found is not None:
        wrong = [f"{x['output']}: {x['state']}" for x in found["outputs"] if x["state"] != "equal"]
        state, seconds = _STATES[found["state"]], found.get("seconds") or 0.0
        sites = len(found["covered"])
        words = f"{sites} of {sites + len(found['left'])} sites, over {len(found['primes'])} primes"
        yield Case("certificate", name, state, "; ".join([*wrong, words]), seconds)
