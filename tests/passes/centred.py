"""Networks with LayerNorms, the pass center-stream on them, and what became of their norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.ir.graph import op_name
from tests.nets import Compose, perturb
from tests.passes.judge import Outcome, judge, right

D = 6  # features; tokens are 5, so that no axis is mistaken for another
TOKENS = (2, 5, D)
ALGEBRA = 1e-12
SETUP = "canonicalize,fold-affine{split-norms=true}"


class Branch(nn.Module):
    """The branch of a pre-LN block: norm, two linears with a GELU between."""

    def __init__(self, width: int = D, bias: bool = True, **norm: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, **norm)
        self.up, self.down = nn.Linear(width, 8, bias=bias), nn.Linear(8, width, bias=bias)

    def forward(self, x: Tensor) -> Any:
        return self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """A pre-LN attention branch of two heads with one fused projection, and norms of its heads if asked."""

    def __init__(self, width: int = D, qk_norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.width, self.qk_norm = nn.LayerNorm(width), width, qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        if qk_norm:
            self.q_norm, self.k_norm = nn.LayerNorm(width // 2), nn.LayerNorm(width // 2)

    def forward(self, x: Tensor) -> Any:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, self.width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, self.width))


class Held(nn.Module):
    """One parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(shape))

    def forward(self) -> Tensor:
        return self.value


class Conv1D(nn.Module):
    """Hugging Face GPT-2's linear: a transposed weight, and addmm."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(wide, narrow)),
            nn.Parameter(torch.randn(narrow)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class LayerNorm2d(nn.Module):
    """Channels-first LayerNorm, by hand (ConvNeXt's first release, SAM)."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def network(wiring: Callable[..., object], **modules: nn.Module) -> nn.Module:
    """The modules under ``wiring``, no parameter of zero mean, norms' gains of both signs."""
    net = perturb(Compose(wiring, **modules))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() != 1:
                parameter.add_(0.2 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def pre_norm(wiring: Callable[..., object], **modules: nn.Module) -> nn.Module:
    """A pre-LN network: ``stem`` in front, ``norm`` and ``head`` behind, ``a`` and ``b`` branches between."""
    given: dict[str, nn.Module] = {
        "stem": nn.Linear(D, D),
        "a": Branch(),
        "b": Branch(),
        "norm": nn.LayerNorm(D),
        "head": nn.Linear(D, 3),
    }
    return network(wiring, **{**given, **modules})


def center(
    module: nn.Module, *inputs: Tensor, options: str = "", dynamic: Any = "batch"
) -> Outcome:
    """The preset ``rmsnorm`` with ``options`` for center-stream, judged on ``inputs``."""
    step = f"center-stream{{{options}}}" if options else "center-stream"
    graph = capture(module, inputs, dynamic=dynamic)
    return judge(graph, f"{SETUP},{step},restore")


def centring_ops(outcome: Outcome) -> list[fx.Node]:
    """Explicit ops x - mean(x) that the pass added, in graph order."""
    return [
        node
        for node in outcome.baked.nodes
        if op_name(node) == "sub"
        and isinstance(node.args[1], fx.Node)
        and op_name(node.args[1]) == "mean"
        and node.args[1].args[0] is node.args[0]
    ]


def became(outcome: Outcome) -> tuple[int, int, int]:
    """(RMSNorms, LayerNorms, centring ops) of the result."""
    count = Counter(outcome.ops())
    return count["rms_norm"], count["layer_norm"], len(centring_ops(outcome))


def converts(outcome: Outcome, rms: int, layer: int = 0, ops: int = 0) -> Outcome:
    """Assert what became of the norms, that all outputs are right, and that each norm has its outcome."""
    right(outcome)
    assert max(outcome.algebra) <= ALGEBRA, outcome.algebra
    reasons = [(d.site, d.code, d.node, d.detail) for d in centring(outcome).declined]
    assert became(outcome) == (rms, layer, ops), (outcome.ops(), reasons)
    told = {d.site for d in centring(outcome).declined}
    told |= {a.site for a in centring(outcome).applied if a.site in outcome.after.sites}
    norms = {
        path
        for path, site in outcome.after.sites.items()
        if site.kind in ("layer-norm", "group-norm")
    }
    assert told >= norms, f"no word on {norms - told}"
    return outcome


def centring(outcome: Outcome) -> Any:
    """The report of center-stream."""
    return next(report for report in outcome.reports if report.spec.startswith("center-stream"))


def refuses(outcome: Outcome, *codes: str) -> list[Any]:
    """Assert that nothing was converted, for exactly these reasons; the declines."""
    right(outcome)
    declined = centring(outcome).declined
    assert not centring(outcome).applied
    assert "rms_norm" not in outcome.ops()
    assert {d.code for d in declined} == set(codes), [(d.site, d.code, d.node) for d in declined]
    assert all(d.line and d.node and d.hint for d in declined)
    return list(declined)
