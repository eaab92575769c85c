"""The rewritten graph has the original's parameters, gradients and training steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from examples import gpt, train_rewritten
from normfold.ir.graph import op_name
from tests.nets import perturb

STEPS = 4


@pytest.fixture
def small() -> nn.Module:
    """A GPT with norms of both signs, in float64."""
    torch.manual_seed(0)
    return perturb(gpt.GPT(vocabulary=11, context=8, width=12, depth=2, heads=3).double())


def batches() -> Tensor:
    return torch.randint(11, (STEPS, 3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_the_script_finds_the_gradients_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train_rewritten", "--steps=2", "--batch=2"])
    train_rewritten.main()
    lines = capsys.readouterr().out.splitlines()
    assert "52 gradients" in lines[0]
    assert float(lines[1].split()[0]) <= 1e-9
    steps = {words[0]: [float(word) for word in words[1:]] for words in map(str.split, lines[3:])}
    assert list(steps) == ["SGD", "AdamW"]
    assert max(max(pair) for pair in steps.values()) <= 1e-9


def test_the_rewritten_graph_holds_the_parameters_themselves(small: nn.Module) -> None:
    rewritten = train_rewritten.rewrite(small, batches()[0, :, :-1])
    assert isinstance(rewritten, torch.fx.GraphModule)
    own = {id(parameter) for parameter in small.parameters()}
    assert {id(parameter) for parameter in rewritten.parameters()} == own
    ops = [op_name(node) for node in rewritten.graph.nodes]
    assert ops.count("rms_norm") == 5
    assert "layer_norm" not in ops


def test_every_gradient_is_equal(small: nn.Module) -> None:
    differences = train_rewritten.compare(small, batches()[0])
    assert set(differences) == {"loss", *dict(small.named_parameters())}
    assert max(differences.values()) <= 1e-9


def test_a_rewrite_of_another_network_is_told_apart(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite = train_rewritten.rewrite

    def wrong(network: nn.Module, ids: Tensor) -> nn.Module:
        forward = rewrite(network, ids)
        assert isinstance(forward, torch.fx.GraphModule)
        norm = next(node for node in forward.graph.nodes if op_name(node) == "rms_norm")
        norm.update_arg(3, 1e-3)  # another eps
        forward.recompile()
        return forward

    monkeypatch.setattr(train_rewritten, "rewrite", wrong)
    differences = train_rewritten.compare(small, batches()[0])
    assert sum(difference > 1e-6 for difference in differences.values()) > len(differences) // 2


@pytest.mark.parametrize("name", train_rewritten.OPTIMIZERS)
def test_steps_stay_together_and_train(small: nn.Module, name: str) -> None:
    make = train_rewritten.OPTIMIZERS[name]
    before = [parameter.detach().clone() for parameter in small.parameters()]
    losses, parameters = train_rewritten.train_both(small, make, batches())
    assert max(losses, parameters) <= 1e-9
    unchanged = zip(small.parameters(), before, strict=True)
    assert all(torch.equal(now, then) for now, then in unchanged)  # copies were trained

    forward = train_rewritten.rewrite(small, batches()[0, :, :-1])
    same = batches()[:1].expand(8, -1, -1)
    trained = train_rewritten.train(small, forward, make, same)
    assert trained[-1] < trained[0]
    assert not torch.equal(small.state_dict()["token.weight"], before[0])  # the network's own
