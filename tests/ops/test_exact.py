"""Ops over a prime field: what is rational is what it is of real numbers; the laws that rewrites use hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.field import Elements, Field
from normfold.domains.residues import PrimeField, suitable_primes
from normfold.ir.custom_ops import channel_affine, channel_pad
from normfold.ops.exact import EXACT, meaning_of
from normfold.ops.integer_ops import global_pool
from normfold.ops.table import TABLE

aten = torch.ops.aten
F = PrimeField(suitable_primes(1)[0])
INFINITE = -torch.inf


def call(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of one op; floats among its arguments are elements, and so are those of its results."""
    graph = fx.Graph()
    node = graph.call_function(op, args, kwargs)

    def real(value: Any) -> Any:
        is_elements = isinstance(value, Tensor) and value.is_floating_point()
        return torch.rand(value.shape) if is_elements else value

    node.meta["val"] = op(*pytree.tree_map(real, args), **kwargs)
    field = Field(F)

    def elements(value: Any) -> Any:
        is_elements = isinstance(value, Tensor) and value.is_floating_point()
        return Elements(value) if is_elements else value

    result = field.run(node, pytree.tree_map(elements, args), kwargs)
    assert not field.uninterpreted, field.uninterpreted
    plain = pytree.tree_map(lambda x: x.value if isinstance(x, Elements) else x, result)
    assert all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(plain)), result
    return plain


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random elements."""
    return F.random(shape, f"test {seed}")


def small(*shape: int, seed: int = 0, low: int = -6, high: int = 7) -> Tensor:
    """Small integers: their differences are products of small primes, which are positive here as well."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).double()


