"""New statistics of BatchNorms from samples: against PyTorch's own, blended as stated, folded, and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.job import Recalibrate
from normfold.train.recalibrate import recalibrated
from tests.nets import Compose

SAMPLES = torch.randn(48, 3, 8, 8) * 1.5 + 0.5


def net() -> nn.Module:
    """Two BatchNorms with statistics of other inputs, behind one another."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        for name, value in made.named_buffers():
            if name.endswith("mean"):
                value.normal_()
            elif name.endswith("var"):
                value.uniform_(0.5, 2)
    return made.eval()


def statistics(model: nn.Module) -> list[Tensor]:
    return [x for name, x in model.named_buffers() if "running" in name]


def by_torch(model: nn.Module) -> list[Tensor]:
    """What training computes on all samples in one batch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(SAMPLES)
    return statistics(model.eval())


def new(step: Recalibrate, batches: int = 3) -> list[Tensor]:
    graph = normfold.capture(net(), (SAMPLES[:2],))
    result, _ = recalibrated(graph, [(part,) for part in SAMPLES.chunk(batches)], step)
    return statistics(result.module)


@pytest.mark.parametrize("batches", [1, 3])
def test_adabn_is_what_training_computes_in_one_batch(batches: int) -> None:
    for mine, theirs in zip(
        new(Recalibrate(method="adabn"), batches), by_torch(net()), strict=True
    ):
        # torch normalises the batch by its biased variance: 1 of 1,700 values of a channel
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (Recalibrate(method="alpha", source_weight=0.75), 0.75),
        (Recalibrate(method="prior", source_samples=16), 0.25),
    ],
)
def test_the_first_norm_is_blended_as_stated(step: Recalibrate, share: float) -> None:
    own, theirs, mine = statistics(net()), new(Recalibrate(method="adabn")), new(step)
    for a, b, c in zip(own[:2], theirs[:2], mine[:2], strict=True):
        torch.testing.assert_close(c, share * a + (1 - share) * b)


def test_one_part_alone() -> None:
    own, both = statistics(net()), new(Recalibrate(method="adabn"))
    mean = new(Recalibrate(method="adabn", moments="mean"))
    variance = new(Recalibrate(method="adabn", moments="variance"))
    assert torch.equal(mean[0], both[0])
    assert torch.equal(mean[1], own[1])
    assert torch.equal(variance[0], own[0])
    assert torch.equal(variance[1], both[1])


def test_the_file_is_the_recalibrated_network_and_can_be_undone(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    source = net()
    made = normfold.convert(
        source, inputs=(SAMPLES[:2],), data=SAMPLES, recalibrate="adabn", output=tmp_path
    )
    assert made.ok
    assert made.report.counts() == {"batch-norm": {"gone": 2}}
    changed = net()
    for mine, value in zip(statistics(changed), new(Recalibrate(method="adabn")), strict=True):
        mine.copy_(value)
    name = next(tmp_path.glob("*.onnx"))
    (answer,) = onnxruntime.InferenceSession(name).run(None, {"input": SAMPLES.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), changed(SAMPLES), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(torch.from_numpy(answer), source(SAMPLES), atol=1e-2)
    changed.load_state_dict(
        load_file(next(tmp_path.glob("*.source-statistics.safetensors"))), strict=False
    )
    assert all(map(torch.equal, statistics(changed), statistics(source)))


def test_what_to_be_wary_of() -> None:
    graph = normfold.capture(net(), (SAMPLES[:2],))
    _, report = recalibrated(graph, [(100 * SAMPLES[:20] + 50,)], Recalibrate(method="adabn"))
    few, far = report.notes()
    assert "recalibrated on 20 samples: means are known to about 0.22" in few
    assert "2 of 2 norms" in far
    assert "are they of the same kind" in far
    _, report = recalibrated(graph, [(SAMPLES[:20],)], Recalibrate(method="prior"))
    assert "adabn" not in str(report)
    assert "44% of their own" in str(report)


def test_a_norm_that_is_called_twice_keeps_its_statistics() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.other(x))
        return self.norm(torch.relu(y))  # type: ignore[no-any-return]

    twice = Compose(forward, norm=nn.BatchNorm2d(3), other=nn.BatchNorm2d(3)).eval()
    graph = normfold.capture(twice, (SAMPLES[:2],))
    result, report = recalibrated(graph, [(SAMPLES,)], Recalibrate(method="adabn"))
    assert [item.path for item in report.norms] == ["other"]
    assert report.kept == ("norm",)
    assert torch.equal(result.module.get_buffer("norm.running_mean"), torch.zeros(3))


def test_a_norm_at_the_root_has_a_name_too() -> None:
    graph = normfold.capture(nn.BatchNorm2d(3).eval(), (SAMPLES[:2],))
    _, report = recalibrated(graph, [(SAMPLES,)], Recalibrate(method="adabn"))
    assert all(item.path for item in report.norms)
    assert not report.kept


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 3e3), (torch.float32, 1e25)])
def test_statistics_that_the_network_cannot_hold(dtype: torch.dtype, scale: float) -> None:
    graph = normfold.capture(
        nn.Sequential(nn.BatchNorm2d(3)).to(dtype).eval(), (SAMPLES[:2].to(dtype),)
    )
    samples = (SAMPLES * scale).to(dtype if scale < 1e4 else torch.float32)
    with pytest.raises(UsageError, match="that the network cannot hold") as caught:
        recalibrated(graph, [(samples,)], Recalibrate(method="adabn"))
    assert (caught.value.where, "`running_var` up to" in str(caught.value)) == ("0", True)
    assert ("float()" in str(caught.value)) == (dtype is torch.float16)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))])
def test_a_network_without_batch_norms(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="there is no BatchNorm to recalibrate"):
        normfold.convert(model.eval(), inputs=(SAMPLES[:2],), data=SAMPLES, recalibrate="adabn")


def test_samples_are_needed() -> None:
    with pytest.raises(UsageError, match="there are no samples"):
        normfold.convert(net(), inputs=(SAMPLES[:2],), recalibrate="adabn")
    with pytest.raises(UsageError, match="not blended by a share"):
        normfold.convert(net(), data=SAMPLES, recalibrate="adabn", source_weight=0.5)
