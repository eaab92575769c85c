"""Refreshed statistics are those of all batches put together, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn import Affine, OfflineNorm, PRepBN, valid_tokens
from normfold.train import refresh_statistics
from tests.nn.norms import STATISTICAL, norm_of, tokens


def data() -> list[Tensor]:
    return [tokens(2, n, 4, seed=n) for n in (3, 9, 5)]


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = norm_of(kind), norm_of(kind), norm_of(kind)
        self.linear, self.dropout = nn.Linear(4, 4, dtype=torch.float64), nn.Dropout(0.5)
        self.last = Affine(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.linear(self.first(x)))
        result: Tensor = self.last(self.second(x))
        return result


def by_batch_statistics(norm: OfflineNorm, x: Tensor) -> Tensor:
    """Eval mode of a norm whose running statistics are those of this batch, the biased variance."""
    rows = norm.prepare(x)
    mean, square = rows.mean((0, 1)), rows.square().mean((0, 1))
    centred = "running_mean" in dict(norm.named_buffers())
    variance = square - mean.square() if centred else square
    gain = norm.get_parameter("weight") / torch.sqrt(variance + norm.eps)
    shift = norm.get_parameter("bias") - (mean * gain if centred else 0)
    eta = norm.get_parameter("eta") if hasattr(norm, "eta") else 0
    return rows * (gain + eta) + shift


@pytest.mark.parametrize("kind", STATISTICAL)
def test_statistics_of_the_concatenation(kind: str) -> None:
    net = Net(kind)
    net.second.training = False
    modes = [module.training for module in net.modules()]
    before = {n: t.clone() for n, t in net.state_dict().items()}
    assert refresh_statistics(net, data()) == ["first", "second"]
    assert modes == [module.training for module in net.modules()]

    inputs = {
        "first": data(),
        "second": [net.linear(by_batch_statistics(net.first, x)) for x in data()],
    }
    written = set()
    for name, parts in inputs.items():
        norm = net.get_submodule(name)
        assert isinstance(norm, OfflineNorm)
        rows = norm.prepare(torch.cat(parts, 1)).flatten(0, 1).detach()
        if "running_mean" in dict(norm.named_buffers()):
            torch.testing.assert_close(norm.get_buffer("running_mean"), rows.mean(0))
            wanted = rows.var(0)
            written.add(f"{name}.running_mean")
        else:
            wanted = rows.square().mean(0)
        torch.testing.assert_close(norm.get_buffer("running_var"), wanted, rtol=1e-10, atol=0)
        written.add(f"{name}.running_var")
    changed = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == written
    assert all(norm.recorder is None for norm in (net.first, net.second))


def test_batches_of_every_form_and_an_own_forward() -> None:
    (x, *_) = data()
    found = []
    for batches, forward in (
        ([x], None),
        ([(x,)], None),
        ([[x]], None),
        ([{"x": x}], None),
        ([(x, "label")], lambda model, batch: model(batch[0])),
    ):
        net = Net("bn")
        refresh_statistics(net, batches, forward)
        found.append(net.first.get_buffer("running_var"))
    assert all(torch.equal(found[0], other) for other in found)


def test_padding_stays_out() -> None:
    net = nn.Sequential(norm_of("prepbn"))
    x = tokens(3, 5, 4)
    mask = torch.rand(3, 5) > 0.4
    with valid_tokens(net, mask):
        refresh_statistics(net, [torch.where(mask.unsqueeze(-1), x, float("nan"))])
    norm = net[0]
    assert isinstance(norm, PRepBN)
    torch.testing.assert_close(norm.running_mean, x[mask].mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_var, x[mask].var(0), rtol=1e-12, atol=0)


def test_modes_return_after_an_error() -> None:
    net = Net("un").eval()
    with pytest.raises(UsageError, match="5 features"):
        refresh_statistics(net, [tokens(2, 3, 5)])
    assert not any(module.training for module in net.modules())
    assert net.first.recorder is None


def test_nothing_to_refresh_is_refused() -> None:
    with pytest.raises(UsageError, match="no norm of normfold"):
        refresh_statistics(nn.Linear(4, 4), data())
    with pytest.raises(UsageError, match="no batch"):
        refresh_statistics(Net("bn"), [])
