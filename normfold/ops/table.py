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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Literal, TypeVar

import torch
from torch import fx

from normfold.ir.graph import op_name, shape_of
from normfold.ir.intervals import EVERYTHING, Interval
from normfold.ops.arguments import Kept, along, indexed, limits, padded, removed, stacked
from normfold.ops.linear import linear_of

T = TypeVar("T")


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
class Movement:
    """How a movement places the elements of its operands.

    Attributes:
        order: all elements stay at their places, or stay in order under other sizes, or under the same axes in
            another order, or are repeated along axes; empty for any other way.
        kept: the axes that it leaves alone, whatever their sizes; what it gives is None where that is not known.
        sizes: position of the sizes that it gives its result; None where it gives none.
        sizeless: it moves all elements, and no argument gives a size to it.
        joins: its first argument is the list of its operands.
        casts: it may give them another type.
    """

    order: Literal["", "places", "reshaped", "axes", "repeated"] = ""
    kept: Kept = lambda node, rank: None
    sizes: int | None = None
    sizeless: bool = False
    joins: bool = False
    casts: bool = False


@dataclass(frozen=True)
class Integers:
    """How integer kernels take an op without weights.

    Attributes:
        kernel: the class of kernels that it is one of, where a runtime has these: ``table`` looks up the result of
            a function of one element.
        clips: they compute it with the op in front of it.
        same_grid: the grid of its input serves its result: nothing new is computed.
    """

    kernel: Literal["", "sum", "product", "table", "average", "maximum"] = ""
    clips: bool = False
    same_grid: bool = False


@dataclass(frozen=True)
class Op:
    """What is known of one op.

    Attributes:
        kind: how the feature axis passes through it.
        lends: positions of arguments of which it reads the shape or type only. A wrong one would be dangerous.
        measures: of what it is lent it reads all sizes, that of the axis ``dim``, or none.
        norm: what it normalises by, for a norm.
        move: how it places elements, for a movement.
        inverts: a sum or product in which the second operand is taken off, or divided by.
        attention: of queries, keys and values in this order.
        lookup: rows of a table, by numbers of rows.
        sums_to_one: its results do along ``dim``.
        scores: networks that tell classes end with it.
        pointwise: every element of the result is a function of one element of one operand.
        nonlinear: it is known not to commute with an affine; what is neither this nor of a kind is unknown.
        gate: the op g with which it is x g(x).
        numbers: what numbers among its arguments are to its elements: factors, summands and the like, limits,
            replacements, or what they are compared with.
        values: the range of its result for any input, or a function that reads it off a call.
        computed_at: the size at which kernels compute its result, and err, where that may be smaller.
        integers: how integer kernels take it.
    """

    kind: Kind = Kind.STOP
    lends: frozenset[int] = frozenset()
    measures: Literal["all", "dim", "none"] = "all"
    norm: Norm | None = None
    move: Movement = Movement()
    inverts: bool = False
    attention: bool = False
    lookup: bool = False
    sums_to_one: bool = False
    scores: bool = False
    pointwise: bool = False
    nonlinear: bool = False
    gate: str = ""
    numbers: Literal["operands", "limits", "replacements", "compared"] = "operands"
    values: Interval | Callable[[fx.Node], Interval] = EVERYTHING
    computed_at: float = 0.0
    integers: Integers = Integers()


