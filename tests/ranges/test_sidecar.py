"""Statistics beside a file: what comes back is what was written, on the tensors that it was of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normfold.errors import LoadError
from normfold.ir import Graph, capture
from normfold.ir.statistics import set_statistics, statistics_of
from normfold.ranges import sidecar
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb
from tests.ranges.nets import inverted, plain


def folded() -> Graph:
    torch.manual_seed(0)
    graph = capture(perturb(inverted()), (torch.randn(2, 3, 8, 8),))
    return run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))[0]


def test_there_and_back(tmp_path: Path) -> None:
    graph = folded()
    path = sidecar.sidecar_of(tmp_path / "net.onnx")
    count = sidecar.save(graph, path)
    assert count >= 4
    bare = graph.copy()
    for node in bare.nodes:
        set_statistics(node, None)
    assert sidecar.restore(bare, path) == count
    for mine, theirs in zip(bare.nodes, graph.nodes, strict=True):
        found, wanted = statistics_of(mine), statistics_of(theirs)
        assert (found is None) == (wanted is None), mine.name
        if found is not None and wanted is not None:
            assert (found.site, found.dim) == (wanted.site, wanted.dim)
            assert torch.equal(found.mean.nan_to_num(), wanted.mean.nan_to_num())
            assert torch.equal(found.std.nan_to_num(), wanted.std.nan_to_num())


def test_nothing_known_is_no_file(tmp_path: Path) -> None:
    graph = capture(plain(), (torch.randn(2, 3, 8, 8),))
    assert sidecar.save(graph, tmp_path / "x.safetensors") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read"):
        sidecar.restore(folded(), path)