X = small(2, 4, 6, 5)
SMALL_CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.add.Tensor, (X, small(4, 1, 5, seed=1)), {"alpha": 3}),
    (aten.add.Tensor, (X, 0.25), {}),
    (aten.sub.Tensor, (X, small(5, seed=1)), {"alpha": 0.5}),
    (aten.rsub.Scalar, (X, 1), {}),
    (aten.mul.Tensor, (X, small(6, 1, seed=1)), {}),
    (aten.div.Tensor, (X, small(6, 1, seed=1, low=1)), {}),
    (aten.div.Tensor, (X, 0.7), {}),
    (aten.neg.default, (X,), {}),
    (aten.square.default, (X,), {}),
    (aten.pow.Tensor_Scalar, (X, 3), {}),
    (aten.pow.Tensor_Scalar, (small(4, low=1), -2), {}),
    (aten.pow.Tensor_Scalar, (small(9, low=0) ** 2, 0.5), {}),
    (aten.pow.Tensor_Scalar, (small(9, low=1) ** 2, -1.5), {}),
    (aten.sqrt.default, (small(9, low=0) ** 2,), {}),
    (aten.rsqrt.default, (small(9, low=1) ** 2,), {}),
    (aten.reciprocal.default, (small(9, low=1),), {}),
    (aten.addcmul.default, (X, X, X), {"value": 0.5}),
    (aten.lerp.Scalar, (X, X + 1, 0.25), {}),
    (aten.abs.default, (X,), {}),
    (aten.sign.default, (X,), {}),
    (aten.relu.default, (X,), {}),
    (aten.relu6.default, (2 * X,), {}),
    (aten.leaky_relu.default, (X, 0.1), {}),
    (aten.prelu.default, (X, small(4, seed=1)), {}),
    (aten.hardtanh.default, (X, -2.0, 3.0), {}),
    (aten.hardsigmoid.default, (X,), {}),
    (aten.hardswish.default, (X,), {}),
    (aten.clamp.default, (X, -1.5), {}),
    (aten.clamp_max.default, (X, 2), {}),
    (aten.threshold.default, (X, 1.0, -7.0), {}),
    (aten.maximum.default, (X, small(5, seed=1)), {}),
    (aten.minimum.default, (X, small(5, seed=1)), {}),
    (aten.amax.default, (X, [1, 3]), {}),
    (aten.amin.default, (X, [2], True), {}),
    (aten.gt.Tensor, (X, small(5, seed=1)), {}),
    (aten.le.Scalar, (X, 1.5), {}),
    (aten.ne.Scalar, (X, 0.0), {}),
    (aten.where.self, (X > 1, X, X + 5), {}),
    (aten.masked_fill.Scalar, (X, X > 1, -0.5), {}),
    (aten.copy.default, (X, small(4, 1, 5, seed=1)), {}),
    (aten.fill.Scalar, (X, 0.75), {}),
    (aten.pad.default, (X, [1, 0, 2, 1], "constant", 1.5), {}),
    (aten.pad.default, (X, [1, 0, 2, 1], "reflect"), {}),
    (aten.cat.default, ([X, X + 1], 1), {}),
    (aten.index_put.default, (X, [torch.tensor([1])], X[:1]), {}),
    (aten.sum.dim_IntList, (X, [1, 2], True), {}),
    (aten.mean.dim, (X, [-1]), {}),
    (aten.mean.default, (X,), {}),
    (aten.prod.dim_int, (X, 2, True), {}),
    (aten.prod.default, (X[0, 0, 0] + 7,), {}),
    (aten.cumsum.default, (X, 2), {}),
    (aten.index_add.default, (X, 1, torch.tensor([3, 3]), X[:, :2]), {}),
    (aten.var.correction, (X, [1, 2]), {"correction": 1, "keepdim": True}),
    (aten.linalg_vector_norm.default, (X, 1, [1]), {}),
    (
        aten._weight_norm.default,
        (torch.tensor([[3.0, -4.0], [0.0, 2.0]]).double(), small(2, 1)),
        {},
    ),
    (aten.matmul.default, (X, small(5, 3, seed=1)), {}),
    (aten.matmul.default, (X, small(5, seed=1)), {}),
    (aten.bmm.default, (X[0], X[0].mT), {}),
    (aten.linear.default, (X, small(3, 5, seed=1), small(3, seed=2)), {}),
    (aten.addmm.default, (small(3), X[0, 0], small(5, 3)), {"beta": 2, "alpha": 0.5}),
    (aten.einsum.default, ("bchw,cw->bhc", [X, small(4, 5)]), {}),
    (aten.conv2d.default, (X, small(6, 2, 3, 3), small(6), [2, 1], [1, 1], [1, 1], 2), {}),
    (aten.conv2d.padding, (X, small(6, 4, 3, 2), None, [1, 1], "same"), {}),
    (aten.conv1d.default, (X[0], small(3, 6, 2), small(3)), {}),
    (aten.conv_transpose2d.input, (X, small(4, 3, 3, 3), small(6), [2, 2], [1, 1], [1, 0], 2), {}),
    (aten.max_pool2d.default, (X, [3, 2], [2, 2], [1, 0], [1, 1], True), {}),
    (aten.max_pool1d.default, (X[0], [2], [1], [0], [2]), {}),
    (aten.adaptive_max_pool2d.default, (X, [1, 1]), {}),
    (aten.avg_pool2d.default, (X, [3, 2], [2, 1], [1, 1], True, False), {}),
    (aten.avg_pool2d.default, (X, [3, 3], [2, 2], [1, 1], True, True), {}),
    (aten.avg_pool2d.default, (X, [3, 3], [2, 2], [1, 1], False, True, 5), {}),
    (aten.avg_pool1d.default, (X[0], [3], [2], [1]), {}),
    (aten.avg_pool3d.default, (X[None], [2, 2, 2]), {}),
    (aten.adaptive_avg_pool2d.default, (X, [4, 3]), {}),
    (aten.upsample_nearest2d.vec, (X, [9, 7], None), {}),
    (aten.embedding.default, (small(7, 3), torch.tensor([[1, 6, 0]])), {}),
    (channel_affine, (X, small(6), small(6, seed=1), 2), {}),
    (channel_pad, (X, [1, 2], small(4), 1), {}),
    (global_pool, (X,), {}),
    (aten.permute.default, (X, [0, 2, 3, 1]), {}),
    (aten.roll.default, (X, [1, 2], [2, 3]), {}),
    (aten.pixel_shuffle.default, (X, 2), {}),
    (aten.split_with_sizes.default, (X, [1, 3], 1), {}),
]


