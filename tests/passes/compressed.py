"""Networks for compress-stream, the pass on them, and what became of their norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.gpt import GPT
from normfold.ir import Graph, capture
from normfold.ir.graph import shape_of
from normfold.ir.sites import norm_sites
from normfold.report import PassReport
from tests.passes.centred import Attention, Branch, Conv1D, Held, network
from tests.passes.judge import Outcome, judge, right

D = 6  # features; tokens are 5, so that no axis is mistaken for another
TOKENS = (2, 5, D)
ALGEBRA = 1e-12
SETUP = "canonicalize,fold-affine{split-norms=true},center-stream"


def compress(
    module: nn.Module, *inputs: Tensor, basis: str = "orthonormal", dynamic: Any = "batch"
) -> Outcome:
    """The preset ``crmsnorm`` in a basis, judged on ``inputs``."""
    graph = capture(module, inputs, dynamic=dynamic)
    return judge(graph, f"{SETUP},compress-stream{{basis={basis}}},restore")


def compressing(outcome: Outcome) -> PassReport:
    return next(report for report in outcome.reports if report.name == "compress-stream")


def ops(outcome: Outcome) -> int:
    """Explicit ops that the pass added."""
    return sum(edit.endswith("by an op") for edit in compressing(outcome).edits)


def norm_widths(graph: Graph) -> list[int]:
    """Width of every converted norm's result."""
    found = [node for node in graph.nodes if norm_sites(node)]
    return [shape_of(node)[-1] for node in found]


def compresses(outcome: Outcome, norms: int, left: int = 0, borders: int = 0) -> None:
    """Assert how many norms were compressed, how many stay RMSNorms, at how many explicit ops."""
    right(outcome)
    assert max(outcome.algebra) <= ALGEBRA, outcome.algebra
    report = compressing(outcome)
    why = [(d.site, d.code, d.node, d.detail) for d in report.declined], report.edits
    assert (len(report.applied), len(report.declined), ops(outcome)) == (norms, left, borders), why
    for graph in (outcome.after, outcome.baked):
        even = sum(width % 2 == 0 for width in norm_widths(graph))
        assert (len(norm_widths(graph)), even) == (norms + left, left)


def character_gpt() -> nn.Module:
    """Tied head, fused projections, learned positions."""
    return GPT(96, 40, width=24, depth=3, heads=2).eval()


def pre_norm(wiring: Any, **modules: nn.Module) -> nn.Module:
    """``stem`` in front, ``norm`` and ``head`` behind, branches ``a`` and ``b`` between."""
    given: dict[str, nn.Module] = {
        "stem": nn.Linear(D, D),
        "a": Branch(),
        "b": Branch(),
        "norm": nn.LayerNorm(D),
        "head": nn.Linear(D, 3),
    }
    return network(wiring, **{**given, **modules})


def patches(m: Any, x: Tensor) -> Any:
    """A convolutional patch embedding, a class token for each image, positions."""
    y = m.stem(x).flatten(2).transpose(1, 2)
    y = torch.cat([m.token().expand(x.shape[0], -1, -1), y], 1) + m.place()
    y = y + m.a(y)
    y = y + m.b(y)
    return m.head(m.norm(y)[:, 0])


def parallel(m: Any, x: Tensor) -> Any:
    """One norm, several readers (GPT-J); another one read through a mean over tokens."""
    y = m.stem(x)
    z = m.norm(y)
    y = y + m.out(m.q(z) * torch.sigmoid(m.k(z))) + m.down(F.gelu(m.up(z)))
    return m.head(m.last(y).mean(1)), m.other(m.last(y)[:, :2])


