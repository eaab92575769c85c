"""What parser and builder complain about, in the user's terms: the layer, the source line, what to change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normfold.errors import ExportError
from normfold.targets.cleanup import Origin

_NO_SUCH_OP = "the builder has no such op: compute it outside the network, or write it with others"
_HINTS = {
    "UNSUPPORTED_NODE": _NO_SUCH_OP,
    "UNSUPPORTED_GRAPH": "the builder cannot run this form of the op: `normfold inspect MODEL --graph` shows it",
    "MODEL_DESERIALIZE_FAILED": "the file is damaged or no ONNX: write it again",
}
# what a message says: the hint, and the op that the message is about where it names no node
_PATTERNS = (
    (
        "Attention operation was not supported",
        "attention must be plain ops, as the targets `trt` and `trt-rtx` write it",
        "Attention",
    ),
    ("Plugin not found", _NO_SUCH_OP, ""),
    ("zero point is not supported", "only symmetric int8 is taken: zero points must be 0", ""),
    ("not a regular file", "there is no such file", ""),
    (
        "at least one output",
        "the file holds no network: it is empty or cut off; write it again",
        "",
    ),
    (
        "for Turing (SM75)",
        "Turing takes networks in half precision only: `--precision fp16`, or `--gpu-arch` without sm75",
        "",
    ),
    (
        "HW-specific datatypes",
        "not every GPU of `--gpu-arch` has the network's types: bf16 needs sm80 or newer",
        "",
    ),
    ("within workspace limit", "give it more memory with `--workspace`, or leave that out", ""),
    ("profile", "`--dynamic NAME:AXIS=MIN..OPT..MAX` sets the sizes that it is built for", ""),
)
_GENERAL = (
    "`normfold inspect MODEL --graph` shows the op in its place; an issue with both would help us"
)


def parse_error(parser: Any, path: Path, origins: Mapping[str, Origin]) -> ExportError:
    """The parser's errors as one, with the node, what it comes from, and what to change."""
    found, hint, where = [], "", str(path)
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        code = str(error.code()).rsplit(".", 1)[-1]
        node, op = error.node_name() or "", error.node_operator() or ""
        origin = origins.get(node)
        if index == 0 and node:
            where = _place(node, origin, path)
        why = tidy(error.desc())
        said = "" if why == "false" else f": {why}"  # the condition that did not hold, and no more
        found.append(f"{code}{f' ({op})' if op else ''}{said}")
        hint = hint or _hint(error.desc(), _HINTS.get(code, ""))
    return ExportError(
        "the engine's parser refuses the ONNX file",
        where=where,
        found="; ".join(dict.fromkeys(found)) or "no reason given",
        hint=hint or _GENERAL,
    )


def build_error(
    lines: Sequence[tuple[str, str]], path: Path, origins: Mapping[str, Origin]
) -> ExportError:
    """The builder's errors as one, with the first node that they name."""
    errors = [text for level, text in lines if level != "WARNING"]
    text = " ".join(errors)
    node = _named(text, origins)
    return ExportError(
        "the engine could not be built",
        where=_place(node, origins[node], path) if node else str(path),
        found=tidy(errors[0]) if errors else "no reason given",
        hint=_hint(text, "") or _GENERAL,
    )


def _named(text: str, origins: Mapping[str, Origin]) -> str:
    """The node that a message names, or the first of the op that it is about."""
    for node in sorted(origins, key=len, reverse=True):  # `a/Mul_12` before `a/Mul`
        if node in text:
            return node
    op = next((op for pattern, _, op in _PATTERNS if op and pattern in text), None)
    return next((node for node in origins if op and f"/{op}" in node), "")


def _place(node: str, origin: Origin | None, path: Path) -> str:
    if origin is None:
        return f"node `{node}` of {path}"
    parts = [f"node `{node}`", f"from `{origin.node}`"]
    if origin.path:
        parts.append(f"in module `{origin.path}`")
    if origin.line:
        parts.append(origin.line)
    return ", ".join(parts)


def _hint(text: str, otherwise: str) -> str:
    return next((hint for pattern, hint, _ in _PATTERNS if pattern in text), otherwise)


def tidy(text: str) -> str:
    """Without the builder's own source files and links."""
    text = re.sub(r"\[checkMacros\.cpp::catchCudaError.*", "", text)  # says that there is no GPU
    text = re.sub(r"[ .]*\bIn \w+ at /_src/[\w/.]+:\d+", "", text)
    text = re.sub(r"\(See https?://[^)]*\)", "", text)
    text = re.sub(r"\(In /[^)]*\)", "", text)
    return " ".join(text.split())[:400]
