"""The JSON of a `.pt2` program: the texts in it that its loader would evaluate or import."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from normfold.errors import LoadError
from normfold.load.operators import obstacle

_ARITHMETIC = {
    "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor",
    "ceiling", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise", "Identity",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,4})?")
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name,
    ast.Constant, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
    ast.Tuple,
)  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Never executed, and full of the user's text: where a node comes from.
_REMARKS = {"metadata", "from_node"}
_IMPORTING = {"__enum__", "default_factory_module"}


def check_document(document: Any, where: str, depth: int = 0) -> None:
    """Walk a program's JSON and refuse what would evaluate text, import, or call freely.

    Raises:
        LoadError: with the offending text.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if key in _REMARKS and _is_remark(value):
                continue
            if key in _IMPORTING:
                raise refused("a class to import", f"{key}: {value}", where)
            if key == "expr_str":
                check_expression(value, where)
            elif (key == "target" and isinstance(value, str)) or key == "as_operator":
                check_target(value, where)
            elif key == "name" and isinstance(value, str) and value:
                check_name(value, where)
            elif key == "forward_arg_names" and isinstance(value, list):
                for name in value:
                    check_name(str(name), where)
            elif key.endswith("_name") and isinstance(value, str) and not value.isprintable():
                raise refused("a name with control characters", value[:80], where)
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


def _is_remark(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    )


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
                ok = (
                    ok
                    and name in _ARITHMETIC
                    and (name not in _POWERS or _is_small_power(node.args))
                )
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            ok = _is_small_power([node.left, node.right])
        elif isinstance(node, ast.Constant):
            # sympy evaluates strings wherever it wants a number.
            number = isinstance(node.value, str) and _NUMBER.fullmatch(node.value)
            ok = isinstance(node.value, int | float) or bool(number) or id(node) in named
        if not ok:
            raise refused("a shape expression that is more than arithmetic", text[:80], where)


def _is_small_power(parts: list[ast.expr]) -> bool:
    """A power with a small number as its exponent: `9**9**9**9` is never done."""
    exponent = parts[1] if len(parts) == 2 else None
    if isinstance(exponent, ast.Call) and len(exponent.args) == 1:  # Integer(2)
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    return isinstance(value, int | float) and abs(value) <= 16


def check_target(text: Any, where: str) -> None:
    """Allow pure operators and arithmetic on sizes as callees."""
    why = obstacle(text) if isinstance(text, str) else "not a text"
    if why is not None:
        raise refused(f"a callee that is not a pure operator ({why})", str(text)[:80], where)


def check_name(text: str, where: str) -> None:
    """Names of values and inputs become variables of generated Python text."""
    if not _VARIABLE.fullmatch(text):
        raise refused("a name that is not an identifier", text[:80], where)


def refused(what: str, text: str, where: str) -> LoadError:
    """The error for what a program may not contain."""
    return LoadError(
        f"the program was refused, nothing in it was executed: it contains {what}",
        where=where,
        found=f"`{text}`",
        hint="`--trust-pickle` lifts the check for a file that you made",
    )
