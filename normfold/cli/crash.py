"""An exception that nobody foresaw: one short message, and the traceback in a file."""

from __future__ import annotations

import re
import traceback

from normfold.cli.show import last_progress
from normfold.cli.supervise import traceback_file
from normfold.errors import InternalError

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_OURS = ("/normfold/", "/passes/", "/site-packages/", "/lib/python", "<")
# by the first words of the stage: what gets around it
_WAYS = {
    "loading": "`normfold doctor MODEL` loads and captures it alone",
    "capturing": "`--batch static`, or `normfold doctor MODEL` for every obstacle",
    "checking": "`--verify off` skips the verdict",
    "judging": "`--verify off` skips the verdict",
    "writing": "`--opset 20`, or another `--target`",
    "building": "`--workspace`, or `--export onnx` alone",
    "finding": "`--data` with samples of yours, or `--scheme int8-weights`",
    "synthesising": "`--data` with samples of yours, or `--scheme int8-weights`",
    "putting": "`--scheme int8-weights`",
}


def crash(error: BaseException) -> InternalError:
    """What to say of an exception; its traceback is saved."""
    stage = last_progress()
    text = "".join(traceback.format_exception(error))
    saved = traceback_file(text)
    first = (str(error).strip().splitlines() or [""])[0][:200]
    way = _WAYS.get(
        stage.stage.split()[0], "`--passes canonicalize,restore,bake` leaves out most passes"
    )
    return InternalError(
        f"a fault in normfold while {stage.stage}{f' ({stage.text})' if stage.text else ''}",
        where=_users_line(text),
        found=f"{type(error).__name__}: {first}",
        hint=f"to try: {way}. Please report it, with the traceback in `{saved}`",
    )


def _users_line(text: str) -> str | None:
    """The last line of the user's own source that the traceback names: of the network, where torch says it."""
    frames = [
        f"{found['file']}:{found['line']}"
        for found in _FRAME.finditer(text)
        if not any(part in found["file"] for part in _OURS)
    ]
    return frames[-1] if frames else None
