"""Statistics beside a file: what comes back is what was written, on the tensors that it was of."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from normfold.errors import LoadError
from normfold.ir import Graph, capture, facts
from normfold.ir.intervals import Interval, note_mean, range_of, set_range
from normfold.ir.statistics import statistics_of
from normfold.ranges import sidecar
from normfold.rewrite import parse, run_pipeline
from tests.nets import perturb
from tests.ranges.nets import inverted, plain


@cache
def made() -> Graph:
    torch.manual_seed(0)
    graph = capture(perturb(inverted()), (torch.randn(2, 3, 8, 8),))
    return run_pipeline(graph, parse("canonicalize,fold-affine,restore,bake"))[0]


def folded() -> Graph:
    return made().copy()


def test_there_and_back(tmp_path: Path) -> None:
    graph = folded()
    path = sidecar.sidecar_of(tmp_path / "net.onnx")
    count = sidecar.save(graph, path)
    assert count >= 4
    found = bare(graph)
    assert sidecar.restore(found, path) == sidecar.Restored(count)
    assert known(found) == known(graph)


def test_nothing_known_is_no_file(tmp_path: Path) -> None:
    graph = capture(plain(), (torch.randn(2, 3, 8, 8),))
    assert sidecar.save(graph, tmp_path / "x.safetensors") == 0
    assert not list(tmp_path.iterdir())


def parts(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def bare(graph: Graph) -> Graph:
    """A copy of which nothing is known."""
    copy = graph.copy()
    for node in copy.nodes:
        facts.drop(node)
    return copy


def known(graph: Graph) -> list[tuple[str, str, int, list[float], list[float]]]:
    found = ((node.name, statistics_of(node)) for node in graph.nodes)
    return [
        (name, s.site, s.dim, s.mean.nan_to_num(7).tolist(), s.std.nan_to_num(7).tolist())
        for name, s in found
        if s is not None
    ]


def test_files_of_format_1(tmp_path: Path) -> None:
    """As the versions before wrote them: statistics only, their fields beside the keys of tensors."""
    graph, path = folded(), tmp_path / "x.safetensors"
    sidecar.save(graph, path)
    metadata, tensors = parts(path)
    assert metadata["normfold"] == "2"
    rows = [
        {name: {**row, **row["fields"]}[name] for name in ("site", "dim", "op", "shape", "number")}
        for row in json.loads(metadata["facts"])
    ]
    save_file(tensors, path, {"normfold": "1", "tensors": json.dumps(rows)})
    found = bare(graph)
    assert sidecar.restore(found, path) == sidecar.Restored(len(rows))
    assert known(found) == known(graph)


def test_only_what_is_kept_is_written_and_read(tmp_path: Path) -> None:
    """A range beside a file would stand in for a measurement."""
    graph, path = folded(), tmp_path / "x.safetensors"
    node = next(node for node in graph.nodes if statistics_of(node) is not None)
    set_range(node, Interval(-1.0, 1.0))
    note_mean(node, torch.zeros(3, dtype=torch.float64))
    count = sidecar.save(graph, path)
    metadata, tensors = parts(path)
    rows = json.loads(metadata["facts"])
    assert {row["kind"] for row in rows} == {"statistics"}
    place = {name: rows[0][name] for name in ("op", "shape", "number")}
    rows += [
        {"kind": "range", "fields": {"low": 0.0, "high": 1.0}, **place},
        {"kind": "centred", "fields": {"groups": f"{count + 1}.groups"}, **place},
        {"kind": "of-another-version", "fields": {"x": [{}]}, **place},
    ]
    tensors[f"{count + 1}.groups"] = torch.zeros(1, 3, dtype=torch.int64)
    save_file(tensors, path, {"normfold": "2", "facts": json.dumps(rows)})
    found = bare(graph)
    assert sidecar.restore(found, path) == sidecar.Restored(count, skipped=3)
    assert known(found) == known(graph)
    assert all(range_of(node) is None for node in found.nodes)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 9},
        {"dim": -9},
        {"shape": [99]},
        {"op": "no_such_op"},
        {"number": -1},
    ],
)
def test_what_fits_no_tensor_is_left_out(change: dict[str, Any], tmp_path: Path) -> None:
    graph, path = folded(), tmp_path / "x.safetensors"
    count = sidecar.save(graph, path)
    metadata, tensors = parts(path)
    rows = json.loads(metadata["facts"])
    rows[0] |= {name: value for name, value in change.items() if name != "dim"}
    rows[0]["fields"] |= {name: value for name, value in change.items() if name == "dim"}
    save_file(tensors, path, {**metadata, "facts": json.dumps(rows)})
    found = bare(graph)
    assert sidecar.restore(found, path) == sidecar.Restored(count - 1)
    assert len(known(found)) == count - 1


@pytest.mark.parametrize("wrong", [torch.zeros(99).double(), torch.zeros(2, 2), torch.zeros(())])
def test_tensors_that_fit_nothing(wrong: torch.Tensor, tmp_path: Path) -> None:
    graph, path = folded(), tmp_path / "x.safetensors"
    count = sidecar.save(graph, path)
    metadata, tensors = parts(path)
    save_file({**tensors, "0.mean": wrong}, path, metadata)
    assert sidecar.restore(bare(graph), path) == sidecar.Restored(count - 1)


ROW = {"op": "conv2d", "shape": [4, 8, 8], "number": 0}
FIELDS = {"site": "a", "dim": 1, "mean": "0.mean", "std": "0.std"}
FACT = {"kind": "statistics", "fields": FIELDS}
OLD = {"site": "a", "dim": 1, **ROW}
ROWS: list[Any] = [
    None,
    [],
    ROW,
    FACT,
    {**FACT, **ROW, "op": None},
    {**FACT, **ROW, "shape": 4},
    {**FACT, **ROW, "shape": [4, []]},
    {**FACT, **ROW, "number": "0"},
    {**ROW, "kind": "statistics", "fields": {"site": "a", "dim": 1}},
    {**ROW, "kind": "statistics", "fields": {**FIELDS, "dim": "1"}},
    {**ROW, "kind": "statistics", "fields": {**FIELDS, "std": "0.mean"}},
]
OLD_FILES: list[Any] = [
    None,
    3,
    {"a": 1},
    [None],
    [[]],
    [ROW],
    [{**OLD, "dim": "1"}],
    [OLD, OLD],
]
DAMAGED: list[dict[str, str]] = [
    {},
    {"normfold": "3", "facts": "[]"},
    {"normfold": "2"},
    {"normfold": "2", "facts": "{"},
    {"normfold": "2", "facts": "[" * 100_000},
    {"normfold": "2", "facts": "{}"},
    {"normfold": "2", "facts": "3"},
    *({"normfold": "2", "facts": json.dumps([row])} for row in ROWS),
    *({"normfold": "1", "tensors": json.dumps(rows)} for rows in OLD_FILES),
]


@pytest.mark.parametrize("metadata", DAMAGED)
def test_damaged_rows(metadata: dict[str, str], tmp_path: Path) -> None:
    graph, path = bare(folded()), tmp_path / "x.safetensors"
    tensors = {"0.mean": torch.zeros(4).double(), "0.std": torch.ones(4).double()}
    save_file(tensors, path, metadata)
    with pytest.raises(LoadError, match="cannot be read"):
        sidecar.restore(graph, path)
    assert not known(graph)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read"):
        sidecar.restore(folded(), path)