@pytest.mark.parametrize(
    ("op", "args", "kwargs"), SMALL_CALLS, ids=[str(item[0]) for item in SMALL_CALLS]
)
def test_small_numbers_give_what_real_ones_give(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    def read(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and value.is_floating_point()
        return F.exact(value) if is_real else value

    wanted = pytree.tree_leaves(op(*args, **kwargs))
    found = pytree.tree_leaves(call(op, *pytree.tree_map(read, args), **kwargs))
    if op is aten.adaptive_max_pool2d.default:  # nobody asks where it stood
        wanted, found = wanted[:1], found[:1]
    for mine, real in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, read(real), rtol=0, atol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (aten.upsample_bilinear2d.vec, ([9, 7], False, None)),
        (aten.upsample_bilinear2d.vec, (None, True, [2.0, 2.0])),
        (aten.upsample_bicubic2d.vec, (None, False, [2.0, 2.0])),
        (aten.upsample_bicubic2d.default, ([9, 10], False)),
        (aten._upsample_bilinear2d_aa.default, ([3, 10], False)),
        (aten.adaptive_avg_pool2d.default, ([4, 3],)),
    ],
    ids=str,
)
def test_interpolations_are_rational(op: Any, rest: tuple[Any, ...]) -> None:
    x = X * 27720 * 2**14 * 27  # of which every denominator is a divisor
    wanted = op(x, *rest)
    assert float((wanted - wanted.round()).abs().max()) < 1e-3
    assert torch.equal(call(op, F.exact(x), *rest), F.exact(wanted.round()))


def positive(*shape: int) -> Tensor:
    root = drawn(*shape, seed=9)
    return F.mul(root, root)


HOMOGENEOUS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.relu.default, ()),
    (aten.leaky_relu.default, (0.2,)),
    (aten.abs.default, ()),
    (aten.amax.default, ([2],)),
    (aten.max_pool2d.default, ([3, 3], [2, 2], [1, 1])),
    (aten.avg_pool2d.default, ([3, 3], [2, 2], [1, 1])),
    (aten.linalg_vector_norm.default, (2, [1])),
    (aten.std.correction, ([1],)),
]


@pytest.mark.parametrize(("op", "rest"), HOMOGENEOUS, ids=[str(op) for op, _ in HOMOGENEOUS])
def test_positive_scales_pass(op: Any, rest: tuple[Any, ...]) -> None:
    x, scale = drawn(2, 4, 6, 5), positive(1)
    assert torch.equal(call(op, F.mul(x, scale), *rest), F.mul(call(op, x, *rest), scale))


@pytest.mark.parametrize("op", [aten.relu.default, aten.amax.default, aten.maximum.default])
def test_negative_scales_do_not_pass(op: Any) -> None:
    x, scale = drawn(2, 4, 6, 5), F.sub(F.element(0), positive(1))
    rest = {aten.amax.default: ([2],), aten.maximum.default: (drawn(5),)}.get(op, ())
    assert not torch.equal(call(op, F.mul(x, scale), *rest), F.mul(call(op, x, *rest), scale))


@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (aten.max_pool2d.default, ([3, 3], [2, 2], [1, 1])),
        (aten.amax.default, ([3],)),
        (aten.adaptive_avg_pool2d.default, ([4, 3],)),
        (aten.upsample_bicubic2d.vec, ([7, 9], False, None)),
        (aten.avg_pool2d.default, ([3, 3], [2, 2], [1, 1], False, False)),
    ],
    ids=str,
)
def test_shifts_pass(op: Any, rest: tuple[Any, ...]) -> None:
    x, shift = drawn(2, 4, 6, 5), drawn(1, seed=3)
    assert torch.equal(call(op, F.add(x, shift), *rest), F.add(call(op, x, *rest), shift))


def test_roots() -> None:
    a, v = drawn(1000), drawn(1000, seed=1)
    scale, size = F.mul(F.mul(a, a), v), call(aten.abs.default, a)
    assert torch.equal(call(aten.sqrt.default, scale), F.mul(size, call(aten.sqrt.default, v)))
    over = call(aten.rsqrt.default, scale)
    assert torch.equal(F.mul(over, size), call(aten.rsqrt.default, v))
    assert bool((F.sign(over) >= 0).all())


def test_softmax() -> None:
    x = drawn(3, 5, 7)
    weights = call(aten.softmax.int, x, -1)
    assert bool((F.reduce(weights.sum(-1)) == 1).all())
    assert torch.equal(weights, call(aten.softmax.int, F.add(x, drawn(3, 5, 1, seed=1)), -1))
    assert torch.equal(weights.flip(-1), call(aten.softmax.int, x.flip(-1), -1))
    assert not torch.equal(weights, call(aten.softmax.int, F.mul(x, F.element(2)), -1))


