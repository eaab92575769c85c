"""Inputs that are synthesised: nearer to the statistics than noise, within bounds, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.job import Quantize
from normfold.job.presets import preset
from normfold.ranges.synthesis import (
    Bounds,
    Matching,
    Patches,
    PerImage,
    Tap,
    image_shapes,
    synthesise,
)
from normfold.rewrite import parse, run_pipeline
from tests.nets import Compose, perturb
from tests.ranges.nets import Attention

QUICK = Quantize(images=8, synthesis_steps=30)


def network() -> Graph:
    torch.manual_seed(0)
    module = perturb(
        Compose(
            lambda m, x: m.head(F.relu(m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))).mean((2, 3))),
            conv1=nn.Conv2d(3, 8, 3),
            bn1=nn.BatchNorm2d(8),
            conv2=nn.Conv2d(8, 8, 3),
            bn2=nn.BatchNorm2d(8),
            head=nn.Linear(8, 4),
        )
    )
    graph = capture(module, (torch.randn(2, 3, 12, 12),))
    return run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))[0]


def test_the_loss_falls() -> None:
    graph = network()
    found = synthesise(graph, Matching(graph), QUICK)
    assert found.loss < 0.7 * found.noise
    assert found.inputs[0].shape == (8, 3, 12, 12)


def test_the_loss_is_what_it_says() -> None:
    """Against the formula, written out."""
    graph, x = network(), torch.randn(8, 3, 12, 12)
    objective = Matching(graph)
    values = Tap(graph, objective.nodes)([x])
    terms = []
    for node, target in objective.targets.items():
        y = values[node].double()
        m, s = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0).sqrt()
        g = target.std.clamp_min(1e-3)
        terms.append((((m - target.mean) / g) ** 2 + ((s - target.std) / g) ** 2).mean())
    assert len(terms) == 2
    assert float(objective.loss([x], values)) == pytest.approx(float(sum(terms) / 2), rel=1e-4)


def test_zeroqs_loss_is_what_it_says() -> None:
    graph, x = network(), torch.randn(4, 3, 12, 12)
    objective = PerImage(graph)
    values = Tap(graph, objective.nodes)([x])
    total = 0.0
    pairs = [(x, torch.zeros(3), torch.ones(3))]
    pairs += [(values[node], at.mean, at.std) for node, at in objective.targets.items()]
    for y, mean, std in pairs:
        for image in y.double():
            m, s = image.mean((1, 2)), (image.var((1, 2)) + 1e-6).sqrt()
            total += float(((m - mean) ** 2 + (s - std) ** 2).sum()) / len(y)
    assert float(objective.loss([x], values)) == pytest.approx(total, rel=1e-4)


def test_pixels_stay_within_bounds() -> None:
    graph = network()
    bounds = Bounds(
        torch.tensor([[[-0.5]], [[-0.2]], [[0.0]]]), torch.tensor([[[0.5]], [[0.1]], [[2.0]]])
    )
    x = synthesise(
        graph,
        Matching(graph),
        Quantize(images=4, synthesis_steps=8, crop=4, blur=1.0),
        bounds=bounds,
    ).inputs[0]
    assert bool((x >= bounds.low - 1e-6).all())
    assert bool((x <= bounds.high + 1e-6).all())
    assert x.shape == (4, 3, 12, 12)


def test_the_seed_decides() -> None:
    graph, options = network(), Quantize(images=4, synthesis_steps=4, crop=2)
    one, same, other = (
        synthesise(graph, Matching(graph), options, seed).inputs[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_network_is_not_changed() -> None:
    graph = network()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    synthesise(graph, Matching(graph), Quantize(images=2, synthesis_steps=3))
    assert all(
        torch.equal(before[name], tensor) for name, tensor in graph.module.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in graph.module.parameters())


def test_patches_become_different() -> None:
    torch.manual_seed(0)
    graph = capture(perturb(Attention()), (torch.randn(2, 3, 16, 16),))
    assert not Matching(graph).nodes
    objective = Patches(graph)
    assert len(objective.nodes) == 1
    found = synthesise(graph, objective, Quantize(images=4, synthesis_steps=30))
    assert found.loss < found.noise


def test_nothing_to_go_on() -> None:
    module = Compose(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 4, 1))
    graph = capture(module.eval(), (torch.randn(2, 3, 5, 5),))
    with pytest.raises(UsageError, match="no tensor with known statistics"):
        synthesise(graph, Matching(graph), QUICK)


def test_tokens_are_not_images() -> None:
    module = Compose(lambda m, x: m.table(x), table=nn.Embedding(5, 4))
    graph = capture(module.eval(), (torch.randint(0, 5, (2, 3)),))
    with pytest.raises(UsageError, match="not a batch of images"):
        image_shapes(graph, 8)


@pytest.mark.parametrize("shape", [(2, 32), (2, 3, 32), (2, 3, 4, 8, 8)])
def test_one_signal_of_any_rank_is_synthesised(shape: tuple[int, ...]) -> None:
    """Sounds and volumes: they are neither mirrored nor cropped."""
    torch.manual_seed(0)
    kinds: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
        2: (nn.Linear, nn.BatchNorm1d),
        3: (nn.Conv1d, nn.BatchNorm1d),
        5: (nn.Conv3d, nn.BatchNorm3d),
    }
    layer, norm = kinds[len(shape)]
    first = layer(shape[1], 6) if len(shape) == 2 else layer(shape[1], 6, 3)
    module = perturb(nn.Sequential(first, norm(6), nn.ReLU()))
    graph, _ = normfold.run(capture(module, (torch.randn(shape),)), preset("folded"), verify="off")
    options = Quantize(images=32, synthesis_steps=30, crop=4)
    found = synthesise(graph, Matching(graph), options)
    assert found.inputs[0].shape == (32, *shape[1:])
    assert found.loss < 0.5 * found.noise


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 192)])
def test_sounds_are_made_smooth(shape: tuple[int, ...]) -> None:
    """Frames (N,C,T) and samples (N,T), from attention alone."""
    module = Compose(lambda m, x: m.net(x.reshape(x.shape[0], 3, 8, 8)), net=Attention())
    graph = capture(module.eval(), (torch.randn(shape),))
    found = synthesise(graph, Patches(graph), QUICK)
    assert found.inputs[0].shape == (8, *shape[1:])
    assert found.loss < found.noise
