"""fold-near-affine: norms that were trained away, and those that are none of these."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.graph import op_name
from normfold.ops.table import is_norm
from normfold.passes.fold_near_affine import FoldNearAffine
from normfold.report import PassReport
from normfold.rewrite import parse, run_pipeline
from normfold.targets import RuntimeSession
from normfold.testing import no_op
from tests.nets import Encoder, perturb
from tests.passes.judge import golden_pass

WHOLE = "canonicalize,fold-near-affine{{{0}}},fold-affine{{untie=true}},fold-mean{{untie=true}},restore,bake"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return y


class GPT(nn.Module):
    """Of GPT-2's shape, its head tied to the table."""

    def __init__(self, width: int = 32, depth: int = 3, words: int = 61, length: int = 8) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        y: Tensor = self.head(self.norm(self.blocks(x)))
        return y


def trained_away(net: nn.Module, eps: float = 1e12) -> nn.Module:
    """Its LayerNorms as such networks store them."""
    for module in perturb(net).modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
            module.weight.data *= eps**0.5
    return net.eval()


def _tokens(count: int = 2) -> Tensor:
    return torch.randint(0, 61, (count, 8))


def _report(reports: list[PassReport]) -> PassReport:
    (found,) = (item for item in reports if item.name == "fold-near-affine")
    return found


def _norms(graph: Graph) -> int:
    return sum(is_norm(node, "layer-norm", "rms-norm") for node in graph.nodes)


