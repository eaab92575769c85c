"""Ops in exact arithmetic: one row for each that is more than a movement or an unknown function of one element.

What has no row here has a meaning all the same if its row in the op table says so: movements run on elements as
they are, a function of one element is an unknown one (`sigmoid`: an unknown square), a gate is x g(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.graph import op_name
from normfold.ops import exact_norms as norms
from normfold.ops import exact_signs as signs
from normfold.ops import exact_sums as sums
from normfold.ops.arithmetic import HIDDEN, Arithmetic, Call, NoMeaning, number, sides
from normfold.ops.table import Kind, bounds, by_name, row_of

Meaning = Callable[[Arithmetic, Call], Any]


# -- arithmetic -------------------------------------------------------------------------------------


def _scaled(f: Arithmetic, x: Tensor, factor: Any) -> Tensor:
    return x if factor == 1 else f.mul(x, f.element(factor))


def _add(f: Arithmetic, c: Call) -> Tensor:
    left, right = sides(f, c)
    return f.add(left, _scaled(f, right, c.get("alpha", 1)))


def _sub(f: Arithmetic, c: Call) -> Tensor:
    left, right = sides(f, c)
    return f.sub(left, _scaled(f, right, c.get("alpha", 1)))


def _rsub(f: Arithmetic, c: Call) -> Tensor:
    left, right = sides(f, c)
    return f.sub(right, _scaled(f, left, c.get("alpha", 1)))


def _mul(f: Arithmetic, c: Call) -> Tensor:
    return f.mul(*sides(f, c))


def _div(f: Arithmetic, c: Call) -> Tensor:
    if c.get("rounding_mode") is not None:
        raise NoMeaning("it rounds")
    left, right = sides(f, c)
    return f.mul(left, f.inverse(right))


def _neg(f: Arithmetic, c: Call) -> Tensor:
    return f.sub(number(f, 0), c["self"])


def _square(f: Arithmetic, c: Call) -> Tensor:
    return f.mul(c["self"], c["self"])


def _root(f: Arithmetic, c: Call) -> Tensor:
    return f.root(c["self"])


def _over_root(f: Arithmetic, c: Call) -> Tensor:
    return f.inverse(f.root(c["self"]))


def _reciprocal(f: Arithmetic, c: Call) -> Tensor:
    return f.inverse(c["self"])


def _power(f: Arithmetic, c: Call) -> Tensor:
    x, exponent = c["self"], c["exponent"]
    if isinstance(exponent, Tensor) or isinstance(x, (int, float)):
        raise NoMeaning("an exponent that is no constant")
    if exponent * 2 != int(exponent * 2):
        return f.scramble(x, f"power {exponent}")
    found, base = number(f, 1), f.root(x) if exponent != int(exponent) else x
    rest = abs(int(exponent if exponent == int(exponent) else exponent * 2))
    while rest:
        if rest % 2:
            found = f.mul(found, base)
        base, rest = f.mul(base, base), rest // 2
    found = found.expand(x.shape)
    return f.inverse(found) if exponent < 0 else found


def _addcmul(f: Arithmetic, c: Call) -> Tensor:
    product = f.mul(c["tensor1"], c["tensor2"])
    return f.add(c["self"], _scaled(f, product, c["value"]))


def _lerp(f: Arithmetic, c: Call) -> Tensor:
    part = f.mul(f.sub(c["end"], c["self"]), f.element(c["weight"]))
    return f.add(c["self"], part)


def _channel_affine(f: Arithmetic, c: Call) -> Tensor:
    x, behind = c["x"], c["x"].dim() - 1 - c["dim"] % c["x"].dim()
    for part, apply in ((c["scale"], f.mul), (c["shift"], f.add)):
        if part is not None:
            x = apply(x, part.reshape(-1, *[1] * behind))
    return x  # type: ignore[no-any-return]


# -- choices and movements --------------------------------------------------------------------------


def _where(f: Arithmetic, c: Call) -> Tensor:
    return torch.where(c["condition"], f.element(c["self"]), f.element(c["other"]))


def _masked_fill(f: Arithmetic, c: Call) -> Tensor:
    return torch.where(c["mask"], f.element(c["value"]), f.element(c["self"]))


def _pad(f: Arithmetic, c: Call) -> Tensor:
    result: Tensor
    if c.get("mode", "constant") != "constant":
        result = c.run()
    else:
        result = c.run(value=float(f.element(c.get("value") or 0)))
    return result


def _joined(f: Arithmetic, c: Call) -> Tensor:
    result: Tensor = c.run(tensors=[f.element(x) for x in c["tensors"]])
    return result


def _placed(f: Arithmetic, c: Call) -> Tensor:
    """Elements put into others at places that integers tell."""
    if c.get("accumulate") or c.get("reduce") is not None:
        raise NoMeaning("it does more than to place")
    given: dict[str, Any] = {}
    for name in ("self", "src", "values"):
        if name in c.values:
            given[name] = f.element(c[name])
    if isinstance(c.get("value"), (int, float)):
        given["value"] = float(f.element(c["value"]))
    result: Tensor = c.run(**given)
    return result


def _written(f: Arithmetic, c: Call) -> Tensor:
    """Other elements in the place of all that there are."""
    return f.element(c.get("src", c.get("value"))).expand(c["self"].shape)


def _as_is(f: Arithmetic, c: Call) -> Any:
    return c.run()


def _same(f: Arithmetic, c: Call) -> Tensor:
    result: Tensor = c["self"]
    return result


def _cast(f: Arithmetic, c: Call) -> Tensor:
    made = c.node.meta["val"].dtype
    if made == torch.bool:
        return c["self"] != 0  # type: ignore[no-any-return]
    if not made.is_floating_point:
        raise NoMeaning("it makes integers")
    result: Tensor = c["self"]
    return result


def _finite(f: Arithmetic, c: Call) -> Tensor:
    hidden: Tensor = c["self"] == HIDDEN
    found = {"isinf": hidden, "isneginf": hidden, "isfinite": ~hidden}
    return found.get(c.name, torch.zeros_like(hidden))


# -- gates ------------------------------------------------------------------------------------------


def _gated(f: Arithmetic, c: Call) -> Tensor:
    x, gate = c["self"].chunk(2, int(c["dim"]))
    return f.mul(x, f.scramble(gate, "sigmoid", positive=True))


def _exponential(f: Arithmetic, c: Call) -> Tensor:
    return f.scramble(c["self"], c.name, positive=True)


def _gate(gate: str) -> Meaning:
    def meaning(f: Arithmetic, c: Call) -> Tensor:
        x: Tensor = c["self"]
        return f.mul(x, f.scramble(x, gate, positive=True))

    return meaning


def _function(positive: bool) -> Meaning:
    """An unknown function of one element, another one for other arguments."""

    def meaning(f: Arithmetic, c: Call) -> Tensor:
        x, *rest = c.values.values()
        if not isinstance(x, Tensor) or any(isinstance(value, Tensor) for value in rest):
            raise NoMeaning("of more than one element")
        what = " ".join(map(str, (c.name, *rest))) if any(rest) else c.name
        return f.scramble(x, what, positive)

    return meaning


_ROWS: tuple[tuple[str, Meaning], ...] = (
    ("add", _add),
    ("sub", _sub),
    ("rsub", _rsub),
    ("mul multiply", _mul),
    ("div divide true_divide", _div),
    ("neg", _neg),
    ("square", _square),
    ("sqrt", _root),
    ("rsqrt", _over_root),
    ("reciprocal", _reciprocal),
    ("pow", _power),
    ("addcmul", _addcmul),
    ("lerp", _lerp),
    ("normfold::channel_affine", _channel_affine),
    ("maximum", signs.maximum),
    ("minimum", signs.minimum),
    ("amax amin max min", signs.amax),
    ("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices", signs.max_pool),
    ("adaptive_max_pool1d adaptive_max_pool2d", signs.adaptive_max_pool),
    ("clamp hardtanh", signs.clamp),
    ("clamp_min clamp_max", signs.clamp),
    ("relu", signs.relu),
    ("leaky_relu", signs.leaky_relu),
    ("prelu _prelu_kernel", signs.prelu),
    ("abs", signs.absolute),
    ("sign", signs.sign),
    ("threshold", signs.threshold),
    ("hardsigmoid", signs.hardsigmoid),
    ("hardswish", signs.hardswish),
    ("relu6", signs.relu6),
    ("exp exp2 cosh", _exponential),
    (
        """sin cos tan sinh asinh atan erf erfc log log1p log2 log10 expm1 hardshrink softshrink logit
        round floor ceil trunc frac""",
        _function(positive=False),
    ),
    ("glu", _gated),
    ("eq ne lt le gt ge", signs.compared),
    ("isinf isneginf isposinf isnan isfinite", _finite),
    ("copy fill", _written),
    ("where", _where),
    ("masked_fill", _masked_fill),
    ("pad constant_pad_nd", _pad),
    ("cat concat concatenate stack hstack vstack", _joined),
    (
        "index_put slice_scatter select_scatter diagonal_scatter scatter masked_scatter index_copy",
        _placed,
    ),
    (
        """upsample_nearest1d upsample_nearest2d upsample_nearest3d tril triu diagonal take_along_dim
        normfold::channel_pad""",
        _as_is,
    ),
    ("nan_to_num", _same),
    ("_to_copy to type_as", _cast),
    ("sum", sums.total),
    ("mean", sums.mean),
    ("prod", sums.product),
    ("cumsum index_add scatter_add scatter_reduce col2im", sums.summed),
    ("normfold::global_pool", sums.global_pool),
    ("matmul mm bmm mv dot", sums.matmul),
    ("linear", sums.linear),
    ("addmm baddbmm", sums.addmm),
    ("einsum", sums.einsum),
    (
        "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d",
        sums.convolution,
    ),
    ("avg_pool1d avg_pool2d avg_pool3d", sums.average_pool),
    (
        """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
        _adaptive_avg_pool3d""",
        sums.adaptive_average_pool,
    ),
    (
        """upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
        sums.interpolation,
    ),
    ("embedding", _as_is),
    ("layer_norm native_layer_norm", norms.layer_norm),
    ("rms_norm _fused_rms_norm", norms.rms_norm),
    ("group_norm native_group_norm", norms.group_norm),
    ("instance_norm", norms.instance_norm),
    (
        """batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit native_batch_norm
        cudnn_batch_norm""",
        norms.batch_norm,
    ),
    ("var std", norms.variance),
    ("norm linalg_vector_norm", norms.vector_norm),
    ("_weight_norm", norms.weight_norm),
    ("softmax _softmax", norms.softmax),
    ("log_softmax _log_softmax", norms.log_softmax),
    ("logsumexp", norms.logsumexp),
    ("scaled_dot_product_attention", norms.attention),
)


EXACT = by_name(_ROWS)


def meaning_of(node: fx.Node) -> Meaning | None:
    """What an op computes in exact arithmetic; None where it has no meaning there."""
    found = EXACT.get(op_name(node))
    if found is not None:
        return found
    row = row_of(node)
    if row.kind is Kind.MOVE:
        return _as_is
    if row.gate:
        return _gate(row.gate)
    return _function(bounds(node).low >= 0) if row.pointwise else None
