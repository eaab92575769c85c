"""Integer sums: whether two products of 8 bits can leave 16, which kernels for x86 without VNNI sum them in.

For an activation of the interval [low, high] and a weight w a product is at most max(low w, high w). A layer *can
saturate* where the two largest products of one output channel together are above 32767, or the two least below
-32768: kernels add neighbours, and which weights are neighbours is theirs to choose. Unsigned activations with
weights of 8 bits can (2 * 255 * 127), with weights of 7 bits or signed activations they cannot.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from normfold.ir import Graph
from normfold.ir.expressions import fetch
from normfold.ir.provenance import place_of
from normfold.ops.integer_ops import dequantize, dynamic_matmul
from normfold.ops.linear import linear_of
from normfold.report import Range
from normfold.target import grids_of

_LIMIT = 32767
_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "x86")


def has_vnni() -> bool | None:
    """Whether this processor sums products of 8 bits in 32; None where that is not known."""
    if platform.machine().lower() not in _X86 or not _CPUINFO.is_file():
        return None
    flags = next((x for x in _CPUINFO.read_text().splitlines() if x.startswith("flags")), "")
    return bool({"avx512_vnni", "avx_vnni"}.intersection(flags.split()))


@dataclass(frozen=True)
class _Layer:
    """A layer in integers: its types, and the largest magnitude of two products."""

    node: fx.Node
    types: str
    most: float
    saturates: bool
    bits: int


def integer_ranges(graph: Graph, target: str) -> list[Range]:
    """What integer kernels sum in a baked network for a target, one for each pair of types.

    Networks of which only the weights are integers have none: they sum in floats.
    """
    layers = list(_layers(graph))
    found = []
    for types in dict.fromkeys(layer.types for layer in layers):
        own = [layer for layer in layers if layer.types == types]
        worst = max(own, key=lambda layer: layer.most)
        count = sum(layer.saturates for layer in own)
        state, why = _judged(target, count, max(layer.bits for layer in own))
        found.append(
            Range(
                types,
                "ok" if state else "not judged",
                worst.most,
                float(_LIMIT),
                place_of(worst.node),
                target,
                layers=len(own),
                saturating=count,
                why=why,
            )
        )
    return found


def _judged(target: str, count: int, bits: int) -> tuple[bool, str]:
    """Whether no sum saturates on this processor, and why, in words."""
    if not grids_of(target).pairs:
        return True, "its kernels sum in 32 bits"
    if not count:
        narrow = ": weights of 7 bits" if bits < 8 else ""
        return True, f"no sum of two products leaves 16 bits{narrow}"
    risk = f"{count} can saturate in 16 bits; `--no-vnni` puts weights in 7 bits"
    vnni = has_vnni()
    if vnni:
        return True, f"this processor has VNNI and sums in 32 bits; without VNNI {risk}"
    here = "this processor has no VNNI" if vnni is False else "on x86 without VNNI"
    return False, f"{here}: {risk}"


def _layers(graph: Graph) -> Iterator[_Layer]:
    for node in graph.nodes:
        if node.target is dynamic_matmul:
            axis = 0 if node.args[3] else 1
            weight, kind = _stored(graph, node.args[1]), torch.uint8
        else:
            linear = linear_of(node) if node.op == "call_function" else None
            if linear is None or {linear.data.target, linear.weight.target} != {dequantize}:
                continue
            if linear.weight.args[4]:  # blocks have scales of their own: their sums are floats
                continue
            zero = _stored(graph, linear.data.args[2])
            if zero is not None and zero.is_floating_point():  # they are summed in float32
                continue
            weight, axis = _stored(graph, linear.weight.args[0]), linear.out_axis
            kind = torch.int8 if zero is None else zero.dtype
        if weight is not None and weight.numel():
            yield _layer(node, weight, kind, axis)


def _layer(node: fx.Node, weight: Tensor, kind: torch.dtype, axis: int) -> _Layer:
    limits = torch.iinfo(kind)
    rows = weight.movedim(axis, 0).flatten(1).int() if weight.dim() > 1 else weight[None].int()
    ends = torch.stack([rows * limits.min, rows * limits.max])
    two = min(2, rows.shape[1])
    most = int(ends.amax(0).topk(two).values.sum(1).max())
    least = int(-(-ends.amin(0)).topk(two).values.sum(1).max())
    types = f"{_name(kind)} x {_name(weight.dtype)}"
    saturates = most > _LIMIT or least < -_LIMIT - 1
    bits = int(rows.abs().max()).bit_length() + 1
    return _Layer(node, types, float(max(most, -least)), saturates, bits)


def _stored(graph: Graph, node: object) -> Tensor | None:
    """The tensor of a parameter."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = fetch(graph.module, str(node.target))
    return value if isinstance(value, Tensor) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
