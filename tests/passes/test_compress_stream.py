"""compress-stream: golden, equal in both bases, declines, idempotent, no-op; the bases themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

import normfold
from normfold.ir import Graph, capture
from normfold.ir.graph import shape_of
from normfold.ir.text import graph_text
from normfold.job.presets import preset
from normfold.rewrite import parse, run_pipeline
from normfold.rewrite.basis import Basis
from tests import torchvision_shim
from tests.nets import perturb
from tests.passes.centred import network
from tests.passes.compressed import (
    NETS,
    SETUP,
    TOKENS,
    D,
    across,
    character_gpt,
    compress,
    compresses,
    compressing,
    linears,
    norm_widths,
    patches,
    pre_norm,
)
from tests.passes.judge import golden, golden_pass, judge, right, untouched

BASES = ["orthonormal", "drop-last"]
# where only the basis differs in what is written, not in what is done, the second one runs in the zoo
ONE_BASIS = ["orthonormal", pytest.param("drop-last", marks=pytest.mark.slow)]
AXES = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


# -- the bases --------------------------------------------------------------------------------------


def run(target: Any, *args: Any) -> Any:
    """Emits an op by running it."""
    return target(*args)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("width", [2, 3, 7, 768])
def test_basis(name: Any, width: int) -> None:
    basis: Any = Basis(name, width)
    x = 3 * torch.randn(4, width, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    y = basis.narrow(run, x, 1)
    assert y.shape == (4, width - 1)
    torch.testing.assert_close(basis.widen(run, y, 1, 1.0), x)
    weight = torch.randn(5, width, dtype=torch.float64)
    torch.testing.assert_close(y @ basis.read(run, weight, 1, 2.5).T, 2.5 * x @ weight.T)
    result = basis.norm(run, y, 0.3, torch.float64)
    wide = F.rms_norm(x, [width], None, 0.3)
    torch.testing.assert_close(basis.widen(run, result, 1, basis.factor), wide)
    if name == "orthonormal":
        torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
        one = torch.eye(width - 1, dtype=torch.float64)
        columns = basis.widen(run, one, 1, 1.0)
        torch.testing.assert_close(columns @ columns.T, one)


def test_drop_last_norm_in_half_precision_does_not_overflow() -> None:
    x = torch.tensor([[600.0, -900.0, 300.0]], dtype=torch.float16)
    basis: Any = Basis("drop-last", 3)
    result = basis.norm(run, basis.narrow(run, x, 1), 1e-5, torch.float16)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result, F.rms_norm(x.float(), [3])[:, :2].half())


# -- golden -----------------------------------------------------------------------------------------


def small() -> Graph:
    net = pre_norm(lambda m, x: m.head(m.norm((y := m.stem(x)) + m.a(y))))
    return capture(net, (torch.randn(TOKENS),))


def test_golden() -> None:
    golden_pass("compress-stream/pre-norm", small(), SETUP)


def test_golden_drop_last() -> None:
    graph, _ = run_pipeline(small(), parse(f"{SETUP},compress-stream{{basis=drop-last}}"))
    golden("compress-stream/drop-last.after", graph_text(graph))


# -- equal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "basis"),
    [
        # the bases differ in how a stream is stored, not in what it passes: each net with one, and in the zoo both
        pytest.param(
            name, basis, marks=[pytest.mark.slow] if (place % 2) == (basis == "drop-last") else []
        )
        for place, name in enumerate(NETS)
        for basis in BASES
    ],
)
def test_equal(name: str, basis: str) -> None:
    wiring, modules, shape, norms = NETS[name]
    outcome = compress(pre_norm(wiring, **modules), torch.randn(shape), basis=basis)
    compresses(outcome, norms)


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_vit(basis: str) -> None:
    torchvision_shim.install()
    import timm

    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=48, num_classes=5, init_values=0.1
    )
    outcome = compress(perturb(net), torch.randn(2, 3, 32, 32), basis=basis)
    compresses(outcome, 7)


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_gpt2_with_the_tied_head(basis: str) -> None:
    torchvision_shim.install()
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 24, "vocab_size": 50, "n_positions": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    net = perturb(GPT2LMHeadModel(GPT2Config(**sizes, **ends, use_cache=False)))
    graph = capture(net, (), {"input_ids": torch.randint(0, 50, (2, 7))})
    text = f"{SETUP},compress-stream{{basis={basis}}},restore,bake"
    after, report = normfold.run(graph, text, verify="each")
    assert report.ok
    tables = [node for node in after.nodes if shape_of_constant(node) == (50, 24)]
    assert len(tables) == 1  # the embedding is stored once
    assert sorted(norm_widths(after)) == [23] * 6 + [24]


@pytest.mark.slow
@pytest.mark.parametrize("basis", ONE_BASIS)
def test_character_gpt_at_any_size(basis: str) -> None:
    net = perturb(character_gpt())
    ids = torch.randint(0, 96, (2, 9))
    outcome = compress(net, ids, basis=basis, dynamic={"ids": AXES})
    compresses(outcome, 6, left=1, borders=2)
    for shape in ((1, 3), (5, 31)):
        other = torch.randint(0, 96, shape)
        with torch.no_grad():
            expected, got = net(other), outcome.baked.module(other)
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


@pytest.mark.slow
@pytest.mark.parametrize("basis", ONE_BASIS)
def test_corrected_head(basis: str) -> None:
    """The table is centred, the head reads it as it is: the embedding may not narrow it."""
    graph = capture(perturb(character_gpt()), (torch.randint(0, 96, (2, 9)),))
    text = f"{SETUP}{{correct-heads=true}},compress-stream{{basis={basis}}},restore"
    outcome = judge(graph, text)
    compresses(outcome, 6, left=1, borders=2)
    tables = [node for node in outcome.baked.nodes if shape_of_constant(node) == (96, 24)]
    assert len(tables) == 1


@pytest.mark.parametrize("basis", ONE_BASIS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(basis: str, dtype: torch.dtype) -> None:
    net = pre_norm(lambda m, x: m.head(m.norm((y := m.stem(x)) + m.a(y)))).to(dtype)
    right(compress(net, torch.randn(TOKENS, dtype=dtype), basis=basis))


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_gradients_are_those_of_the_original(basis: str) -> None:
    net = perturb(character_gpt()).double()
    ids = torch.randint(0, 96, (2, 9))
    outcome = compress(net, ids, basis=basis)
    parameters = list(net.parameters())
    target = torch.randn(2, 9, 96, dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad((outcome.after.module(ids) * target).sum(), parameters),
        torch.autograd.grad((net(ids) * target).sum(), parameters),
        strict=True,
    )
    for got, expected in pairs:
        assert float((got - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("wrong", ["gamma", "beta", "factor"])
def test_a_wrong_basis_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width = D
    value = getattr(Basis("orthonormal", width), wrong) * 1.01
    monkeypatch.setattr(Basis, wrong, property(lambda self: value))
    outcome = compress(
        pre_norm(lambda m, x: m.head(m.norm((y := m.stem(x)) + m.a(y)))), torch.randn(TOKENS)
    )
    assert max(outcome.algebra) > 1e-4


def shape_of_constant(node: fx.Node) -> tuple[int, ...]:
    return shape_of(node) if node.op == "get_attr" else ()


# -- borders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_borders(basis: str) -> None:
    """GELU in front: center-stream's op, then ours; a norm that is also an output: all features come back."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = F.gelu(m.stem(x))
        y = y + m.a(y)
        y = y + m.b(y)
        z = m.norm(y)
        return m.head(z), z * 2

    net = pre_norm(wiring, norm=nn.LayerNorm(D, elementwise_affine=False))
    compresses(compress(net, torch.randn(TOKENS), basis=basis), 3, borders=2)


