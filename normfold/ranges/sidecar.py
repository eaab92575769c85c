"""Statistics of norms in a file beside an exported model, so that the model can be quantised later.

A safetensors file: for each tensor ``<n>.mean`` and ``<n>.std``, float64, (C,); in the metadata, as JSON, which
norm they come from, the channel axis, and the tensor. Tensors are identified by op, shape of a sample, and the
number of tensors of the same kind in front of them: names of nodes do not survive a ``.pt2`` file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from normfold.errors import LoadError
from normfold.ir import Graph
from normfold.ir.expressions import is_static
from normfold.ir.graph import op_name, shape_of
from normfold.ir.statistics import Statistics, set_statistics, statistics_of

SUFFIX = ".statistics.safetensors"
_FORMAT = "1"


@dataclass(frozen=True)
class _Key:
    op: str
    shape: tuple[int, ...]
    number: int


def sidecar_of(path: str | os.PathLike[str]) -> Path:
    """``out/model.statistics.safetensors`` for ``out/model.pt2`` and ``out/model.onnx``."""
    path = Path(path)
    return path.with_name(path.stem + SUFFIX)


def save(graph: Graph, path: Path) -> int:
    """Write the statistics of a graph's tensors, and return how many there are; no file for none."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for node, key in _keys(graph).items():
        found = statistics_of(node)
        if found is None:
            continue
        tensors[f"{len(rows)}.mean"], tensors[f"{len(rows)}.std"] = found.mean, found.std
        place = {"op": key.op, "shape": key.shape, "number": key.number}
        rows.append({"site": found.site, "dim": found.dim, **place})
    if rows:
        save_file(tensors, path, {"normfold": _FORMAT, "tensors": json.dumps(rows)})
    return len(rows)


def restore(graph: Graph, path: Path) -> int:
    """Set the statistics of a graph's tensors from a file, and return how many tensors were found again.

    Raises:
        LoadError: the file is not one of these, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            rows = json.loads(file.metadata()["tensors"])
            parts = [
                (file.get_tensor(f"{n}.mean"), file.get_tensor(f"{n}.std"))
                for n in range(len(rows))
            ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LoadError(
            "the statistics beside the model cannot be read",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            hint="remove the file, or convert the model again",
        ) from error
    by_key = {key: node for node, key in _keys(graph).items()}
    count = 0
    for row, (mean, std) in zip(rows, parts, strict=True):
        node = by_key.get(_Key(row["op"], tuple(row["shape"]), row["number"]))
        if node is not None:
            set_statistics(node, Statistics(row["site"], row["dim"], mean, std))
            count += statistics_of(node) is not None
    return count


def _keys(graph: Graph) -> dict[fx.Node, _Key]:
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    found = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op not in ("placeholder", "call_function") or not isinstance(value, Tensor):
            continue
        if node.op == "call_function" and is_static(node):
            continue
        kind = (op_name(node), shape_of(node)[1:])
        found[node] = _Key(*kind, seen[kind])
        seen[kind] += 1
    return found
