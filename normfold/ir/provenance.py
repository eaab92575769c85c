"""Where a node comes from: the module path and the user's source line that torch.export recorded."""

from __future__ import annotations

import re

import torch
from torch import fx

FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>.*)'
)
_TORCH = tuple(f"{path}/" for path in torch.__path__)


def is_user_file(file: str) -> bool:
    """True for a file that is not torch's own (the user's code, or a model library's)."""
    return not file.startswith((*_TORCH, "<"))


def call_path(node: fx.Node) -> str:
    """Path of the innermost module call that made ``node`` ("" for the root); ``bn@1`` is the second of ``bn``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
    return (
        "" if path.startswith("_empty") else path
    )  # torch's marker for nodes that its own passes made


def module_path(node: fx.Node) -> str:
    """`call_path` without the number of the call: the module is the same."""
    return call_path(node).split("@")[0]


def layer_name(node: fx.Node) -> str:
    """The module path, or the node's own name where it has none: what layers are called in files and reports."""
    return module_path(node) or node.name


def module_type(node: fx.Node) -> str:
    """Class name of the innermost module call that made ``node`` ("" if unknown)."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    kind = next(reversed(stack.values()))[1]
    return str(kind if isinstance(kind, str) else kind.__qualname__).rsplit(".", 1)[-1]


def source_line(node: fx.Node) -> str:
    """``file.py:12: code`` of the user's innermost line outside torch ("" if unknown)."""
    frames = list(FRAME.finditer(node.meta.get("stack_trace") or ""))
    users = [frame for frame in frames if is_user_file(frame["file"])] or frames
    if not users:
        return ""
    frame = users[-1]
    return f"{frame['file']}:{frame['line']}: {frame['code'].strip()}"


def place_of(node: fx.Node) -> str:
    """The module and the user's line, in words: ``blocks.3.norm, nets.py:12: return self.norm(x)``."""
    return ", ".join(filter(None, [module_path(node), source_line(node)])) or node.name


def copy_provenance(source: fx.Node, target: fx.Node) -> None:
    """Give a node made by a pass the origin of the node that it stands for."""
    for key in ("nn_module_stack", "stack_trace"):
        if key in source.meta:
            target.meta.setdefault(key, source.meta[key])


def enclosing(path: str) -> list[str]:
    """A module path and those of the modules around it: ``a.b`` and ``a`` for ``a.b``."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