_UNIT = Interval(0.0, 1.0)
_SIGNED, _POSITIVE = Interval(-1.0, 1.0), Interval(0.0, inf)
_CLIPS = Integers(clips=True)
_FIRST, _SECOND = frozenset({0}), frozenset({1})
_ROWS: tuple[tuple[str, Op], ...] = (
    # copies of elements
    (
        "contiguous clone alias detach lift_fresh_copy dropout feature_dropout alpha_dropout",
        Op(Kind.MOVE, move=Movement("places", sizeless=True)),
    ),
    ("_to_copy to", Op(Kind.MOVE, move=Movement("places", sizeless=True, casts=True))),
    (
        "type_as",
        Op(
            Kind.MOVE,
            _SECOND,
            measures="none",
            move=Movement("places", sizeless=True, casts=True),
        ),
    ),
    ("reshape _unsafe_view view", Op(Kind.MOVE, move=Movement("reshaped", sizes=1))),
    ("flatten squeeze unsqueeze", Op(Kind.MOVE, move=Movement("reshaped", sizeless=True))),
    ("unflatten", Op(Kind.MOVE, move=Movement("reshaped"))),
    ("reshape_as view_as", Op(Kind.MOVE, _SECOND, move=Movement("reshaped"))),
    ("expand", Op(Kind.MOVE, move=Movement("repeated", sizes=1))),
    ("expand_as", Op(Kind.MOVE, _SECOND, move=Movement("repeated"))),
    (
        "permute transpose t numpy_T movedim moveaxis swapaxes swapdims",
        Op(Kind.MOVE, move=Movement("axes", sizeless=True)),
    ),
    (
        """slice narrow index_select split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk""",
        Op(Kind.MOVE, move=Movement(kept=along("dim"))),
    ),
    ("select unbind", Op(Kind.MOVE, move=Movement(kept=removed))),
    ("cat concat concatenate", Op(Kind.MOVE, move=Movement(kept=along("dim"), joins=True))),
    ("stack", Op(Kind.MOVE, move=Movement(kept=stacked, joins=True))),
    ("hstack vstack", Op(Kind.MOVE, move=Movement(joins=True))),
    ("index", Op(Kind.MOVE, move=Movement(kept=indexed))),
    ("roll flip", Op(Kind.MOVE, move=Movement(kept=along("dims")))),
    ("unfold", Op(Kind.MOVE, move=Movement(kept=along("dimension")))),
    ("pad constant_pad_nd", Op(Kind.MOVE, move=Movement(kept=padded))),
    (
        """gather repeat tile repeat_interleave reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d im2col pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle identity""",
        Op(Kind.MOVE),
    ),
    # averages and interpolations
    ("avg_pool2d", Op(Kind.MIX, integers=Integers("average"))),
    ("normfold::global_pool", Op(integers=Integers("average"))),
    (
        """mean avg_pool1d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d sum upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa""",
        Op(Kind.MIX),
    ),
    # arithmetic
    ("add", Op(Kind.ADD, integers=Integers("sum"))),
    ("sub", Op(Kind.ADD, inverts=True)),
    ("mul", Op(Kind.PRODUCT, integers=Integers("product"))),
    ("div", Op(Kind.PRODUCT, inverts=True)),
    ("neg", Op(Kind.PRODUCT, pointwise=True)),
    # maxima
    ("max_pool1d", Op(Kind.MONOTONE, integers=Integers(same_grid=True))),
    ("max_pool2d", Op(Kind.MONOTONE, integers=Integers("maximum", same_grid=True))),
    (
        "max_pool3d amax adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices",
        Op(Kind.MONOTONE),
    ),
    # products
    ("matmul bmm mm", Op(Kind.DOT, nonlinear=True)),
    ("scaled_dot_product_attention", Op(Kind.DOT, nonlinear=True, attention=True)),
    (
        "linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d",
        Op(Kind.LINEAR),
    ),
    ("embedding", Op(Kind.LINEAR, lookup=True)),
    ("embedding_bag _embedding_bag _embedding_bag_forward_only", Op(lookup=True)),
    ("normfold::channel_affine", Op(Kind.AFFINE)),
    # functions of one element
    ("relu", Op(Kind.HOMOGENEOUS, pointwise=True, values=_POSITIVE, integers=_CLIPS)),
    ("leaky_relu", Op(Kind.HOMOGENEOUS, pointwise=True, integers=Integers("table"))),
    ("prelu _prelu_kernel", Op(Kind.HOMOGENEOUS)),
    ("relu6", Op(pointwise=True, nonlinear=True, values=Interval(0.0, 6.0), integers=_CLIPS)),
    (
        "sigmoid",
        Op(
            scores=True,
            pointwise=True,
            nonlinear=True,
            values=_UNIT,
            computed_at=1.0,
            integers=Integers("table"),
        ),
    ),
    ("hardsigmoid", Op(pointwise=True, nonlinear=True, values=_UNIT, computed_at=1.0)),
    (
        "softmax _softmax",
        Op(sums_to_one=True, scores=True, nonlinear=True, values=_UNIT, computed_at=1.0),
    ),
    ("log_softmax _log_softmax", Op(scores=True, nonlinear=True)),
    ("tanh erf softsign sin cos", Op(pointwise=True, nonlinear=True, values=_SIGNED)),
    (
        "hardtanh",
        Op(
            pointwise=True,
            nonlinear=True,
            numbers="limits",
            values=limits("min_val", "max_val"),
            integers=_CLIPS,
        ),
    ),
    (
        "clamp",
        Op(
            pointwise=True,
            nonlinear=True,
            numbers="limits",
            values=limits("min", "max"),
            integers=_CLIPS,
        ),
    ),
    (
        "clamp_min",
        Op(
            pointwise=True,
            nonlinear=True,
            numbers="limits",
            values=limits("min", ""),
            integers=_CLIPS,
        ),
    ),
    ("clamp_max", Op(pointwise=True, nonlinear=True, numbers="limits")),
    ("nan_to_num", Op(numbers="limits")),
    ("silu", Op(pointwise=True, nonlinear=True, gate="sigmoid")),
    ("hardswish", Op(pointwise=True, nonlinear=True, gate="hardsigmoid")),
    ("softplus exp abs square sqrt", Op(pointwise=True, nonlinear=True, values=_POSITIVE)),
    ("gelu elu selu celu mish log_sigmoid threshold pow", Op(pointwise=True, nonlinear=True)),
    (
        """hardshrink log log1p expm1 rsqrt reciprocal maximum minimum cumsum norm
        linalg_vector_norm normalize sign round floor fmod argmax topk sort std var logsumexp glu""",
        Op(nonlinear=True),
    ),
    ("eq ne lt le gt ge", Op(numbers="compared")),
    ("where masked_fill", Op(nonlinear=True, numbers="replacements")),
    ("full", Op(numbers="replacements")),
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
        """sym_numel sym_stride zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones
        new_full new_empty""",
        Op(lends=_FIRST),
    ),
    ("sym_size size", Op(lends=_FIRST, measures="dim")),
    ("_assert_tensor_metadata dim is_floating_point", Op(lends=_FIRST, measures="none")),
)