def windows(m: Any, x: Tensor) -> Any:
    """Shifted windows of two tokens, cut out behind the norm and put together in front of the sum."""
    y = m.stem(x)
    batch, tokens, width = y.shape
    z = torch.roll(m.norm(y), 1, 1).view(batch, tokens // 2, 2, width)
    z = m.mix(z).reshape(batch, tokens, width)
    y = y + torch.roll(z, -1, 1)
    return m.head(m.last(F.pad(y, (0, 0, 1, 1))))


def addmm(m: Any, x: Tensor) -> Any:
    y = m.stem(x)
    y = y + m.down(F.gelu(m.up(m.norm(y))))
    return m.head(m.last(y))


def across(m: Any, x: Tensor) -> Any:
    """Two streams; a linear op reads one and writes the other."""
    y, z = m.stem(x), m.stem2(x * x)
    y = y + m.a(y)
    z = z + m.cross(m.norm(y))
    z = z + m.b(z)
    return m.head(m.last(z)), m.head2(m.norm2(y))


def experts(m: Any, x: Tensor) -> Any:
    """A product with one matrix per expert reads the norm, another one writes the stream."""
    y = m.stem(x)
    z = m.norm(y).flatten(0, 1).expand(2, -1, -1)
    z = torch.bmm(F.gelu(torch.bmm(z, m.up())), m.down()).sum(0)
    y = y + z.view(y.shape)
    return m.head(m.last(y))


def image(m: Any, x: Tensor) -> Any:
    """Features along axis 1, norms over the last one, a convolution that reads the norm."""
    y = m.stem(x)
    y = y + m.mix(m.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    return m.head(m.last(y.permute(0, 2, 3, 1)))


def pieces(m: Any, x: Tensor) -> Any:
    """The stream cut along its tokens, put together in another order, indexed at run time, stacked."""
    y = m.stem(x)
    first, rest = (y + m.a(y)).split([1, 4], 1)
    y = torch.cat([rest.flip(1), first * 0.5], 1)
    order = x[0, :, 0].argsort()
    y = torch.stack([y, y[:, order]], 1).transpose(1, 2)
    y = y.squeeze(0).contiguous() + m.b(y)
    return m.head(m.norm(y)[:, 1:].mean(2))


def linears(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(D, D) for name in names}


NETS: dict[str, tuple[Any, dict[str, nn.Module], tuple[int, ...], int]] = {
    "patches": (
        patches,
        {"stem": nn.Conv2d(3, D, 2, stride=2), "token": Held(1, 1, D), "place": Held(1, 5, D)},
        (2, 3, 4, 4),
        3,
    ),
    "parallel": (
        parallel,
        {
            **linears("q", "k", "out", "other"),
            "up": nn.Linear(D, 8),
            "down": nn.Linear(8, D),
            "last": nn.LayerNorm(D),
        },
        TOKENS,
        3,
    ),
    "pieces": (pieces, {}, TOKENS, 3),
    "windows": (windows, {**linears("mix"), "last": nn.LayerNorm(D)}, (2, 4, D), 2),
    "addmm": (
        addmm,
        {"up": Conv1D(D, 8), "down": Conv1D(8, D), "last": nn.LayerNorm(D)},
        TOKENS,
        2,
    ),
    "attention": (
        lambda m, x: m.head(m.norm((y := m.stem(x)) + m.a(y))),
        {"a": Attention()},
        TOKENS,
        2,
    ),
    "across": (
        across,
        {
            **linears("stem2", "cross", "head2"),
            "last": nn.LayerNorm(D),
            "norm2": nn.LayerNorm(D),
        },
        TOKENS,
        5,
    ),
    "experts": (
        experts,
        {
            "up": Held(2, D, 8),
            "down": Held(2, 8, D),
            "norm": nn.LayerNorm(D, elementwise_affine=False),
            "last": nn.LayerNorm(D),
        },
        TOKENS,
        2,
    ),
    "image": (
        image,
        {
            "stem": nn.Conv2d(3, D, 3, padding=1),
            "mix": nn.Conv2d(D, D, 1),
            "last": nn.LayerNorm(D),
        },
        (2, 3, 4, 5),
        2,
    ),
}