def test_a_norm_that_only_wide_readers_read_stays_wide() -> None:
    net = pre_norm(
        lambda m, x: m.norm((y := (z := m.stem(x)) + m.a(z)) + m.b(y)), head=nn.Identity()
    )
    outcome = compress(net, torch.randn(TOKENS))
    compresses(outcome, 2, left=1, borders=1)
    (declined,) = compressing(outcome).declined
    assert (declined.site, declined.code) == ("norm", "NF122")


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_a_norm_on_the_branch(basis: str) -> None:
    """Swin-V2's place of the norm: its result is a summand of the stream, in another scale."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = m.stem(x)
        y = y + m.res(m.out(F.gelu(m.up(y))))
        y = y + m.a(y)
        y = y + m.b(y)
        return m.head(m.norm(y))

    net = pre_norm(wiring, **linears("up", "out"), res=nn.LayerNorm(D, elementwise_affine=False))
    right(compress(net, torch.randn(TOKENS), basis=basis))


# -- declines ---------------------------------------------------------------------------------------


def test_one_norm_behind_an_op_is_no_gain() -> None:
    net = pre_norm(lambda m, x: m.head(m.norm(m.stem(x))), stem=nn.Linear(D, D))
    compresses(compress(net, torch.randn(TOKENS)), 1)
    graph, _ = run_pipeline(
        capture(pre_norm(lambda m, x: m.head(m.norm(F.gelu(m.stem(x))))), (torch.randn(TOKENS),)),
        parse(SETUP.replace("center-stream", "center-stream{op-cost=0.1}")),
    )
    _, (report,) = run_pipeline(graph, parse("compress-stream"))
    assert [(d.site, d.code) for d in report.declined] == [("norm", "NF122")]
    assert "1 norms would take 1 explicit ops" in report.declined[0].detail


def test_heads_of_one_projection_are_grouped() -> None:
    net = pre_norm(
        lambda m, x: m.head(m.norm(m.stem(x).view(*x.shape[:2], 2, 3))),
        norm=nn.LayerNorm(3),
        head=nn.Linear(3, 3),
    )
    _, reports = run_pipeline(
        capture(net, (torch.randn(TOKENS),)), parse(f"{SETUP},compress-stream")
    )
    assert [a.site for a in reports[2].applied] == ["norm"]
    assert not reports[3].modified
    (declined,) = reports[3].declined
    assert (declined.site, declined.code) == ("norm", "NF125")
    assert declined.node.startswith("linear")


def test_a_norm_over_two_axes_is_grouped() -> None:
    net = pre_norm(
        lambda m, x: m.head(m.norm(m.stem(x).view(*x.shape[:2], 2, 3)).flatten(2)),
        norm=nn.LayerNorm((2, 3), elementwise_affine=False),
    )
    outcome = right(compress(net, torch.randn(TOKENS)))
    assert [(d.site, d.code) for d in compressing(outcome).declined] == [("norm", "NF125")]


def test_a_shared_weight_is_not_copied() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        y = m.stem(x)
        y = y + m.a(y)
        y = y + m.b(y)
        return m.head(m.norm(y)), m.head(x)

    net = pre_norm(wiring, norm=nn.LayerNorm(D, elementwise_affine=False))
    outcome = compress(net, torch.randn(TOKENS))
    compresses(outcome, 2, left=1, borders=1)
    assert [(d.site, d.code) for d in compressing(outcome).declined] == [("norm", "NF102")]


def test_a_weight_that_all_share_is_edited_once() -> None:
    """One block applied twice: its weights stay shared."""

    def wiring(m: Any, x: Tensor) -> Any:
        y = m.stem(x)
        y = y + m.a(y)
        y = y + m.a(y)
        return m.head(m.norm(y))

    outcome = compress(pre_norm(wiring), torch.randn(TOKENS))
    compresses(outcome, 3)
    downs = [
        node for node in outcome.baked.nodes if node.op == "get_attr" and shape_of(node) == (5, 8)
    ]
    assert len(downs) == 1


# -- warnings, idempotent, no-op ----------------------------------------------------------------------


def test_alignment_is_warned_about_once_per_stream() -> None:
    outcome = compress(pre_norm(across, **NETS["across"][1]), torch.randn(TOKENS))
    warnings = compressing(outcome).warnings
    assert [warning.code for warning in warnings] == ["NF202"] * 2
    assert "width 5 is odd" in warnings[0].text


def test_an_aligned_width_is_not_warned_about() -> None:
    net = network(
        lambda m, x: m.head(m.norm(m.stem(x))),
        stem=nn.Linear(4, 9),
        norm=nn.LayerNorm(9),
        head=nn.Linear(9, 3),
    )
    outcome = compress(net, torch.randn(2, 5, 4))
    assert not compressing(outcome).warnings
    assert norm_widths(outcome.baked) == [8]


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_idempotent(basis: str) -> None:
    step = f"compress-stream{{basis={basis}}}"
    untouched(small(), f"{SETUP},{step},{step}")
    ids = torch.randint(0, 96, (2, 9))
    untouched(capture(character_gpt(), (ids,)), f"{SETUP},{step},{step}")


def test_no_op() -> None:
    untouched(small(), SETUP.replace("center-stream", "compress-stream"))
    llama = network(
        lambda m, x: m.head(m.norm(m.stem(x))),
        stem=nn.Linear(D, D),
        norm=nn.RMSNorm(D),
        head=nn.Linear(D, 3),
    )
    untouched(capture(llama, (torch.randn(TOKENS),)), f"{SETUP},compress-stream")


# -- the preset --------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ONE_BASIS)
def test_convert_runs_in_onnxruntime_at_any_batch(basis: str, tmp_path: Path) -> None:
    import onnxruntime

    net = pre_norm(patches, **NETS["patches"][1])
    text = preset("crmsnorm")
    result = normfold.convert(
        net,
        passes=text.replace("compress-stream", f"compress-stream{{basis={basis}}}"),
        output=tmp_path,
        inputs=(torch.randn(2, 3, 4, 4),),
    )
    assert result.report.ok
    assert {check.kind for check in result.report.all_checks()} >= {"algebra", "onnxruntime-all"}
    assert "NF202" in result.report.to_json()
    assert result.report.counts()["layer-norm"] == {"converted": 3}
    (path,) = tmp_path.glob("*.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        x = torch.randn(batch, 3, 4, 4)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-4, atol=1e-4)
