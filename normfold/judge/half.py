"""Half precision in a result: what it may cost, and a word where nobody asked for it."""

from __future__ import annotations

import math
import re
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.report import Check

# |y - r| / |r| that a network in half precision may be off by: five to ten times what sound networks show
BUDGETS = {"float16": 0.02, "bfloat16": 0.1}
_IN_IR = re.compile(r'(?:element|destination)_type="(f16|bf16)"')


def half_types(result: Graph | nn.Module | Path) -> set[str]:
    """Types of half precision that a network computes or keeps weights in, or a file (ONNX or OpenVINO's)."""
    if isinstance(result, Path):
        return _of_onnx(result) if result.suffix == ".onnx" else _of_ir(result)
    if isinstance(result, Graph):
        values = [node.meta.get("val") for node in result.nodes]
    else:
        values = [*result.parameters(), *result.buffers()]
    leaves = pytree.tree_leaves(values)
    found = {str(x.dtype).removeprefix("torch.") for x in leaves if isinstance(x, Tensor)}
    return found & set(BUDGETS)


def _of_onnx(file: Path) -> set[str]:
    """By its weights, inputs, outputs and casts."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    values = [item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)]
    weights = [tensor.data_type for tensor in graph.initializer]
    casts = [a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"]
    halves = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
    return {halves[kind] for kind in (*values, *weights, *casts) if kind in halves}


def _of_ir(file: Path) -> set[str]:
    names = {"f16": "float16", "bf16": "bfloat16"}
    text = file.read_text(errors="replace") if file.is_file() else ""
    return {names[found] for found in _IN_IR.findall(text)}


def allowed(
    halves: Set[str], half_budget: float | None, max_error: float | None = None
) -> float | None:
    """The relative error that a result may have: both budgets add up; None where it is judged by rounding.

    Args:
        halves: of the result, as `half_types` gives them.

    Raises:
        UsageError: a budget for half precision, of which there is none; or one that is no number from 0 on.
    """
    if half_budget is not None and not halves:
        raise UsageError(
            "`--half-budget`: nothing is in half precision",
            hint="it goes with a result in float16 or bfloat16; what passes cost is `--max-error`",
        )
    named = {"`--half-budget`": half_budget, "`--max-error`": max_error}
    given = [relative_error(value, name) for name, value in named.items() if value is not None]
    return sum(given) if given else None


def relative_error(value: Any, name: str) -> float:
    """A budget of |y - r| / |r|, by its name in messages.

    Raises:
        UsageError: it is no finite number from 0 on.
    """
    if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
        return float(value)
    raise UsageError(f"{name} is a relative error, a number of at least 0", found=f"{value!r}")


def noted(check: Check, halves: Set[str], original: Graph) -> Check:
    """A failed check of a result in half precision, judged as if it were exact, says what is missing."""
    lower = sorted(halves - half_types(original))
    if check.ok or not lower:
        return check
    budget = max(BUDGETS[name] for name in lower)
    text = (
        f"the result is in {', '.join(lower)}, the original is not: judged by rounding all the same; "
        f"`--half-budget {budget:g}` judges it as `convert --precision` does"
    )
    return replace(check, note="; ".join(filter(None, [check.note, text])))
