"""Writes `normfold/generated.py`, the typed form of `normfold.convert`, from the options of a job.

`python -m tests.signature` writes it; a test compares.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from normfold.job import Option, all_options

TARGET = Path(__file__).resolve().parents[1] / "normfold" / "generated.py"
_HEAD = '''"""`normfold.convert`: every option of a job as a keyword. Written by `python -m tests.signature`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from normfold.conversion import Result, execute
from normfold.job import EngineOptions, Job, Quantize, Train, all_options
from normfold.job.option import same
from normfold.progress import Listener, silent

if TYPE_CHECKING:
    from normfold.rewrite import Pass

_DEFAULTS = {item.keyword: item.default for item in all_options()}


'''
_TAIL = """
    whole = [group for group in (training, quantization, engine) if group is not None]
    given = {
        name: value
        for name, value in locals().items()
        if name in _DEFAULTS and not same(value, _DEFAULTS[name])
    }
    return execute(Job.of({"model": model, **given}, whole=whole), progress or silent)
"""
_WHOLE = (
    ("training", "Train | None", "options of training as one object"),
    ("quantization", "Quantize | None", "options of quantising as one object"),
    ("engine", "EngineOptions | None", "options of engines as one object"),
    ("progress", "Listener | None", "called with a `Progress` before each step"),
)


def annotation(item: Option) -> str:
    """The type of an option in the signature."""
    names = {"int": "int", "float": "float", "bool": "bool", "any": "Any", "str": "str"}
    kind = names.get(item.kind, "str | os.PathLike[str]")
    if item.name == "passes":
        kind = "str | Sequence[Pass] | None"
    elif item.choices:
        kind = f"Literal[{', '.join(repr(choice) for choice in item.choices)}]"
    if item.count > 1:
        return f"tuple[{', '.join([kind] * item.count)}] | None"
    if item.many:
        kind = f"Sequence[{kind}]" if item.kind == "any" else f"{kind} | Sequence[{kind}]"
        return f"{kind} | None" if item.name == "export" else kind
    return f"{kind} | None" if item.optional and "None" not in kind else kind


def default(item: Option) -> str:
    """The default of an option in the signature."""
    if item.kind == "path" and item.default is not None:
        return repr(str(item.default))
    return repr(item.default)


def text() -> str:
    """The file, formatted."""
    options = sorted(all_options(), key=lambda item: item.name != "to")
    lines = ["def convert(", "    model: Any,"]
    for item in options:
        lines.append(f"    {item.keyword}: {annotation(item)} = {default(item)},")
        if item.name == "to":
            lines.append("    *,")
    lines += [f"    {name}: {kind} = None," for name, kind, _ in _WHOLE]
    lines += [") -> Result:", *docstring(options)]
    source = _HEAD + "\n".join(lines) + _TAIL
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def docstring(options: list[Option]) -> list[str]:
    """What `convert` says of itself: the help of every option."""
    lines = [
        '    """Load, capture, rewrite, verify, export, and verify again what was exported.',
        "",
        "    Args:",
        "        model: any MODEL of the command line, a module, or a captured graph.",
    ]
    rows = [(item.keyword, item.declared.help.rstrip(".")) for item in options]
    rows += [(name, words) for name, _, words in _WHOLE]
    for name, words in rows:
        first = (
            words
            if words[1:2].isupper() or "Norm" in words.split()[0]
            else words[0].lower() + words[1:]
        )
        rest = 8 * " "
        wrapped = textwrap.wrap(f"{name}: {first}.", 104, subsequent_indent=4 * " ")
        lines += [rest + line for line in wrapped]
    lines += [
        "",
        "    Returns:",
        "        The result; ``result.ok`` is False where a verdict or the policy failed.",
        "",
        "    Raises:",
        "        NormfoldError: as `normfold.conversion.execute`.",
        '    """',
    ]
    return lines


if __name__ == "__main__":
    TARGET.write_text(text())
