"""Networks of a fixed batch: samples, synthesised images and corrections are those of the same network without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.intervals import range_of
from normfold.job import Quantize, Source
from normfold.job.presets import preset
from normfold.ranges.calibration import calibrate, find_inputs
from tests.nets import Compose, perturb
from tests.ranges.nets import conv, residual

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
QUICK = Quantize(scheme="int8", images=8, synthesis_steps=5, pixels=(-2.0, 2.0))


def folded(module: nn.Module, batch: str) -> Graph:
    dynamic = None if batch == "static" else "batch"
    return normfold.run(capture(module, (X,), dynamic=dynamic), preset("folded"), verify="off")[0]


def rows_in_front() -> nn.Module:
    """A network whose ops know the batch: it takes no other."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(x.reshape(x.shape[0] * 2, 4, -1).relu().mean(2).reshape(x.shape[0], 8))  # type: ignore[no-any-return]

    return perturb(Compose(forward, stem=conv(3, 8), head=nn.Linear(8, 5)))


@pytest.mark.parametrize("module", [rows_in_front, lambda: perturb(residual())])
def test_ranges_of_synthesised_images_are_the_same(module: Any) -> None:
    net, found = module(), []
    for batch in ("static", "dynamic"):
        graph = calibrate(folded(net, batch), QUICK).graph
        intervals = map(range_of, graph.nodes)
        found.append([(item.low, item.high) for item in intervals if item is not None])
    fixed, free = found
    assert len(fixed) > 5
    torch.testing.assert_close(torch.tensor(fixed), torch.tensor(free), rtol=1e-3, atol=1e-3)


def test_images_are_whole_batches() -> None:
    found = find_inputs(folded(rows_in_front(), "static"), Quantize(images=6, synthesis_steps=2))
    assert [len(batch[0]) for batch in found.batches] == [4, 4]


def test_samples_are_cut_to_the_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=torch.randn(10, 3, 16, 16).numpy(), y=np.arange(10) % 5)
    graph = folded(rows_in_front(), "static")
    found = find_inputs(graph, QUICK, Source(data=tmp_path / "d.npz"))
    assert [len(batch[0]) for batch in found.batches] == [4, 4]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert "8 of 10 samples" in found.evidence.source
    np.savez(tmp_path / "few.npz", x=torch.randn(3, 3, 16, 16).numpy())
    with pytest.raises(UsageError, match="fewer samples than one batch"):
        find_inputs(graph, QUICK, Source(data=tmp_path / "few.npz"))


def test_the_whole_way_with_migration_and_correction(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=torch.randn(10, 3, 16, 16).numpy())
    result = normfold.convert(
        rows_in_front(),
        inputs=[X],
        batch="static",
        quantize="int8",
        data=tmp_path / "d.npz",
        correct_bias=True,
        output=tmp_path,
    )
    assert result.ok
    assert "8 of 10 samples" in str(result.report)


def test_biases_are_corrected_alike() -> None:
    net, found = rows_in_front(), []
    for batch in ("static", "dynamic"):
        graph = folded(net, batch)
        many = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        parts = many.split(4) if batch == "static" else [many]
        graph.samples = [((part,), {}) for part in parts]
        text = "measure-ranges,quantize-weights{bits=3},correct-bias{heads=true},bake"
        made, _ = normfold.run(graph, text, verify="off")
        found.append(dict(made.module.named_buffers()) | dict(made.module.named_parameters()))
    fixed, free = found
    assert fixed.keys() == free.keys()
    for name, value in free.items():
        torch.testing.assert_close(fixed[name], value, rtol=1e-4, atol=1e-5)