def test_hidden_places() -> None:
    x, mask = drawn(5, 5), torch.ones(5, 5, dtype=torch.bool).triu(1)
    hidden = call(aten.masked_fill.Scalar, x, mask, INFINITE)
    weights = call(aten.softmax.int, hidden, -1)
    assert bool((weights[mask] == 0).all())
    assert bool((weights[~mask] != 0).all())
    shifted = call(aten.add.Tensor, hidden, drawn(5, 1, seed=1))
    assert torch.equal(weights, call(aten.softmax.int, shifted, -1))
    added = F.mul(F.element(mask), F.element(torch.finfo(torch.float32).min))
    assert torch.equal(weights, call(aten.softmax.int, call(aten.add.Tensor, x, added), -1))
    none = call(aten.softmax.int, torch.full((2, 3), INFINITE, dtype=torch.float64), -1)
    assert bool((none == 0).all())


def test_attention_is_written_out() -> None:
    q, k, v = (drawn(1, 2, 5, 8, seed=seed) for seed in range(3))
    scores = F.mul(call(aten.matmul.default, q, k.mT), F.element(1 / 8**0.5))
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = call(aten.masked_fill.Scalar, scores, future, INFINITE)
    wanted = call(aten.matmul.default, call(aten.softmax.int, scores, -1), v)
    attention = aten.scaled_dot_product_attention.default
    assert torch.equal(call(attention, q, k, v, is_causal=True), wanted)
    assert torch.equal(call(attention, q, k, v, ~future), wanted)
    shared = [x.repeat_interleave(2, 1) for x in (k, v)]
    wide = drawn(1, 4, 5, 8, seed=5)
    assert torch.equal(call(attention, wide, k, v, enable_gqa=True), call(attention, wide, *shared))


def test_norms_are_what_they_are() -> None:
    x, gain, bias = drawn(2, 5, 6), drawn(6, seed=1), drawn(6, seed=2)
    centred = F.sub(x, call(aten.mean.dim, x, [-1], True))
    affine = F.add(F.mul(call(aten.rms_norm.default, centred, [6], None, 1e-5), gain), bias)
    assert torch.equal(call(aten.layer_norm.default, x, [6], gain, bias, 1e-5), affine)
    image = drawn(2, 6, 4, 3)
    grouped = call(aten.group_norm.default, image, 6, gain, bias, 1e-5)
    alone = (None, None, True, 0.1, 1e-5, False)
    assert torch.equal(call(aten.instance_norm.default, image, gain, bias, *alone), grouped)


def test_functions_of_one_element() -> None:
    x = drawn(50)
    gate = F.mul(x, call(aten.sigmoid.default, x))
    assert torch.equal(call(aten.silu.default, x), gate)
    assert bool((F.sign(call(aten.sigmoid.default, x)) == 1).all())
    y = call(aten.gelu.default, x)
    assert torch.equal(y.flip(0), call(aten.gelu.default, x.flip(0)))
    others = call(aten.gelu.default, x, approximate="tanh"), call(aten.tanh.default, x)
    assert not any(torch.equal(y, other) for other in others)


def dot(x: Tensor, y: Tensor) -> int:
    pairs = zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    return sum(int(a) * int(b) for a, b in pairs) % F.prime


def test_long_sums_stay_exact() -> None:
    x, w = drawn(2, 20000), drawn(3, 20000, seed=1)
    wanted = [[dot(row, other) for other in w] for row in x]
    assert call(aten.linear.default, x, w).tolist() == wanted
    image, kernel = drawn(1, 2000, 3, 3), drawn(2, 1000, 3, 3, seed=1)
    (found,) = call(aten.conv2d.default, image, kernel, None, [1], [0], [1], 2).flatten(1)
    assert found.tolist() == [dot(image[:, :1000], kernel[0]), dot(image[:, 1000:], kernel[1])]


def test_every_row_is_reachable() -> None:
    """A name of an op that torch does not have would be a slip."""
    names = [name for name in EXACT if "::" not in name]
    assert [name for name in names if not hasattr(aten, name)] == []


def test_what_has_no_meaning() -> None:
    """A list to be read when an op is added: these differ behind themselves."""
    graph = fx.Graph()
    found = []
    for name in TABLE:
        scope, _, leaf = name.rpartition("::")
        packet = getattr(getattr(torch.ops, scope or "aten"), leaf, None)
        if packet is None:
            continue
        node = graph.call_function(getattr(packet, packet.overloads()[0]), ())
        if meaning_of(node) is None and not TABLE[name].lends:
            found.append(name)
    assert set(found) == {
        "argmax",
        "embedding_bag",
        "_embedding_bag",
        "_embedding_bag_forward_only",
        "fmod",
        "full",
        "normalize",
        "sort",
        "topk",
    } & set(found)
