"""The op table: one row for each ATen op that is known.

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
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Any, Literal

import torch
from torch import fx

from normfold.ir.graph import argument, op_name, shape_of
from normfold.ir.intervals import EVERYTHING, Interval
from normfold.ops.linear import linear_of


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


@dataclass(frozen=True)
class Norm:
    """What a norm normalises by.

    Attributes:
        kind: as in `Site.kind`.
        over: its statistics run over the axes of ``normalized_shape``, over groups of channels, or over the batch.
        plain: the op of this form that users write; empty where it is that one.
    """

    kind: str
    over: Literal["shape", "channels", "batch"]
    plain: str = ""


@dataclass(frozen=True)
class Op:
    """What is known of one op.

    Attributes:
        kind: how the feature axis passes through it.
        lends: positions of arguments of which it reads the shape or type only. A wrong one would be dangerous.
        norm: what it normalises by, for a norm.
        sizes: position of the sizes that a movement gives its result; None where it gives none.
        sizeless: a movement of all elements that no argument gives a size to.
        along: the argument with the one axis that a movement is along.
        pointwise: every element of the result is a function of one element of one operand.
        nonlinear: it is known not to commute with an affine; what is neither this nor of a kind is unknown.
        values: the range of its result for any input, or a function that reads it off a call.
        clips: integer kernels compute it with the op in front of it.
        same_grid: the grid of its input serves its result: nothing new is computed.
    """

    kind: Kind = Kind.STOP
    lends: frozenset[int] = frozenset()
    norm: Norm | None = None
    sizes: int | None = None
    sizeless: bool = False
    along: str = ""
    pointwise: bool = False
    nonlinear: bool = False
    values: Interval | Callable[[fx.Node], Interval] = EVERYTHING
    clips: bool = False
    same_grid: bool = False


def _limits(low: str, high: str) -> Callable[[fx.Node], Interval]:
    """The range that two arguments give, where they are numbers; an argument that is not there gives no limit."""

    def read(node: fx.Node) -> Interval:
        ends = [argument(node, name) if name else None for name in (low, high)]
        if not all(isinstance(end, (int, float, type(None))) for end in ends):
            return EVERYTHING
        least, most = ends
        return Interval(
            -inf if least is None else float(least), inf if most is None else float(most)
        )

    return read


_UNIT = Interval(0.0, 1.0)
_ROWS: tuple[tuple[str, Op], ...] = (
    # copies of elements
    (
        "reshape _unsafe_view view expand",
        Op(Kind.MOVE, sizes=1),
    ),
    (
        """permute transpose t numpy_T flatten movedim moveaxis swapaxes swapdims squeeze unsqueeze contiguous
        clone alias detach lift_fresh_copy _to_copy to dropout feature_dropout""",
        Op(Kind.MOVE, sizeless=True),
    ),
    (
        """slice select narrow index_select cat concat concatenate stack split split_with_sizes chunk
        tensor_split unsafe_split unsafe_chunk unbind""",
        Op(Kind.MOVE, along="dim"),
    ),
    (
        """unflatten index gather hstack vstack roll flip repeat tile repeat_interleave pad constant_pad_nd
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d im2col unfold pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
        identity""",
        Op(Kind.MOVE),
    ),
    ("expand_as reshape_as view_as", Op(Kind.MOVE, lends=frozenset({1}))),
    ("type_as", Op(Kind.MOVE, lends=frozenset({1}), sizeless=True)),
    # averages and interpolations
    (
        """mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d sum upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa""",
        Op(Kind.MIX),
    ),
    # arithmetic
    ("add sub", Op(Kind.ADD)),
    ("mul div", Op(Kind.PRODUCT)),
    ("neg", Op(Kind.PRODUCT, pointwise=True)),
    # maxima
    ("max_pool1d max_pool2d", Op(Kind.MONOTONE, same_grid=True)),
    (
        "max_pool3d amax adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices",
        Op(Kind.MONOTONE),
    ),
    # products
    ("matmul bmm mm scaled_dot_product_attention", Op(Kind.DOT, nonlinear=True)),
    (
        """linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
        embedding""",
        Op(Kind.LINEAR),
    ),
    ("normfold::channel_affine", Op(Kind.AFFINE)),
    # functions of one element
    (
        "relu",
        Op(Kind.HOMOGENEOUS, pointwise=True, values=Interval(0.0, inf), clips=True),
    ),
    ("leaky_relu", Op(Kind.HOMOGENEOUS, pointwise=True)),
    ("prelu _prelu_kernel", Op(Kind.HOMOGENEOUS)),
    ("relu6", Op(pointwise=True, nonlinear=True, values=Interval(0.0, 6.0), clips=True)),
    ("sigmoid hardsigmoid", Op(pointwise=True, nonlinear=True, values=_UNIT)),
    ("softmax _softmax", Op(nonlinear=True, values=_UNIT)),
    ("tanh", Op(pointwise=True, nonlinear=True, values=Interval(-1.0, 1.0))),
    (
        "hardtanh",
        Op(pointwise=True, nonlinear=True, values=_limits("min_val", "max_val"), clips=True),
    ),
    ("clamp", Op(pointwise=True, nonlinear=True, values=_limits("min", "max"), clips=True)),
    ("clamp_min", Op(pointwise=True, nonlinear=True, values=_limits("min", ""), clips=True)),
    (
        """gelu silu hardswish elu selu celu mish softplus log_sigmoid softsign threshold clamp_max exp abs square
        sqrt pow""",
        Op(pointwise=True, nonlinear=True),
    ),
    (
        """hardshrink log_softmax _log_softmax log log1p expm1 rsqrt sin cos erf reciprocal maximum minimum cumsum
        norm linalg_vector_norm normalize sign round floor fmod argmax topk sort std var logsumexp where
        masked_fill glu""",
        Op(nonlinear=True),
    ),
    # norms
    ("layer_norm", Op(norm=Norm("layer-norm", "shape"))),
    ("native_layer_norm", Op(norm=Norm("layer-norm", "shape", "layer_norm"))),
    ("group_norm", Op(norm=Norm("group-norm", "channels"))),
    ("native_group_norm", Op(norm=Norm("group-norm", "channels", "group_norm"))),
    ("instance_norm", Op(norm=Norm("instance-norm", "channels"))),
    ("rms_norm", Op(norm=Norm("rms-norm", "shape"))),
    ("_fused_rms_norm", Op(norm=Norm("rms-norm", "shape", "rms_norm"))),
    (
        """batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit native_batch_norm
        cudnn_batch_norm""",
        Op(norm=Norm("batch-norm", "batch")),
    ),
    # what reads shapes and types only
    (
        """sym_size sym_numel sym_stride size zeros_like ones_like full_like empty_like rand_like randn_like
        new_zeros new_ones new_full new_empty _assert_tensor_metadata dim is_floating_point""",
        Op(lends=frozenset({0})),
    ),
)


def _by_name() -> dict[str, Op]:
    found: dict[str, Op] = {}
    for names, op in _ROWS:
        for name in names.split():
            assert name not in found, f"two rows for {name}"
            found[name] = op
    return found


TABLE = _by_name()
UNKNOWN = Op()
# Ops that read every feature of an element's group at once and normalise it.
NORM_OPS = {name: op.norm.kind for name, op in TABLE.items() if op.norm and op.norm.over != "batch"}
BATCH_NORM_OPS = {name for name, op in TABLE.items() if op.norm and op.norm.over == "batch"}


def row_of(node: fx.Node) -> Op:
    """What is known of a node's op."""
    return TABLE.get(op_name(node), UNKNOWN)


def norm_of(node: fx.Node, *over: str) -> Norm | None:
    """What a norm normalises by; None for other ops, and where it is not one of ``over``, if any is given."""
    norm = row_of(node).norm
    return norm if norm is not None and (not over or norm.over in over) else None


def bounds(node: fx.Node) -> Interval:
    """The range of an op's result for any input: 0 to 1 for a sigmoid."""
    values = row_of(node).values
    return values if isinstance(values, Interval) else values(node)


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
    kind = row_of(node).kind
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
    return position in row_of(user).lends


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


def summands(node: fx.Node) -> list[tuple[fx.Node, float]]:
    """The tensors that an ADD op sums, in order, each with the number that it is multiplied by."""
    alpha = float(argument(node, "alpha", 1))
    factors = (1.0, -alpha if op_name(node) == "sub" else alpha)
    sides = zip(node.args[:2], factors, strict=True)
    return [(side, factor) for side, factor in sides if isinstance(side, fx.Node)]


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
    return row_of(node).kind in (Kind.MOVE, Kind.MONOTONE)


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
