"""Pools, convolutions, interpolations, paddings, indexing, products: the rest of the table of the sweep."""
# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.targets.extremes import ALL, FINITE_ROWS, ROWS, Case, _scaled


def shapes() -> Iterator[Case]:
    for part in (pools, convolutions, interpolations, paddings, indexing, products, movements):
        yield from part()


def _holed(*shape: int) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(*shape)
    x.view(-1)[3], x.view(-1)[-2], x.view(-1)[11] = math.inf, -math.inf, math.nan
    return x


def pools() -> Iterator[Case]:
    x, low = _scaled(2, 7, 8), torch.full((1, 2, 7, 8), -math.inf)
    for data, name in ((x, ""), (_holed(1, 2, 7, 8), " of infinities"), (low, " of -inf")):
        yield from [
            Case(f"max_pool2d{name}", lambda x: F.max_pool2d(x, 3, 2, 1), (data,)),
            Case(f"max_pool2d dilated{name}", lambda x: F.max_pool2d(x, 3, 1, 1, 2), (data,)),
            Case(f"max_pool2d ceil{name}", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (data,)),
            Case(f"max_pool2d ceil over the end{name}", lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True), (data,)),
            Case(f"max_pool2d oblong{name}", lambda x: F.max_pool2d(x, (1, 4), (2, 3)), (data,)),
            Case(f"avg_pool2d{name}", lambda x: F.avg_pool2d(x, 3, 2, 1), (data,), True),
            Case(f"avg_pool2d without pad{name}", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
                 (data,), True),
            Case(f"avg_pool2d ceil{name}", lambda x: F.avg_pool2d(x, 3, 2, 1, True), (data,), True),
            Case(f"avg_pool2d ceil without pad{name}", lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (data,), True),
            Case(f"avg_pool2d ceil over the end{name}", lambda x: F.avg_pool2d(x, 2, 3, 1, True), (data,), True),
            Case(f"avg_pool2d divisor{name}", lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), (data,), True),
            Case(f"adaptive_avg_pool2d 1{name}", lambda x: F.adaptive_avg_pool2d(x, 1), (data,), True),
            Case(f"adaptive_avg_pool2d 3 4{name}", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (data,), True),
            Case(f"adaptive_avg_pool2d 9 5{name}", lambda x: F.adaptive_avg_pool2d(x, (9, 5)), (data,), True),
            Case(f"adaptive_max_pool2d 1{name}", lambda x: F.adaptive_max_pool2d(x, 1), (data,)),
            Case(f"adaptive_max_pool2d 3 4{name}", lambda x: F.adaptive_max_pool2d(x, (3, 4)), (data,)),
            Case(f"lp_pool2d{name}", lambda x: F.lp_pool2d(x.abs(), 2.0, 2), (data,)),
        ]  # fmt: skip
    line, cube = _scaled(2, 9), _scaled(2, 5, 5, 5)
    yield from [
        Case("max_pool1d", lambda x: F.max_pool1d(x, 3, 2, 1, 2), (line,)),
        Case("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1, True), (line,), True),
        Case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4), (line,), True),
        Case("max_pool3d", lambda x: F.max_pool3d(x, 2, 2, 1), (cube,)),
        Case("avg_pool3d", lambda x: F.avg_pool3d(x, 2, 2, 1), (cube,), True),
        Case("avg_pool3d ceil", lambda x: F.avg_pool3d(x, 2, 3, 1, True, False), (cube,), True),
        Case("max_pool2d indices", lambda x: F.max_pool2d(x, 2, return_indices=True), (x,)),
        Case("max_pool2d of 3 axes", lambda x: F.max_pool2d(x[0], 2), (x,)),
        Case(
            "max_unpool2d",
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
            (x,),
        ),
        Case("fractional", lambda x: F.max_pool2d(x, 2, stride=1), (x,)),
    ]