def by_name(rows: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Rows of several names each, by single names."""
    pairs = [(name, row) for names, row in rows for name in names.split()]
    assert len(pairs) == len(dict(pairs)), "two rows for one op"
    return dict(pairs)


TABLE = by_name(_ROWS)
UNKNOWN = Op()
# Ops that read every feature of an element's group at once and normalise it.
NORM_OPS = {name: op.norm.kind for name, op in TABLE.items() if op.norm and op.norm.over != "batch"}
BATCH_NORM_OPS = {name for name, op in TABLE.items() if op.norm and op.norm.over == "batch"}


def row_of(node: fx.Node) -> Op:
    """What is known of a node's op."""
    return TABLE.get(op_name(node), UNKNOWN)


def is_copy(node: fx.Node) -> bool:
    """True for an op whose result is what it reads, in eval mode: a copy, a dropout."""
    move = row_of(node).move
    return move.order == "places" and not move.casts


def norm_of(node: fx.Node, *over: str) -> Norm | None:
    """What a norm normalises by; None for other ops, and where it is not one of ``over``, if any is given."""
    norm = row_of(node).norm
    return norm if norm is not None and (not over or norm.over in over) else None


def is_norm(node: fx.Node, *kinds: str) -> bool:
    """True for a norm of these kinds, as in `Norm.kind`, in the form that users write, which has one result."""
    norm = row_of(node).norm
    return norm is not None and norm.kind in kinds and not norm.plain


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
