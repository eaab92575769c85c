"""What parser and builder complain about, in the user's terms: the layer, the source line, what to change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normfold.errors import ExportError
from normfold.export.cleanup import Origin

_HINTS = {
    "UNSUPPORTED_NODE": "the builder has no such op: compute it outside the network, or write it with others",
    "UNSUPPORTED_GRAPH": "the builder cannot run this form of the op: `normfold inspect MODEL --graph` shows it",
    "MODEL_DESERIALIZE_FAILED": "the file is damaged or no ONNX: write it again",
}
_PATTERNS = (
    (
        "not supported by a dedicated kernel",
        "attention must be plain ops, as the dialect `trt` writes it",
    ),
    ("zero point", "only symmetric int8 is taken: zero points must be 0"),
    ("type DOUBLE", "float64 is not supported: convert the network to float32"),
    ("data-dependent", "sizes that data decide are not supported there: pad to a fixed size"),
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
        found.append(f"{code}{f' ({op})' if op else ''}: {_tidy(error.desc())}")
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
    named = [node for node in sorted(origins, key=len, reverse=True) if node in text]
    return ExportError(
        "the engine could not be built",
        where=_place(named[0], origins[named[0]], path) if named else str(path),
        found=_tidy(errors[0]) if errors else "no reason given",
        hint=_hint(text, "") or _GENERAL,
    )


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
    return next((hint for pattern, hint in _PATTERNS if pattern in text), otherwise)


def _tidy(text: str) -> str:
    """Without the builder's source files and links."""
    text = re.sub(r"\(\s*(In|See) [^)]*\)", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text[:400]