def convolutions() -> Iterator[Case]:
    torch.manual_seed(3)
    x, kernel, thin = _scaled(4, 9, 8), torch.randn(6, 4, 3, 2), torch.randn(6, 2, 3, 2)
    up = torch.randn(4, 3, 3, 2)
    for stride, padding, dilation in product((1, (2, 3)), (0, (1, 2)), (1, (2, 3))):
        words = f"{stride} {padding} {dilation}"
        yield Case(
            f"conv2d {words}",
            lambda x, w, a=(stride, padding, dilation): F.conv2d(x, w, None, *a),
            (x, kernel),
            True,
        )
        yield Case(
            f"conv2d groups {words}",
            lambda x, w, a=(stride, padding, dilation, 2): F.conv2d(x, w, None, *a),
            (x, thin),
            True,
        )
        extra = 0 if stride == 1 else (1, 2)
        yield Case(
            f"conv_transpose2d {words} {extra}",
            lambda x, w, a=(stride, padding, extra, 2, dilation): F.conv_transpose2d(
                x, w, None, *a
            ),
            (x, up),
            True,
        )
    yield from [
        Case("conv2d same", lambda x, w: F.conv2d(x, w, padding="same"), (x, kernel), True),
        Case("conv2d valid", lambda x, w: F.conv2d(x, w, padding="valid"), (x, kernel), True),
        Case("conv2d of 3 axes", lambda x, w: F.conv2d(x[0], w), (x, kernel), True),
        Case("conv1d", lambda x, w: F.conv1d(x, w, None, 2, 1, 2), (_scaled(4, 9), kernel[..., 0]), True),
        Case("conv1d same even", lambda x, w: F.conv1d(x, w, padding="same"), (_scaled(4, 9), kernel[:, :, 0]), True),
        Case("conv3d", lambda x, w: F.conv3d(x, w, None, 2, 1), (_scaled(4, 5, 5, 5), torch.randn(6, 4, 3, 3, 3)), True),
        Case("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w, None, 3, 1, 2), (_scaled(4, 9), up[..., 0]), True),
        Case("conv_transpose3d", lambda x, w: F.conv_transpose3d(x, w, None, 2, 1, 1),
             (_scaled(4, 3, 3, 3), torch.randn(4, 3, 3, 3, 3)), True),
        Case("fold", lambda x: F.fold(x, (4, 5), (2, 2)), (_scaled(8, 12),), True),
        Case("unfold", lambda x: F.unfold(x, (2, 3), 2, 1, 2), (x,)),
        Case("conv_tbc", lambda x, w: torch.conv_tbc(x, w, w.new_zeros(6), 1), (torch.randn(9, 2, 4), torch.randn(3, 4, 6)), True),
        Case("bilinear", lambda x, w: F.bilinear(x[0], x[1], w), (torch.randn(2, 5, 4), torch.randn(3, 4, 4)), True),
    ]  # fmt: skip


def interpolations() -> Iterator[Case]:
    x = {3: _scaled(2, 7), 4: _scaled(2, 5, 6), 5: _scaled(2, 4, 3, 5)}
    modes = {"nearest": (3, 4, 5), "nearest-exact": (3, 4, 5), "linear": (3,), "bilinear": (4,), "bicubic": (4,),
             "trilinear": (5,), "area": (3, 4)}  # fmt: skip
    for mode, ranks in modes.items():
        corners = (None,) if mode in ("nearest", "nearest-exact", "area") else (False, True)
        for rank, corner, how in product(
            ranks, corners, ("up", "down", "odd", "factor", "one", "scale 0.7")
        ):
            sizes = list(x[rank].shape[2:])
            options: dict[str, dict[str, Any]] = {
                "up": {"size": [2 * size for size in sizes]},
                "down": {"size": [max(size // 2, 1) for size in sizes]},
                "odd": {"size": [size + 3 - index for index, size in enumerate(sizes)]},
                "one": {"size": [1] * len(sizes)},
                "factor": {"scale_factor": 2.3},
                "scale 0.7": {"scale_factor": 0.7, "recompute_scale_factor": True},
            }
            given = options[how]
            yield Case(
                f"{mode} {rank} {how} {'' if corner is None else corner}",
                lambda x, m=mode, c=corner, g=given: F.interpolate(x, mode=m, align_corners=c, **g),
                (x[rank],),
                mode not in ("nearest", "nearest-exact"),
            )
    for mode in ("bilinear", "bicubic"):
        for corner in (False, True):
            yield Case(f"{mode} antialias {corner}",
                       lambda x, m=mode, c=corner: F.interpolate(x, (3, 4), mode=m, align_corners=c, antialias=True),
                       (x[4],), True)  # fmt: skip
    grid = torch.rand(6, 4, 5, 2) * 3 - 1.5
    for mode, border, corner in product(
        ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (False, True)
    ):
        yield Case(f"grid_sample {mode} {border} {corner}",
                   lambda x, g, m=mode, b=border, c=corner: F.grid_sample(x, g, m, b, c), (x[4], grid), True)  # fmt: skip
    yield Case(
        "affine_grid",
        lambda t: F.affine_grid(t, [6, 2, 4, 5], align_corners=False),
        (torch.randn(6, 2, 3),),
        True,
    )
    yield Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (_scaled(8, 3, 3),))
    yield Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (_scaled(2, 4, 6),))


def paddings() -> Iterator[Case]:
    x = _holed(1, 2, 5, 6)
    for value in (0.0, 1.5, -math.inf, math.nan, 1e38):
        yield Case(f"pad {value}", lambda x, v=value: F.pad(x, (1, 2, 0, 3), value=v), (x,))
    for mode in ("reflect", "replicate", "circular"):
        yield Case(f"pad {mode}", lambda x, m=mode: F.pad(x, (2, 1, 3, 0), mode=m), (x,))
        yield Case(f"pad {mode} 1d", lambda x, m=mode: F.pad(x[0], (2, 1), mode=m), (x,))
    yield from [
        Case("pad negative", lambda x: F.pad(x, (-1, 2, 1, -2)), (x,)),
        Case("pad cropping replicate", lambda x: F.pad(x, (-1, 2, 1, -2), mode="replicate"), (x,)),
        Case("pad channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (x,)),
        Case("border", _border, (x,)),
        Case("first column to zero", _column, (x,)),
        Case("a row from the input", _row, (x,)),
        Case("every other", _every_other, (x,)),
        Case("copy_ into a slice", _copied, (x,)),
        Case("fill_ in a slice", _filled, (x,)),
        Case("index_put", _put, (x,)),
        Case("zero_ of a slice", _zeroed, (x,)),
    ]


def _border(x: Tensor) -> Tensor:
    y = F.pad(x, [1] * 4)
    v = torch.arange(2.0, dtype=x.dtype).view(1, -1, 1, 1)
    y[:, :, 0:1], y[:, :, -1:], y[..., 0:1], y[..., -1:] = v, v, v, v
    return y


def _column(x: Tensor) -> Tensor:
    y = x + 1
    y[..., :1] = 0
    return y


def _row(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :, 0], y[:, :, -1] = x[:, :, 2], 7.5
    return y


def _every_other(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :, ::2], y[..., 1::3] = 3.0, x[..., ::3]
    return y


def _copied(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :, 1:3].copy_(x[:, :, 2:4])
    y[:, 1].copy_(x[:, 0])
    return y


def _filled(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :, 1:3].fill_(math.inf)
    return y


def _zeroed(x: Tensor) -> Tensor:
    y = x + 1
    y[0, 1, 2:].zero_()
    return y


def _put(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :, torch.tensor([0, 4])] = 1.0
    y[:, [0, 1], [1, 2]] = 2.0
    return y


def indexing() -> Iterator[Case]:
    x, n = ROWS, torch.tensor([[0, 2, -1], [1, 1, 5]])
    away = n.remainder(6)
    yield from [
        Case("gather", lambda x, i: torch.gather(x, 1, i), (x[-2:], away)),
        Case("index negative", lambda x, i: x[:, i], (x, n)),
        Case("index several", lambda x, i: x[i, i], (x, n)),
        Case("index apart", lambda x, i: x[None][:, i, 0], (x, n)),
        Case("index mask", lambda x, i: x[x > 1], (x, n)),
        Case("index bool rows", lambda x, i: x[torch.tensor([True, False] * (len(x) // 2))], (x, n)),
        Case("index_select", lambda x, i: x.index_select(1, i[0].abs()), (x, n)),
        Case("take", lambda x, i: torch.take(x, i), (x, n)),
        Case("take_along_dim", lambda x, i: torch.take_along_dim(x, i, 1), (x[-2:], away)),
        Case("embedding", lambda i, w: F.embedding(i, w), (away, x)),
        Case("embedding_bag", lambda i, w: F.embedding_bag(i, w, mode="mean"), (away, FINITE_ROWS), True),
        Case("scatter", lambda x, i: x.scatter(1, i, 5.0), (x[-2:], away)),
        Case("scatter src", lambda x, i: x.scatter(1, i[:, :1], x[:, 1:2]), (x[-2:], away)),
        Case("scatter_add", lambda x, i: x.scatter_add(1, i, x[:, :3]), (FINITE_ROWS[-2:], away)),
        *(Case(f"scatter_reduce {how} {own}",
               lambda x, i, h=how, o=own: x.scatter_reduce(1, i, x[:, :3] + 1, h, include_self=o), (FINITE_ROWS[8:10], away), True)
          for how in ("sum", "prod", "amax", "amin", "mean") for own in (True, False)),
        Case("index_add", lambda x, i: x.index_add(1, i[0].abs(), x[:, :3]), (FINITE_ROWS[8:10], away), True),
        Case("index_copy", lambda x, i: x.index_copy(1, i[0].abs(), x[:, :3]), (x, away)),
        Case("index_fill", lambda x, i: x.index_fill(1, i[0].abs(), 3.0), (x, away)),
        Case("index_put accumulate", lambda x, i: x.index_put((i[0].abs(),), x[:3], accumulate=True), (FINITE_ROWS[8:16], away), True),
        Case("masked_scatter", lambda x, i: x.masked_scatter(x > 1, x.flip(0)), (x, away)),
        Case("masked_select", lambda x, i: torch.masked_select(x, x < 0), (x, away)),
        Case("nonzero", lambda x, i: torch.nonzero(x), (x, away)),
        Case("one_hot", lambda x, i: F.one_hot(i, 6), (x, away)),
        Case("argwhere", lambda x, i: torch.argwhere(x > 0), (x, away)),
        Case("select_scatter", lambda x, i: torch.select_scatter(x, x[:, 0], 1, -1), (x, away)),
        Case("slice_scatter", lambda x, i: torch.slice_scatter(x, x[:, :2], 1, -3, -1), (x, away)),
        Case("slice_scatter step", lambda x, i: torch.slice_scatter(x, x[:, :2], 1, 1, 5, 2), (x, away)),
        Case("diagonal_scatter", lambda x, i: torch.diagonal_scatter(x[:6], x[6]), (x, away)),
        Case("slices", lambda x, i: x[-100:100, -2:], (x, away)),
        Case("negative slices", lambda x, i: x[:-1, -3:-1], (x, away)),
    ]  # fmt: skip


def products() -> Iterator[Case]:
    torch.manual_seed(4)
    a, b = _scaled(4, 5), torch.randn(6, 5, 4)
    square = torch.randn(3, 4, 4)
    spd = square @ square.mT + torch.eye(4)
    q, k = torch.randn(2, 4, 7, 8) * 4, torch.randn(2, 2, 5, 8) * 4
    mask, line = torch.randn(7, 5) > 0, torch.randn(4)
    mask[2] = False
    yield from [
        Case("matmul", lambda a, b: a @ b, (a, b), True),
        Case("bmm", torch.bmm, (a, b), True),
        Case("mv", lambda a, v: a[2] @ v, (a, torch.randn(5)), True),
        Case("dot", torch.dot, (line, line), True),
        Case("outer", torch.outer, (ALL, ALL)),
        Case("addmm", lambda a, b: torch.addmm(b[2, :4], a[2], b[2], beta=0.5, alpha=2), (a, b), True),
        Case("addmm beta 0", lambda a, b: torch.addmm(b[2, :4] * math.inf, a[2], b[2], beta=0), (a, b), True),
        Case("baddbmm", lambda a, b: torch.baddbmm(b[:, :4], a, b, beta=0.5, alpha=2), (a, b), True),
        Case("baddbmm beta 0", lambda a, b: torch.baddbmm(b[:, :4] * math.inf, a, b, beta=0), (a, b), True),
        Case("addbmm", lambda a, b: torch.addbmm(b[2, :4], a[2:3], b[2:3]), (a, b), True),
        Case("addmv", lambda a, v: torch.addmv(v[:4], a[2], v), (a, torch.randn(5)), True),
        Case("addr", lambda v: torch.addr(torch.ones(4, 4, dtype=v.dtype), v, v), (line,), True),
        Case("einsum", lambda a, b: torch.einsum("bij,bjk->bik", a, b), (a, b), True),
        Case("einsum diagonal", lambda a: torch.einsum("bii->bi", a), (square,)),
        Case("tensordot", lambda a, b: torch.tensordot(a, b, ([0, 2], [0, 1])), (a[2:4], b[2:4]), True),
        Case("kron", torch.kron, (square[0], square[1])),
        Case("cross", lambda x: torch.linalg.cross(x, x.flip(0)), (torch.randn(5, 3),), True),
        Case("det", torch.linalg.det, (square,), True),
        Case("inv", torch.linalg.inv, (spd,), True),
        Case("solve", lambda a: torch.linalg.solve(a, a[..., :1]), (spd,), True),
        Case("cholesky", torch.linalg.cholesky, (spd,), True),
        Case("logdet", torch.logdet, (spd,), True),
        Case("slogdet", lambda x: torch.linalg.slogdet(x)[1], (spd,), True),
        Case("matrix_norm", lambda x: torch.linalg.matrix_norm(x), (square,), True),
        Case("matrix_norm 1", lambda x: torch.linalg.matrix_norm(x, 1), (square,), True),
        Case("matrix_power", lambda x: torch.linalg.matrix_power(x, 3), (square,), True),
        Case("attention", F.scaled_dot_product_attention, (q[:, :2], k, k), True),
        Case("attention of large scores", F.scaled_dot_product_attention, (q[:, :2] * 100, k * 100, k), True),
        Case("attention causal", lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), (q[:, :2], k), True),
        Case("attention mask", lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m), (q[:, :2], k, mask), True),
        Case("attention float mask",
             lambda q, k, m: F.scaled_dot_product_attention(q, k, k, torch.zeros(7, 5, dtype=q.dtype).masked_fill(~m, -math.inf)),
             (q[:, :2], k, mask), True),
        Case("attention groups", lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), (q, k), True),
        Case("attention scale", lambda q, k: F.scaled_dot_product_attention(q, k, k, scale=0.3), (q[:, :2], k), True),
        Case("attention of 3 axes", lambda q, k: F.scaled_dot_product_attention(q[0, :2], k[0], k[0]), (q, k), True),
        Case("attention of 2 axes", lambda q, k: F.scaled_dot_product_attention(q[0, 0], k[0, 0], k[0, 0]), (q, k), True),
        Case("attention of 5 axes", lambda q, k: F.scaled_dot_product_attention(q[None, :, :2], k[None], k[None]), (q, k), True),
    ]  # fmt: skip


def movements() -> Iterator[Case]:
    x = torch.randn(3, 4, 5)
    yield from [
        Case("cat of nothing", lambda x: torch.cat([x[:, :0], x], 1), (x,)),
        Case("sum of nothing", lambda x: x[:, :0].sum(1), (x,)),
        Case("mean of nothing", lambda x: x[:, :0].mean(1), (x,)),
        Case("prod of nothing", lambda x: x[:, :0].prod(1), (x,)),
        Case("matmul of nothing", lambda x: x[:, :, :0] @ x[:, :, :0].mT, (x,)),
        Case("softmax of one", lambda x: x[:, :1].softmax(1), (x,)),
        Case("var of one, biased", lambda x: x[:, :1].var(1, correction=0), (x,)),
        Case("roll", lambda x: x.roll((1, -2), (0, 2)), (x,)),
        Case("roll flat", lambda x: x.roll(7), (x,)),
        Case("flip", lambda x: x.flip(0, 2), (x,)),
        Case("rot90", lambda x: x.rot90(1, (1, 2)), (x,)),
        Case("tril", lambda x: x.tril(-1), (x,)),
        Case("tril of infinities", lambda x: x.tril(), (torch.full((3, 3), math.inf),)),
        Case("triu of -inf", lambda x: x.triu(1), (torch.full((3, 3), -math.inf),)),
        Case("diagonal", lambda x: x.diagonal(1, 1, 2), (x,)),
        Case("diag_embed", lambda x: torch.diag_embed(x), (x,)),
        Case("trace", lambda x: x[0].trace(), (x,), True),
        Case("unfold axis", lambda x: x.unfold(2, 3, 2), (x,)),
        Case("repeat", lambda x: x.repeat(2, 1, 1, 3), (x,)),
        Case("repeat_interleave", lambda x: x.repeat_interleave(2, 1), (x,)),
        Case("tile", lambda x: x.tile(2), (x,)),
        Case("chunk", lambda x: torch.chunk(x, 3, 2), (x,)),
        Case("tensor_split", lambda x: torch.tensor_split(x, 3, 2), (x,)),
        Case("split sizes", lambda x: torch.split(x, [1, 4], 2), (x,)),
        Case("unbind", lambda x: x.unbind(1), (x,)),
        Case("meshgrid", lambda x: torch.meshgrid(x[0, 0], x[1, 0], indexing="ij"), (x,)),
        Case("cartesian_prod", lambda x: torch.cartesian_prod(x[0, 0], x[1, 0]), (x,)),
        Case("linspace", lambda x: torch.linspace(0, 1, 7, dtype=x.dtype) + x[0, 0, 0], (x,)),
        Case("arange", lambda x: torch.arange(0, 2, 0.3, dtype=x.dtype) + x[0, 0, 0], (x,)),
        Case("channel_shuffle", lambda x: torch.channel_shuffle(x[None], 3), (x,)),
        Case("column_stack", lambda x: torch.column_stack([x[0], x[1]]), (x,)),
        Case("block_diag", lambda x: torch.block_diag(x[0], x[1]), (x,)),
        Case("vander", lambda x: torch.vander(x[0, 0]), (x,)),
        Case("complex product", lambda x: torch.view_as_real(torch.polar(x, x) * torch.polar(x, x)), (x,), True),
        Case("rfft", lambda x: torch.view_as_real(torch.fft.rfft(x)), (x,), True),
        Case("irfft", lambda x: torch.fft.irfft(torch.fft.rfft(x), 5), (x,), True),
        Case("fft2", lambda x: torch.fft.fft2(x).abs(), (x,), True),
        Case("stft", lambda x: torch.stft(x[0], 4, 2, window=torch.hann_window(4).to(x), return_complex=True).abs(),
             (torch.randn(1, 2, 32),), True),
        Case("lstm-like gate", lambda x: torch.sigmoid(x) * torch.tanh(x), (ALL,)),
    ]  # fmt: skip