def _double(net: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = copy.deepcopy(net).double()(tokens)
    return y


def _ops(graph: Graph) -> set[str]:
    return {op_name(node) for node in graph.nodes}


def test_a_decoder_folds_whole() -> None:
    net, tokens = trained_away(GPT()), _tokens()
    graph = capture(net, (tokens,))
    after, reports = run_pipeline(graph, parse(WHOLE.format("variance=1e4")))
    (site, *_) = (report := _report(reports)).applied
    assert len(report.applied) == 7
    assert not report.declined
    assert site.detail == "within 2.5e-09 for variances from 0 to 1e+04"
    assert not _ops(after) & {"layer_norm", "mean", "sub", "mul"}
    wide = _double(net, tokens)
    torch.testing.assert_close(
        after.module(tokens).double(), wide, rtol=0, atol=2e-6 * float(wide.abs().max())
    )


def test_the_bound_holds_and_is_sharp() -> None:
    """|k P x - y| <= d |y| on 1,000 inputs with variances up to the stated one."""
    torch.manual_seed(0)
    norm, eps, most = nn.LayerNorm(24, eps=3.0, elementwise_affine=False).double(), 3.0, 0.5
    x = torch.randn(1000, 24, dtype=torch.float64)
    x = (x - x.mean(-1, True)) / x.std(-1, correction=0, keepdim=True)
    x = x * torch.linspace(0, most, 1000, dtype=torch.float64)[:, None].sqrt() + 5
    text = f"canonicalize,fold-near-affine{{variance={most} max-deviation=1}}"
    after, reports = run_pipeline(capture(norm, (x,)), parse(text))
    low, high = eps**0.5, (eps + most) ** 0.5
    bound = (high - low) / (high + low)
    assert f"within {bound:.2g} " in _report(reports).applied[0].detail
    ours, right = after.module(x), norm(x)
    error = ((ours - right).abs() / right.abs().clamp(min=1e-12)).amax(-1)[1:]  # the first is 0
    assert float(error.max()) <= bound * (1 + 1e-9)
    assert float(error.max()) >= bound * (1 - 1e-9)


@pytest.mark.parametrize("options", ["variance=1e4", "margin=16"])
def test_the_bounds_of_a_decoder_hold(options: str) -> None:
    """Of each of its norms, and so of its answers, on 1,000 inputs that nothing was measured on."""
    torch.manual_seed(0)
    net = trained_away(GPT()).double()
    graph = capture(net, (_tokens(),))
    graph.samples = [((_tokens(),), {}) for _ in range(20)]
    after, reports = run_pipeline(graph, parse(WHOLE.format(options)))
    said = {item.site: item.detail for item in _report(reports).applied}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    tokens = _tokens(1000)
    with torch.no_grad():
        right, ours = net(tokens), after.module(tokens)
    assert seen.keys() == said.keys()
    for name, (x, y) in seen.items():
        _, bound, _, _, _, low, _, high = said[name].split()
        norm = net.get_submodule(name)
        assert isinstance(norm, nn.LayerNorm)
        first, last = ((float(end) + norm.eps) ** 0.5 for end in (low, high))
        affine = 2 / (first + last) * (x - x.mean(-1, True)) * norm.weight
        error = (affine - (y - norm.bias)).norm(dim=-1) / (y - norm.bias).norm(dim=-1)
        assert float(error.max()) <= float(bound) * 1.05 + 1e-14, name  # printed with two digits
    assert float((ours - right).abs().max()) <= 1e-6 * float(right.abs().max())


def test_measured_variances() -> None:
    net = trained_away(GPT())
    graph = capture(net, (_tokens(),))
    graph.samples = [((_tokens(),), {}) for _ in range(3)]
    after, reports = run_pipeline(graph, parse(WHOLE.format("")))
    assert len(_report(reports).applied) == 7
    assert not _norms(after)
    spans = [item.detail.rpartition("from ")[2].split(" to ") for item in _report(reports).applied]
    assert all(0 < float(low) < float(high) < 1e4 for low, high in spans)


def test_behind_center_stream() -> None:
    """RMSNorms: what they read has no mean, and no op takes one off."""
    graph = capture(trained_away(GPT()), (_tokens(),))
    first, second = "canonicalize,center-stream{untie=true}", "fold-affine{untie=true},restore,bake"
    text = f"{first},fold-near-affine{{variance=1e4}},{second}"
    after, reports = run_pipeline(graph, parse(text))
    assert len(_report(reports).applied) == 7
    assert not _ops(after) & {"layer_norm", "rms_norm", "mean", "sub", "mul"}
    wide = _double(graph.module, *graph.args)
    error = (after.module(*graph.args).double() - wide).abs().max() / wide.abs().max()
    assert float(error) < 2e-6


@pytest.mark.parametrize(
    ("eps", "options", "code"),
    [
        (1e-5, "variance=10", "NF133"),
        (1e3, "variance=10", "NF133"),
        (1e12, "", "NF127"),
        (0.0, "variance=10", "NF133"),
    ],
)
def test_what_is_no_affine(eps: float, options: str, code: str) -> None:
    net = trained_away(GPT(), 1e12)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    after, reports = run_pipeline(
        capture(net, (_tokens(),)), parse(f"canonicalize,fold-near-affine{{{options}}}")
    )
    assert {item.code for item in _report(reports).declined} == {code}
    assert _norms(after) == 7


def test_options_out_of_bounds() -> None:
    with pytest.raises(UsageError, match="margin"):
        FoldNearAffine(margin=0.5)


def test_what_does_not_concern_it() -> None:
    no_op(FoldNearAffine(), nn.Sequential(nn.Linear(4, 6), nn.GELU()), (torch.randn(2, 4),))


def test_half_precision(tmp_path: Path) -> None:
    """float16 has neither eps nor gains; folded, it is as right as any network."""
    net, tokens = trained_away(GPT()), _tokens()
    with torch.no_grad():
        assert not copy.deepcopy(net).half()(tokens).isfinite().all()
    text = WHOLE.format("variance=1e4")
    normfold.convert(
        capture(net, (tokens,)), passes=text, precision="fp16", export="onnx", output=tmp_path
    )
    (file,) = tmp_path.glob("*.onnx")
    (ours,) = RuntimeSession(file, threads=1).run([tokens])
    right = _double(net, tokens)
    assert float((ours.double() - right).abs().max()) < 0.01 * float(right.abs().max())


def test_golden() -> None:
    torch.manual_seed(0)
    net = trained_away(Encoder())
    graph = capture(net, (torch.randn(2, 5, 8),))
    graph.samples = [(graph.args, {})]
    golden_pass("fold-near-affine/encoder", graph, "canonicalize")
