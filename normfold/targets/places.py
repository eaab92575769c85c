"""Norms and scales by the module call that they are in: those of the original, and what the result has of them."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, op_name, shape_of
from normfold.ir.provenance import module_path
from normfold.ops.layout import axis_before
from normfold.ops.reads import reads_shape_only
from normfold.ops.table import Kind, Op, norm_of, row_of
from normfold.targets.slots import Slots, arguments, own, refusal


def passes(node: fx.Node) -> bool:
    """True for an op that computes nothing: a movement, or a part or a size of what is there."""
    size = reads_shape_only(node, 0) and not is_tensor(node)
    return row_of(node).kind is Kind.MOVE or node.target is operator.getitem or size


@dataclass
class Place:
    """What one call of a module holds: norms and scales of the original, and what of them the result has."""

    path: str
    cores: list[fx.Node] = field(default_factory=list)
    lost: list[fx.Node] = field(default_factory=list)
    left: list[fx.Node] = field(default_factory=list)  # norms, and ops that passes made
    stays: bool = False  # other ops of the original are still there

    @property
    def module(self) -> str:
        return self.path.split("@")[0]


@dataclass(frozen=True)
class Affine:
    """x * scale + shift, one number per channel; None for 1 and 0."""

    scale: Tensor | None = None
    shift: Tensor | None = None

    def __bool__(self) -> bool:
        return self.scale is not None or self.shift is not None


class Left:
    """What the result has in place of a norm: its core, and the affine behind it."""

    def __init__(self, place: Place, slots: Slots) -> None:
        self.core: fx.Node | None = None
        scale: Tensor | None = None
        shift: Tensor | None = None
        for node in place.left:
            row = row_of(node)
            vectors = [part for part in arguments(node).values() if is_static(part)]
            if norm_of(node, "batch") and scale is None and shift is None:
                weight, bias, mean, variance = (
                    slots.result_value(own(node, part))
                    for part in ("weight", "bias", "running_mean", "running_var")
                )
                assert mean is not None and variance is not None
                scale = (variance + float(argument(node, "eps"))).rsqrt()
                scale = scale if weight is None else scale * weight
                shift = -mean * scale if bias is None else bias - mean * scale
            elif norm_of(node, "shape", "channels") and self.core is None:
                self.core = node
                scale, shift = (slots.result_value(own(node, part)) for part in ("weight", "bias"))
            elif _of_affine(row) and len(vectors) == 1 and _per_channel(vectors[0]):
                value = slots.result_value(vectors[0])
                assert value is not None
                value = value.flatten()
                if row.kind is Kind.PRODUCT:
                    scale = value if scale is None else scale * value
                    shift = None if shift is None else shift * value
                else:
                    shift = value if shift is None else shift + value
            elif row.kind is Kind.MIX or (row.kind is Kind.ADD and row.inverts):
                raise refusal(
                    f"an op in the code of `{place.path or 'forward'}` takes the mean off, for RMSNorms behind it",
                    "`--to folded` keeps the LayerNorms; where a tied embedding is the reason, `--untie` helps",
                )
            else:
                raise refusal(
                    f"an op `{op_name(node)}` in `{place.path or 'forward'}`, which the original does not have"
                )
        self.affine = Affine(scale, shift)


def inside(node: fx.Node, path: str) -> bool:
    module = module_path(node)
    return module == path or module.startswith(f"{path}.")


def computes(node: fx.Node) -> bool:
    return node.op == "call_function" and not is_static(node)


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def same_op(node: fx.Node, other: fx.Node) -> bool:
    """True for calls of one op, and for two of those that give a tensor other sizes."""
    reshape = row_of(node).move.order == "reshaped" == row_of(other).move.order
    return reshape or op_name(node) == op_name(other)


def _of_affine(row: Op) -> bool:
    return row.kind in (Kind.PRODUCT, Kind.ADD) and not row.inverts


def _per_channel(node: fx.Node) -> bool:
    return bool(sum(size > 1 for size in node.meta["val"].shape) <= 1)


def axis_of(core: fx.Node, path: str) -> int:
    """The axis of the module's input that a norm over the last axis normalises."""
    source = core.args[0]
    assert isinstance(source, fx.Node)
    axis = last = len(shape_of(source)) - 1
    while isinstance(source, fx.Node) and module_path(source) == path:
        before = axis_before(source, axis)
        if before is None:
            raise refusal(f"the norm `{path}` reads `{op_name(source)}` of its input")
        source, axis = source.args[0], before
    return -1 if axis == last else axis
