"""What torch.export said when it could not capture a network, as one error with the user's own line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normfold.errors import CaptureError
from normfold.ir.provenance import FRAME, is_user_file
from normfold.ir.shared import WITHOUT_DATA

DOCTOR = (
    "run `normfold doctor MODEL`: it uses torch.export.draft_export to list every obstacle at once"
)
FIXED = "the network fixes a size that was asked to be dynamic"
DATA = (
    "a size or a branch depends on the numbers in a tensor (`int(tensor)`, `.item()`, `if tensor`), "
    "and a file holds one branch: mend that line"
)
_SPECIALISED = re.compile(
    r"marked L\['(?P<name>\w+)'\](?P<path>\S*)\.size\(\)\[(?P<axis>\d+)\] as dynamic "
    r"but your code specialized it to be a constant \((?P<size>\d+)\)"
)
_DECIDED = re.compile(r"data-dependent expression (.+?) \(")
_SMALL = 3
_OWN = f"{Path(__file__).parents[1]}{os.sep}"  # a user's folder may be called normfold too
_FAKE = "fake tensor in the exported program constant's list"
_DATA = ("data-dependent", "Data-dependent", "data dependent")


def capture_error(errors: Sequence[Exception]) -> CaptureError:
    """The error of a capture that was tried in several ways, with what the first of them raised."""
    text = str(errors[0])
    fixed = list(_SPECIALISED.finditer(text))
    where = _line(text)
    if fixed:  # of these only the strict mode of torch.export says the line
        same = [str(error) for error in errors if _SPECIALISED.search(str(error))]
        where = next((line for line in map(_line, same) if line), "")
        sizes = ", ".join(f"`{_axis(match)}` at {match['size']}" for match in fixed)
        reason, hint = f"the network fixes {sizes}", _free_it(fixed)
    else:
        reason = next(
            (line.strip() for line in text.splitlines() if line.strip()), type(errors[0]).__name__
        )
        hint = DOCTOR
        if any(word in text for word in _DATA):
            hint = f"{DATA}, or {DOCTOR}"
            decided = _DECIDED.search(reason)
            reason = f"the numbers in a tensor decide `{decided[1]}`" if decided else reason
        elif _FAKE in text:
            reason = "a tensor that no operation made, as `.data` of what the network computes is"
            hint = f"{WITHOUT_DATA}; else {DOCTOR}"
            where = next((line for line in map(_line, map(str, errors)) if line), "")
        elif "specialized" in text or "Constraints violated" in text or "not DYNAMIC" in text:
            hint = f"{FIXED}: use `--batch static`, or mend that line"
    return CaptureError(
        "torch.export could not capture the network",
        where=where or _raised_at(errors[0]) or None,
        found=reason[:500],
        hint=hint,
    )


def _axis(match: re.Match[str]) -> str:
    parts = re.findall(r"\['?(\w+)'?\]", match["path"])
    return f"{'.'.join([match['name'], *parts])}:{match['axis']}"


def _free_it(fixed: Sequence[re.Match[str]]) -> str:
    """The batch is the first axis; the others were named by the user."""
    named = [_axis(match) for match in fixed if match["axis"] != "0"]
    ways = ["use `--batch static`"] if len(named) < len(fixed) else []
    ways += [f"leave out `--dynamic {axis}`" for axis in named]
    return f"{FIXED}: {' and '.join(ways)}, or mend that line{_larger(fixed)}"


def _larger(fixed: Sequence[re.Match[str]]) -> str:
    """Of small examples: what is left of them may have size 1, and torch.export takes a 1 for fixed."""
    small = next((match for match in fixed if int(match["size"]) <= _SMALL), None)
    if small is None:
        return ""
    name = _axis(small).rpartition(":")[0]
    shape = f"{name}:4x..." if small["axis"] == "0" else f"{name}:..."
    return (
        f"; where it takes a part of the axis, such as `y[1:]`, which has size 1 in examples as small as these, "
        f"larger ones are enough (`--input {shape}`)"
    )


def _line(text: str) -> str:
    frames = [frame for frame in FRAME.finditer(text) if is_user_file(frame["file"])]
    if not frames:
        return ""
    return f"{frames[-1]['file']}:{frames[-1]['line']}: {frames[-1]['code'].strip()}"


def _raised_at(error: Exception) -> str:
    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if is_user_file(code.co_filename) and not code.co_filename.startswith(_OWN):
            where = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return where


def drafted(report: Any) -> list[str]:
    """Every failure in the report of torch.export.draft_export as a sentence with the user's line."""
    return list(dict.fromkeys(_drafted(item, report.str_to_filename) for item in report.failures))


def _drafted(failure: Any, files: dict[int, str]) -> str:
    from torch.export._draft_export import FailureType

    data = failure.data
    if failure.failure_type == FailureType.MISSING_FAKE_KERNEL:
        return f"`{data['op']}` has no rule for the shapes of its results (torch.library.register_fake)"
    if failure.failure_type == FailureType.MISMATCHED_FAKE_KERNEL:
        return f"`{data['op']}` has a wrong rule for its results: {data['reason']}"
    stack = data.get("user_stack") or data["stack"]
    frames = [(files.get(frame["filename"], ""), frame) for frame in stack]
    own = [(file, frame) for file, frame in frames if file and is_user_file(file)]
    at = f" at {own[-1][0]}:{own[-1][1]['line']}: {own[-1][1]['loc']}" if own else ""
    if failure.failure_type == FailureType.DATA_DEPENDENT_ERROR:
        return f"the numbers in a tensor decide `{data['expr']}`{at}"
    return f"a size is held to `{data['expr']}`{at}"
