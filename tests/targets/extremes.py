"""Every op that the exporter knows, on values at which its usual forms fail: the table of the sweep.

A case is a function of tensors and its inputs. Float inputs are float32; the truth is the same in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MAGNITUDES = (
    1e-38,
    1e-30,
    1e-7,
    1e-3,
    0.5,
    1.0,
    1.5,
    2.5,
    15.0,
    20.0,
    88.0,
    100.0,
    1e4,
    1e10,
    3e38,
)
FINITE = torch.tensor([0.0, -0.0, *(sign * x for x in _MAGNITUDES for sign in (1.0, -1.0))])
ALL = torch.cat([FINITE, torch.tensor([math.inf, -math.inf, math.nan])])
_FEW = torch.tensor(
    [0.0, -0.0, 1e-30, -1e-7, 0.5, -1.0, 1.5, -2.5, 7.0, 100.0, -100.0, 1e10, -3e38]
)
_FEW = torch.cat([_FEW, torch.tensor([math.inf, -math.inf, math.nan])])
INTEGERS = torch.tensor([0, 1, -1, 2, -3, 7, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63)])
BITS = torch.tensor([True, False, True, True])


def _rows() -> Tensor:
    """Rows of one size each, with infinities and ties among them."""
    torch.manual_seed(0)
    near = torch.rand(6) * 0.9 + 0.1
    rows = [sign * size * near for size in _MAGNITUDES for sign in (1.0, -1.0)]
    special = [[math.inf] * 6, [-math.inf] * 6, [math.nan] * 6, [0.0] * 6, [2.0, 1, 2, 1, 2, 1]]
    special += [[-math.inf, 1, 2, 3, 4, 5], [math.inf, 1, 2, 3, 4, 5], [math.nan, 1, 2, 3, 4, 5]]
    special += [[1e4, 0, -1e4, 3, 100, -100], [-1000.0, -1001, -1002, -1003, -999, -1000]]
    return torch.stack([*rows, *map(torch.tensor, special)])


ROWS = _rows()
FINITE_ROWS = ROWS[ROWS.isfinite().all(-1)]


def _scaled(*shape: int) -> Tensor:
    """Random numbers, each entry of the batch of another size."""
    torch.manual_seed(1)
    sizes = torch.tensor([1e-30, 1e-7, 1.0, 1e4, 1e10, 1e30])
    return torch.randn(6, *shape) * sizes.view(-1, *[1] * len(shape))


@dataclass(frozen=True)
class Case:
    """``coarse``: errors are measured by the largest operand, as sums do."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    coarse: bool = False


_UNARY = """abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1
floor frac isfinite isinf isnan isneginf isposinf lgamma log log10 log1p log2 logical_not logit
nan_to_num neg positive rad2deg reciprocal relu round rsqrt sgn sigmoid sign signbit sin sinc sinh
sqrt square tan tanh trunc fix special.entr special.expit special.erfcx special.log1p special.ndtr
special.log_ndtr special.ndtri special.i0 special.i0e special.i1 special.i1e"""
_ACTIVATIONS = """relu relu6 elu selu celu gelu silu mish softplus softsign logsigmoid hardswish hardsigmoid
hardtanh leaky_relu hardshrink softshrink tanhshrink threshold rrelu"""
_BINARY = """add sub mul div true_divide maximum minimum fmax fmin atan2 hypot fmod remainder floor_divide
logaddexp logaddexp2 eq ne lt le gt ge isclose logical_and logical_or logical_xor copysign ldexp
nextafter xlogy heaviside pow special.xlog1py float_power"""
_INTEGER_BINARY = """add sub mul maximum minimum fmod remainder floor_divide eq ne lt le gt ge bitwise_and
bitwise_or bitwise_xor div gcd lcm"""


def _of(name: str) -> Any:
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part)
    return found


