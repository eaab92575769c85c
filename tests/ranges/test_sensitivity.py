"""The harm of a layer: the symmetric divergence of the outputs with that layer alone rounded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normfold.ir import capture
from normfold.ranges.sensitivity import divergence, joint_harm, sensitivities
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb
from tests.ranges.nets import residual

X = torch.randn(16, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def rounded(weight: Tensor, bits: int) -> Tensor:
    steps = 2 ** (bits - 1) - 1
    scale = weight.abs().amax([1, 2, 3], keepdim=True) / steps
    found: Tensor = (weight / scale).round() * scale
    return found


def written_out(mine: Tensor, theirs: Tensor) -> float:
    p, q = theirs.double().softmax(-1), mine.double().softmax(-1)
    there, back = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    return float(((there + back) / 2).mean())


def test_divergence() -> None:
    mine, theirs = torch.randn(5, 7), torch.randn(5, 7)
    assert divergence(mine, theirs) == pytest.approx(written_out(mine, theirs))
    assert divergence(mine, mine) == 0
    there = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    back = F.kl_div(theirs.log_softmax(-1), mine.softmax(-1), reduction="batchmean")
    assert divergence(mine, theirs) == pytest.approx(float(there + back) / 2, rel=1e-5)


def test_one_layer_at_a_time() -> None:
    module = perturb(residual()).eval()
    layers = sensitivities(capture(module, (X,)), [(X,)], lambda layer: (8, 32))
    assert [layer.path for layer in layers] == ["stem.0", "first.0", "second.0", "head"]
    for layer in layers[:3]:
        other = copy.deepcopy(module)
        weight = other.get_parameter(f"{layer.path}.weight")
        weight.data = rounded(weight.data, 8)
        with torch.no_grad():
            wanted = written_out(other(X), module(X))
        assert layer.harm == {8: pytest.approx(wanted, rel=1e-3)}
        assert layer.weights == weight.numel()


def test_fewer_bits_do_more_harm() -> None:
    graph = capture(perturb(residual()), (X,))
    layers = sensitivities(graph, [(X,)], lambda layer: (2, 4, 8))
    for layer in layers:
        assert layer.harm[2] > layer.harm[4] > layer.harm[8] > 0
    lowered, _ = run_pipeline(graph, parse("quantize-weights{bits=4 rounding=squant}"))
    (both, changed), (same, none) = joint_harm(graph, [lowered, graph], [(X,)])
    assert both > max(layer.harm[8] for layer in layers)
    with torch.no_grad():
        mine, theirs = lowered.module(X), graph.module(X)
    answers = (mine.argmax(-1) != theirs.argmax(-1)).double().mean()
    assert changed == pytest.approx(100 * float(answers))
    assert (same, none) == (0.0, 0.0)
