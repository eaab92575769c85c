"""The op table: how the feature axis passes through each ATen op.

A transform ``x * a + b`` with one (a, b) per feature may be moved through

* `MOVE`        ops that copy elements: always, the layout follows the elements;
* `MIX`         linear ops that average or interpolate over other axes: the scale always, the shift where the
                weights sum to one (found by running the op on ones);
* `ADD`         sums: a shift from either side, a scale when both sides carry it;
* `PRODUCT`     products and quotients: a scale from one factor;
* `MONOTONE`    maxima over other axes: positive scales, any shift;
* `HOMOGENEOUS` ReLU-like functions: positive scales;
* `DOT`         products of two activations (attention): the scale of the value operand, its shift where the
                rows of the other operand sum to one;
* `LINEAR`      ops with a parameter as weight: absorbed;
* `AFFINE`      another channel affine: absorbed.

Every other op stops it, so that a missing name costs a rewrite and never correctness.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import fx

from normfold.graph.expressions import is_static
from normfold.graph.graph import argument, op_name, shape_of


class Kind(Enum):
    MOVE = auto()
    MIX = auto()
    ADD = auto()
    PRODUCT = auto()
    MONOTONE = auto()
    HOMOGENEOUS = auto()
    DOT = auto()
    LINEAR = auto()
    AFFINE = auto()
    STOP = auto()


_TABLE = {
    Kind.MOVE: """view reshape _unsafe_view permute transpose t numpy_T flatten unflatten movedim moveaxis
        swapaxes swapdims squeeze unsqueeze expand expand_as reshape_as view_as slice select narrow index
        index_select gather cat concat concatenate stack hstack vstack split split_with_sizes chunk
        tensor_split unsafe_split unsafe_chunk unbind roll flip repeat tile repeat_interleave pad
        constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d im2col unfold pixel_shuffle pixel_unshuffle channel_shuffle contiguous clone alias
        detach lift_fresh_copy _to_copy to type_as dropout feature_dropout native_channel_shuffle identity""",
    Kind.MIX: """mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d sum upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa""",
    Kind.ADD: "add sub",
    Kind.PRODUCT: "mul div neg",
    Kind.MONOTONE: "max_pool1d max_pool2d max_pool3d amax adaptive_max_pool1d adaptive_max_pool2d "
    "max_pool2d_with_indices",
    Kind.HOMOGENEOUS: "relu leaky_relu prelu _prelu_kernel",
    Kind.DOT: "matmul bmm mm scaled_dot_product_attention",
    Kind.LINEAR: """linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d
        conv_transpose3d embedding""",
    Kind.AFFINE: "normfold::channel_affine",
}
KINDS = {name: kind for kind, names in _TABLE.items() for name in names.split()}

# Arguments that only lend their shape or dtype: (op, position). A wrong entry here would be dangerous.
_SHAPE_ONLY = {
    "reshape_as": {1},
    "view_as": {1},
    "expand_as": {1},
    "type_as": {1},
    **{
        name: {0}
        for name in [
            "sym_size",
            "sym_numel",
            "sym_stride",
            "size",
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "rand_like",
            "randn_like",
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "_assert_tensor_metadata",
            "dim",
            "is_floating_point",
        ]
    },
}

# Ops that read every feature of an element's group at once and normalise it.
NORM_OPS = {
    "layer_norm": "layer-norm",
    "native_layer_norm": "layer-norm",
    "group_norm": "group-norm",
    "native_group_norm": "group-norm",
    "instance_norm": "instance-norm",
    "rms_norm": "rms-norm",
    "_fused_rms_norm": "rms-norm",
}
# Ops that are known not to commute with an affine; what is neither here nor in the table is unknown.
_NONLINEAR = """relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid hardshrink elu selu celu mish softplus
    log_sigmoid softsign threshold clamp clamp_min clamp_max softmax log_softmax _softmax _log_softmax exp log
    log1p expm1 sqrt rsqrt pow square abs sin cos erf reciprocal maximum minimum cumsum norm linalg_vector_norm
    normalize sign round floor fmod argmax topk sort std var logsumexp where masked_fill glu
    scaled_dot_product_attention matmul bmm mm"""
NONLINEAR_OPS = frozenset(_NONLINEAR.split())
BATCH_NORM_OPS = {
    "batch_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "native_batch_norm",
    "cudnn_batch_norm",
}


def kind_of(node: fx.Node) -> Kind:
    """How the feature axis passes through ``node``."""
    if node.op != "call_function" or not _is_real(node):
        return Kind.STOP
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        inner = kind_of(source)
        return (
            inner
            if (inner in (Kind.MOVE, Kind.MONOTONE) and node.args[1] == 0) or inner is Kind.MOVE
            else Kind.STOP
        )
    kind = KINDS.get(op_name(node), Kind.STOP)
    if kind is Kind.DOT and linear_of(node) is not None:
        return Kind.LINEAR
    if kind is Kind.DOT and any(len(shape_of(factor)) < 2 for factor in node.all_input_nodes[:2]):
        return Kind.STOP  # a vector has no axis that the product keeps
    if kind is Kind.LINEAR and linear_of(node) is None:
        return Kind.STOP
    return kind


def _is_real(node: fx.Node) -> bool:
    """False for results that cannot carry an affine: a cast to integers rounds it away."""
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def is_tuple(node: fx.Node) -> bool:
    """True for ops such as split, whose users are getitems."""
    return isinstance(node.meta.get("val"), (tuple, list))


def producer(node: fx.Node) -> fx.Node:
    """The op that makes a value: the split itself for a getitem of a split."""
    if node.op == "call_function" and node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source
    return node


def reads_shape_only(user: fx.Node, position: int) -> bool:
    """True if ``user`` looks only at the shape or dtype of its argument at ``position``."""
    return position in _SHAPE_ONLY.get(op_name(user), ())


def operands(node: fx.Node) -> list[fx.Node]:
    """The activations or parameters whose elements a MOVE, ADD, PRODUCT, MIX... op works on, in order."""
    op = producer(node)
    name = op_name(op)
    if name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack"):
        parts = op.args[0]
        assert isinstance(parts, (list, tuple))
        return [part for part in parts if isinstance(part, fx.Node)]
    if name in ("add", "sub", "mul", "div"):
        return [part for part in op.args[:2] if isinstance(part, fx.Node)]
    first = op.args[0]
    assert isinstance(first, fx.Node)
    return [first]


@dataclass(frozen=True)
class Use:
    """One read of a value: ``user`` reads it as argument ``position`` (flat index over nested lists)."""

    user: fx.Node
    position: int


def uses(value: fx.Node) -> list[Use]:
    """Every read of ``value``, each occurrence counted; a split is replaced by its getitems."""
    found: list[Use] = []
    for user in value.users:
        positions = [index for index, leaf in enumerate(_flat_arguments(user)) if leaf is value]
        readers = list(user.users) if is_tuple(user) and kind_of_tuple(user) else [user]
        found += [Use(reader, position) for reader in readers for position in positions]
    return found


def kind_of_tuple(node: fx.Node) -> bool:
    """True if a tuple-valued op is in the table (so that its getitems can be looked through)."""
    return KINDS.get(op_name(node)) in (Kind.MOVE, Kind.MONOTONE)


def _flat_arguments(node: fx.Node) -> list[Any]:
    leaves: list[Any] = []

    def visit(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for part in value:
                visit(part)
        else:
            leaves.append(value)

    visit(list(node.args))
    visit(list(node.kwargs.values()))
    return leaves


@dataclass(frozen=True)
class Linear:
    """An op that is linear in one activation, with a parameter expression as weight.

    ``in_dim`` and ``out_dim`` are the feature axes of the activation and the result (None for embedding's
    input). The weight, seen with ``groups`` split off, has its input features on ``in_axis`` and its
    output features on ``out_axis``; the group index is the slow part of both. ``kernel`` counts spatial axes.
    """

    node: fx.Node
    data: fx.Node
    weight: fx.Node
    weight_position: int
    bias_position: int | None
    in_dim: int | None
    out_dim: int
    in_axis: int | None
    out_axis: int
    groups: int = 1
    kernel: int = 0
    transposed: bool = False

    @property
    def bias(self) -> fx.Node | None:
        if self.bias_position is None:
            return None
        return argument(self.node, "bias" if op_name(self.node) != "addmm" else "self")  # type: ignore[no-any-return]

    @property
    def out_features(self) -> int:
        return shape_of(self.node)[self.out_dim]


def linear_of(node: fx.Node) -> Linear | None:
    """View of a linear op with a static weight, or None if ``node`` is not one."""
    name = op_name(node)
    args = node.args
    if name == "linear" and is_static(args[1]) and _bias_ok(node, 2):
        rank = len(shape_of(node))
        return Linear(node, args[0], args[1], 1, 2, rank - 1, rank - 1, 1, 0)  # type: ignore[arg-type]
    if name == "addmm" and is_static(args[2]) and _is_vector(args[0]) and not node.kwargs:
        return Linear(node, args[1], args[2], 2, 0, 1, 1, 0, 1)  # type: ignore[arg-type]
    if (
        name in ("matmul", "mm", "bmm")
        and isinstance(args[0], fx.Node)
        and isinstance(args[1], fx.Node)
    ):
        return _matmul(node, args[0], args[1])
    if name == "embedding" and is_static(args[0]):
        rank = len(shape_of(node))
        return Linear(node, args[1], args[0], 0, None, None, rank - 1, None, 1)  # type: ignore[arg-type]
    if name.startswith("conv") and is_static(args[1]) and _bias_ok(node, 2):
        return _convolution(node, name)
    return None


def _bias_ok(node: fx.Node, position: int) -> bool:
    return (
        len(node.args) <= position or node.args[position] is None or is_static(node.args[position])
    )


def _is_vector(value: Any) -> bool:
    return is_static(value) and len(shape_of(value)) == 1


def _matmul(node: fx.Node, left: fx.Node, right: fx.Node) -> Linear | None:
    rank = len(shape_of(node))
    if is_static(right) and not is_static(left) and len(shape_of(right)) == 2:
        return Linear(node, left, right, 1, None, rank - 1, rank - 1, 0, 1)
    columns = len(shape_of(left)) == 2 and len(shape_of(right)) == rank >= 2
    if is_static(left) and not is_static(right) and columns:
        return Linear(node, right, left, 0, None, rank - 2, rank - 2, 1, 0)
    return None


def _convolution(node: fx.Node, name: str) -> Linear | None:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    kernel = len(shape_of(weight)) - 2
    transposed = "transpose" in name or bool(name == "convolution" and argument(node, "transposed"))
    rank = len(shape_of(node))
    channel = rank - kernel - 1  # unbatched input has no axis 0
    data = node.args[0]
    assert isinstance(data, fx.Node)
    groups = int(argument(node, "groups"))
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    return Linear(
        node, data, weight, 1, 2, channel, channel, in_axis, out_axis, groups, kernel, transposed
    )


def pads_with_zeros(linear: Linear) -> bool:
    """True if a convolution reads zeros beyond its input's border."""
    if not linear.kernel or linear.transposed:
        return False
    padding = argument(linear.node, "padding")
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in shape_of(linear.weight)[2:])
    return any(int(amount) != 0 for amount in padding)


def zero_pad_of(node: fx.Node) -> list[int] | None:
    """The pad list of an explicit zero pad, or None if ``node`` is not one."""
    if op_name(node) not in ("pad", "constant_pad_nd"):
        return None
    if op_name(node) == "pad" and argument(node, "mode") != "constant":
        return None
    if argument(node, "value") not in (None, 0, 0.0):
        return None
    pad = argument(node, "pad")
    return [int(width) for width in pad] if all(isinstance(width, int) for width in pad) else None