def pointwise() -> Iterator[Case]:
    for name in _UNARY.split():
        yield Case(name, _of(name), (ALL,))
    for name in _ACTIVATIONS.split():
        extra = (1.0, 0.5) if name == "threshold" else ()
        function = getattr(F, name)
        yield Case(f"F.{name}", lambda x, f=function, e=extra: f(x, *e), (ALL,))
    small = torch.cat(
        [torch.linspace(-6, 6, 97), torch.logspace(-8, 1, 40), -torch.logspace(-8, 1, 40)]
    )
    for name in (
        "log1p",
        "expm1",
        "sinh",
        "asinh",
        "atanh",
        "tanh",
        "logit",
        "erf",
        "erfc",
        "sigmoid",
        "sinc",
    ):
        yield Case(f"{name}, near zero", _of(name), (small,))
    for name in (
        "softplus",
        "logsigmoid",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "tanhshrink",
    ):
        yield Case(f"F.{name}, near zero", getattr(F, name), (small,))
    yield from [
        Case("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), (ALL,)),
        Case("softplus 2 5", lambda x: F.softplus(x, 2.0, 5.0), (ALL,)),
        Case("elu 0.5", lambda x: F.elu(x, 0.5), (ALL,)),
        Case("celu 2", lambda x: F.celu(x, 2.0), (ALL,)),
        Case("celu 0.01", lambda x: F.celu(x, 0.01), (ALL,)),
        Case("leaky_relu 2", lambda x: F.leaky_relu(x, 2.0), (ALL,)),
        Case("prelu", lambda x, w: F.prelu(x.view(1, 1, -1), w), (ALL, torch.tensor([0.25]))),
        Case("glu", lambda x: F.glu(torch.stack([x, x.flip(0)])[None], 1), (ALL,)),
        Case("round decimals", lambda x: torch.round(x, decimals=2), (ALL,)),
        Case("round decimals -2", lambda x: torch.round(x, decimals=-2), (ALL,)),
        Case("halves", torch.round, (torch.arange(-8, 9) / 2,)),
        Case("clamp", lambda x: x.clamp(-1, 1), (ALL,)),
        Case("clamp min", lambda x: x.clamp(min=0.5), (ALL,)),
        Case("clamp max", lambda x: x.clamp(max=0.5), (ALL,)),
        Case("clamp max below min", lambda x: x.clamp(2, 1), (ALL,)),
        Case("clamp min of a tensor", lambda x: x.clamp(min=torch.tensor(0.5)), (ALL,)),
        Case("clamp max of a tensor", lambda x: x.clamp(max=torch.tensor(0.5)), (ALL,)),
        Case("clamp min of an input", lambda x, y: x.clamp(min=y), (ALL, torch.tensor(0.5))),
        Case("clamp max of inputs", lambda x, y: x.clamp(max=y), (ALL, torch.ones(1))),
        Case("clamp tensors", lambda x: torch.clamp(x, x * 0 - 1, x * 0 + 1), (FINITE,)),
        Case("logit eps", lambda x: torch.logit(x, 1e-6), (ALL,)),
        Case("nan_to_num 1 2 3", lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0), (ALL,)),
        Case("log(1 + exp)", lambda x: torch.log1p(torch.exp(x)), (ALL,)),
        Case("log(sigmoid)", lambda x: torch.log(torch.sigmoid(x)), (ALL,)),
        Case("x * sigmoid(x)", lambda x: x * torch.sigmoid(x), (ALL,)),
        Case("polygamma 1", lambda x: torch.polygamma(1, x), (ALL,)),
        Case("mvlgamma", lambda x: torch.mvlgamma(x.abs() + 2, 2), (ALL,)),
        Case("sinc signal", torch.special.sinc, (ALL,)),
        Case("lerp", lambda x: torch.lerp(x, x.flip(0), 0.3), (FINITE,), True),
        Case("lerp 0.7", lambda x: torch.lerp(x, x.flip(0), 0.7), (ALL,), True),
        Case("lerp tensor", lambda x: torch.lerp(x, x.flip(0), x * 0 + 0.9), (FINITE,), True),
        Case("addcmul", lambda x: torch.addcmul(x, x, x.flip(0), value=0.5), (ALL,)),
        Case("addcdiv", lambda x: torch.addcdiv(x, x, x.flip(0), value=0.5), (ALL,)),
        Case("add alpha", lambda x: torch.add(x, x.flip(0), alpha=3), (ALL,)),
        Case("rsub", lambda x: torch.rsub(x, 2.0), (ALL,)),
        Case("2 / x", lambda x: 2.0 / x, (ALL,)),
        Case("2 ** x", lambda x: 2.0**x, (ALL,)),
        Case("0.5 ** x", lambda x: 0.5**x, (ALL,)),
        Case("x % 3", lambda x: x % 3, (ALL,)),
        Case("x % -3", lambda x: x % -3, (ALL,)),
        Case("3 % x", lambda x: torch.remainder(3.0, x), (ALL,)),
        Case("fmod 3", lambda x: torch.fmod(x, 3), (ALL,)),
        Case("fmod -3", lambda x: torch.fmod(x, -3), (ALL,)),
        Case("x // 3", lambda x: x // 3, (ALL,)),
        Case("x // -0.7", lambda x: x // -0.7, (ALL,)),
        Case("div trunc", lambda x: torch.div(x, 3, rounding_mode="trunc"), (ALL,)),
        Case("div floor", lambda x: torch.div(x, -3, rounding_mode="floor"), (ALL,)),
        Case("where", lambda x: torch.where(x > 0, x, x / 0), (ALL,)),
        Case("masked_fill", lambda x: x.masked_fill(x < 0, -math.inf), (ALL,)),
        Case("heaviside 0.5", lambda x: torch.heaviside(x, x * 0 + 0.5), (FINITE,)),
        Case("cast to int", lambda x: x.clamp(-1e9, 1e9).to(torch.int64), (FINITE,)),
        Case("cast to bool", lambda x: x.to(torch.bool), (ALL,)),
        Case("cast to half", lambda x: x.half().float(), (ALL,)),
        Case("cast to bfloat16", lambda x: x.bfloat16().float(), (ALL,)),
        Case("complex abs", lambda x: torch.view_as_real(torch.complex(x, x)).norm(dim=-1), (ALL,)),
    ]
    for power in (0, 0.5, -0.5, 1, -1, 2, -2, 3, 4, 1.5, 1 / 3):
        yield Case(f"x ** {power:.3g}", lambda x, p=power: x**p, (ALL,))
    left, right = (part.contiguous() for part in torch.meshgrid(_FEW, _FEW, indexing="ij"))
    for name in _BINARY.split():
        yield Case(name, _of(name), (left, right))
    floats = (left.nan_to_num(3.0, 1e5, -1e5), right.nan_to_num(2.0, 1e3, -1e3))
    yield Case(
        "div floor of pairs", lambda x, y: torch.div(x, y, rounding_mode="floor"), (left, right)
    )
    yield Case(
        "div trunc of pairs", lambda x, y: torch.div(x, y, rounding_mode="trunc"), (left, right)
    )
    yield Case("remainder of finite pairs", torch.remainder, floats)


def integers() -> Iterator[Case]:
    for kind in (torch.int64, torch.int32):
        values = INTEGERS.clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind).unique()
        a, b = (part.contiguous() for part in torch.meshgrid(values, values, indexing="ij"))
        division = b != 0
        division &= ~((b == -1) & (a == torch.iinfo(kind).min))
        for name in _INTEGER_BINARY.split():
            divides = name in ("fmod", "remainder", "floor_divide", "div")
            pair = (a[division], b[division]) if divides else (a, b)
            yield Case(f"{name} {kind}", _of(name), pair)
        pair = (a[division], b[division])
        yield Case(f"div trunc {kind}", lambda x, y: torch.div(x, y, rounding_mode="trunc"), pair)
        for name in (
            "abs",
            "neg",
            "sign",
            "bitwise_not",
            "square",
            "logical_not",
            "signbit",
            "sgn",
        ):
            yield Case(f"{name} {kind}", _of(name), (values,))
        for name in (
            "sum",
            "prod",
            "cumsum",
            "amax",
            "amin",
            "argmax",
            "any",
            "all",
            "count_nonzero",
        ):
            extra, function = (0,) if name == "cumsum" else (), _of(name)
            yield Case(
                f"{name} {kind}", lambda x, f=function, e=extra: f(x, *e), (values[1:-1] % 1000,)
            )
        yield Case(f"clamp {kind}", lambda x: x.clamp(-5, 5), (values,))
        yield Case(f"x ** 2 {kind}", lambda x: x**2, (values % 1000,))
        yield Case(f"shifts {kind}", lambda x: ((x % 9) << 3) + ((x % 99) >> 1), (values,))
        yield Case(f"negative shift {kind}", lambda x: (x % 99 - 50) >> 1, (values,))
        yield Case(f"float {kind}", lambda x: x.float(), (values,))
        yield Case(f"mean of floats {kind}", lambda x: x.float().mean(), (values % 1000,))
        yield Case(f"x / 3 {kind}", lambda x: x / 3, (values % 10000,))
        yield Case(f"sort {kind}", lambda x: torch.sort(x)[0], (values,))
        yield Case(f"max {kind}", lambda x: x.max(0)[0], (values,))
    for name in ("any", "all", "sum", "argmax", "cumsum", "amax", "logical_not", "bitwise_not"):
        extra, function = (0,) if name in ("cumsum", "argmax") else (), _of(name)
        start = (lambda x: x.int()) if name == "argmax" else (lambda x: x)
        yield Case(f"{name} bool", lambda x, f=function, e=extra, s=start: f(s(x), *e), (BITS,))
    for name in ("mul", "bitwise_and", "bitwise_or", "bitwise_xor", "logical_xor", "eq", "maximum"):
        yield Case(f"{name} bool", _of(name), (BITS, BITS.flip(0)))


_REDUCTIONS = """sum mean amax amin prod std var logsumexp softmax log_softmax cumsum cumprod logcumsumexp norm
nansum nanmean median argmax argmin all any softmin std_mean var_mean aminmax max min sort cummax
cummin mode count_nonzero"""


def reductions() -> Iterator[Case]:
    for name in _REDUCTIONS.split():
        found: Any = getattr(torch, name, None) or getattr(F, name)
        several = name in ("max", "min", "sort", "cummax", "cummin", "mode", "median")
        read = (lambda y: y[0]) if several else (lambda y: y)
        rows = FINITE_ROWS if name in ("sort", "mode", "median", "argmax", "argmin") else ROWS
        coarse = name in (
            "sum",
            "mean",
            "std",
            "var",
            "cumsum",
            "nansum",
            "nanmean",
            "std_mean",
            "var_mean",
        )
        yield Case(name, lambda x, f=found, r=read: r(f(x, dim=-1)), (rows,), coarse)
        shifted = (rows[rows.isfinite().all(-1)][:6],)
        yield Case(f"{name} axis 0", lambda x, f=found, r=read: r(f(x, dim=0)), shifted, coarse)
    for order in (0, 1, 2, 3, math.inf, -math.inf, 0.5):
        yield Case(f"norm {order}", lambda x, p=order: torch.linalg.vector_norm(x, p, -1), (ROWS,))
    yield from [
        Case("sum of all", lambda x: x.sum(), (FINITE_ROWS[:8],), True),
        Case("prod of all", lambda x: x.prod(), (FINITE_ROWS[10:12],)),
        Case("logsumexp keepdim", lambda x: torch.logsumexp(x, (0, 1), True), (FINITE_ROWS,)),
        Case(
            "logsumexp of all -inf",
            lambda x: torch.logsumexp(x, 1),
            (torch.full((2, 3), -math.inf),),
        ),
        Case("var of all", lambda x: x.var(), (FINITE_ROWS[8:16],)),
        Case("var of one", lambda x: x.var(-1, correction=0), (torch.randn(3, 1),)),
        Case("var of large means", lambda x: x.var(-1), (torch.randn(4, 64) + 3e3,), True),
        Case("std correction 2", lambda x: x.std(-1, correction=2), (FINITE_ROWS,), True),
        Case("normalize", lambda x: F.normalize(x, dim=-1), (ROWS,)),
        Case("normalize 1", lambda x: F.normalize(x, 1.0, -1), (ROWS,)),
        Case("cosine_similarity", lambda x: F.cosine_similarity(x, x.flip(-1), -1), (ROWS,)),
        Case("pairwise_distance", lambda x: F.pairwise_distance(x, x.flip(-1)), (FINITE_ROWS,)),
        Case("cdist", lambda x: torch.cdist(x[None], x[None].flip(1)), (torch.randn(5, 4),)),
        Case(
            "cdist of near",
            lambda x: torch.cdist(x[None], x[None] + 1e-3),
            (torch.randn(30, 4) + 50,),
        ),
        Case("cdist 1", lambda x: torch.cdist(x[None], x[None].flip(1), 1.0), (torch.randn(5, 4),)),
        Case("dist", lambda x: torch.dist(x, x.flip(-1)), (torch.randn(5, 4),)),
        Case("topk", lambda x: torch.topk(x, 3)[0], (FINITE_ROWS,)),
        Case("topk smallest", lambda x: torch.topk(x, 3, largest=False)[0], (FINITE_ROWS,)),
        Case("kthvalue", lambda x: torch.kthvalue(x, 2)[0], (FINITE_ROWS,)),
        Case("sort descending", lambda x: torch.sort(x, descending=True)[0], (FINITE_ROWS,)),
        Case("stable argsort", lambda x: torch.argsort(x, stable=True), (FINITE_ROWS,)),
        Case("argmax of all", lambda x: torch.argmax(x), (FINITE_ROWS,)),
        Case("argmax keepdim", lambda x: torch.argmax(x, 0, True), (FINITE_ROWS,)),
        Case("max of all", lambda x: torch.max(x), (FINITE_ROWS,)),
        Case("max of nan", lambda x: torch.max(x), (ROWS,)),
        Case("renorm", lambda x: torch.renorm(x, 2, 0, 1.0), (FINITE_ROWS,)),
        Case("softmax axis 0", lambda x: torch.softmax(x, 0), (FINITE_ROWS,)),
        Case("softmax half", lambda x: torch.softmax(x, -1, dtype=torch.float32), (ROWS,)),
        Case("log(softmax)", lambda x: torch.log(torch.softmax(x, -1)), (FINITE_ROWS[16:20],)),
        Case("gumbel", lambda x: torch.softmax(x / 0.1, -1), (FINITE_ROWS,)),
        Case("trapezoid", lambda x: torch.trapezoid(x), (FINITE_ROWS,), True),
        Case("diff", lambda x: torch.diff(x), (ROWS,), True),
        Case("searchsorted", lambda x: torch.searchsorted(x, x[:3] + 0.1), (torch.arange(9.0),)),
        Case("bucketize", lambda x: torch.bucketize(x, torch.arange(3.0)), (FINITE,)),
        Case("histc", lambda x: torch.histc(x, 5, -2, 2), (torch.randn(40),)),
        Case("bincount", lambda x: torch.bincount(x, minlength=9), (torch.arange(7),)),
        Case("quantile", lambda x: torch.quantile(x, 0.3, -1), (FINITE_ROWS,), True),
        Case("unique", lambda x: torch.unique(x), (torch.tensor([3.0, 1, 3, 2, 1]),)),
    ]


def every() -> list[Case]:
    from tests.targets.extreme_losses import losses, norms
    from tests.targets.extreme_shapes import shapes

    parts = (pointwise, integers, reductions, norms, losses, shapes)
    return [case for part in parts for case in part()]
