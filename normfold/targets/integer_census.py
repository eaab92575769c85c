"""What a runtime runs in integers: read off the model that onnxruntime itself made of a file."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.targets.runtime import optimised

# ops of onnxruntime with integer kernels, and what they are in floats
_INTEGER = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QGemm": "Gemm",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulNBits": "MatMul",
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearSigmoid": "Sigmoid",
    "QLinearConcat": "Concat",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSoftmax": "Softmax",
}
_FLOAT = {
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
}
_NAMES = {
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
}


@dataclass(frozen=True)
class IntegerCensus:
    """Ops of the optimised model.

    Attributes:
        integer, floats: how many of each kind run in integers, and in floats: ``{"Conv": 20}``. In floats those
            count that could run in integers, and whatever stands between integers.
        blocked: for every one in floats, which rule keeps it there.
        ops: every op type, counted.
    """

    integer: dict[str, int]
    floats: dict[str, int]
    blocked: dict[str, str]
    ops: dict[str, int]


def integer_census(path: str | os.PathLike[str]) -> IntegerCensus:
    """Let onnxruntime optimise a file, and count.

    Raises:
        EnvironmentMissing: onnxruntime is not installed.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "optimised.onnx"
        optimised(path, made)
        graph = onnx.load(made).graph
    ops = Counter(node.op_type for node in graph.node)
    integer = Counter(_INTEGER[node.op_type] for node in graph.node if node.op_type in _INTEGER)
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    left = [
        node
        for node in graph.node
        if node.op_type in _FLOAT or node.op_type == "Add" or _is_between(node, makers, readers)
    ]
    floats = Counter(_NAMES.get(node.op_type, node.op_type) for node in left)
    blocked = {node.name or node.output[0]: _rule(node, makers, readers) for node in left}
    return IntegerCensus(dict(integer), dict(floats), blocked, dict(ops))


def _is_between(node: Any, makers: dict[str, Any], readers: dict[str, list[Any]]) -> bool:
    """True for an op in floats that integers are converted for, on either side: a Pad, a Sigmoid."""
    before = {makers[name].op_type for name in node.input if name in makers}
    after = {reader.op_type for name in node.output for reader in readers.get(name, [])}
    own = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return not own and "DequantizeLinear" in before and "QuantizeLinear" in after


def _rule(node: Any, makers: dict[str, Any], readers: dict[str, list[Any]]) -> str:
    """Why a float op is one, by what surrounds it."""
    if node.op_type not in _FLOAT and node.op_type != "Add":
        return "integers are converted for it and back: it runs in floats between them"

    def dequantized(name: str) -> bool:
        return name in makers and makers[name].op_type == "DequantizeLinear"

    data = [name for name in node.input[:2] if name]
    missing = [name for name in data if not dequantized(name)]
    if len(missing) == len(data):
        return "none of its inputs is on a grid"
    if missing:
        return f"its input `{missing[0]}` is not on a grid"
    after = [reader for name in node.output for reader in readers.get(name, [])]
    if not after:
        return "its result leaves the network in floats"
    if len(after) > 1:
        return f"its result is read {len(after)} times before it is put on a grid"
    if after[0].op_type != "QuantizeLinear":
        return f"`{after[0].op_type}` reads its result, which no integer kernel takes in"
    return "onnxruntime has no integer kernel for it in this form"
