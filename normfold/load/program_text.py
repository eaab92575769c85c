"""The JSON of a `.pt2` program: the texts in it that its loader would evaluate or import."""

from __future__ import annotations

import ast
import json
import operator
import re
from types import ModuleType
from typing import Any

import torch

from normfold.errors import LoadError

_ARITHMETIC = {
    "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor",
    "ceiling", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise", "Identity",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat",
}  # fmt: skip
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,4})?")
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name,
    ast.Constant, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
    ast.Tuple,
)  # fmt: skip
_BANNED_OPERATORS = {"attrgetter", "itemgetter", "methodcaller", "call"}
_IMPORTING = {"__enum__", "default_factory_module"}


def check_document(document: Any, where: str, depth: int = 0) -> None:
    """Walk a program's JSON and refuse what would evaluate text, import, or call freely.

    Raises:
        LoadError: with the offending text.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "from_node" and isinstance(value, str):
                continue  # a node's history, in the names of former targets: nobody resolves them
            if key in _IMPORTING:
                raise refused("a class to import", f"{key}: {value}", where)
            if key == "expr_str":
                check_expression(value, where)
            elif (key == "target" and isinstance(value, str)) or key == "as_operator":
                check_target(value, where)
            check_document(value, where, depth)
    elif isinstance(document, list):
        for value in document:
            check_document(value, where, depth)
    elif isinstance(document, str) and document.lstrip()[:1] in ("[", "{") and depth < 8:
        # Tree specs are JSON inside JSON, and their contexts are JSON once more.
        try:
            inner = json.loads(document)
        except ValueError:
            return
        check_document(inner, where, depth + 1)
    elif isinstance(document, str) and depth >= 8 and any(key in document for key in _IMPORTING):
        raise refused("text nested too deeply", document[:60], where)


def check_expression(text: Any, where: str) -> None:
    """Allow symbols, numbers and arithmetic: what is left cannot reach Python objects."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) < 100_000 else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        raise refused("a shape expression that cannot be checked", str(text)[:80], where)
    named: set[int] = set()
    for node in ast.walk(tree):
        ok = isinstance(node, _NODES)
        if isinstance(node, ast.Call):
            ok = isinstance(node.func, ast.Name) and not any(k.arg is None for k in node.keywords)
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name == "Symbol":
                first = node.args[0] if len(node.args) == 1 else None
                label = first.value if isinstance(first, ast.Constant) else None
                ok = ok and isinstance(label, str) and label.isidentifier()
                named.add(id(first))
            else:
                ok = ok and name in _ARITHMETIC
        elif isinstance(node, ast.Constant):
            # sympy evaluates strings wherever it wants a number.
            number = isinstance(node.value, str) and _NUMBER.fullmatch(node.value)
            ok = isinstance(node.value, int | float) or bool(number) or id(node) in named
        if not ok:
            raise refused("a shape expression that is more than arithmetic", text[:80], where)


def check_target(text: Any, where: str) -> None:
    """Allow registered operators and plain arithmetic functions as callees."""
    parts = str(text).split(".")
    ok = not any(part.startswith("__") for part in parts)
    if parts[:2] == ["torch", "ops"]:
        # The dunder operators of aten (`__and__`) are fine, `__class__` and so on are not.
        ok = len(parts) > 3 and not parts[2].startswith("__") and _is_operator(parts[2:])
    elif parts[0] == "torch":
        ok = ok and len(parts) == 2 and re.fullmatch(r"sym_\w+|_sym_\w+", parts[1]) is not None
    elif parts[0] == "_operator":
        ok = len(parts) == 2 and parts[1] not in _BANNED_OPERATORS and hasattr(operator, parts[1])
    elif parts[0] == "math":
        ok = ok and len(parts) == 2
    else:
        ok = parts[0].startswith("#")
    if not ok:
        raise refused("a callee that is not an operator", str(text)[:80], where)


def _is_operator(names: list[str]) -> bool:
    value: Any = torch.ops
    for name in names:
        value = getattr(value, name, None)
        if not isinstance(value, _OPERATORS):
            return False
    return not isinstance(value, ModuleType)


_OPERATORS = (
    torch._ops._OpNamespace,
    torch._ops._HigherOrderNamespace,
    torch._ops.OpOverloadPacket,
    torch._ops.OpOverload,
    torch._ops.HigherOrderOperator,
)


def refused(what: str, text: str, where: str) -> LoadError:
    """The error for what a program may not contain."""
    return LoadError(
        f"the program was refused, nothing in it was executed: it contains {what}",
        where=where,
        found=f"`{text}`",
        hint="`--trust-pickle` lifts the check for a file that you made",
    )
