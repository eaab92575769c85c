"""What is known of a network's values in a file beside it: the facts whose kinds are kept (`Fact.kept`).

They are the statistics of norms that were folded, so that the model can be quantised later. A safetensors file:
in the metadata, as JSON, a row for each fact (`normfold.ir.fact_rows`) with the tensor that it is of; the fact's
own tensors by the number of the row (``3.mean``). Tensors of the network are identified by op, shape of a sample,
and the number of tensors of the same kind in front of them: names of nodes do not survive a ``.pt2`` file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from normfold.errors import LoadError
from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.fact_rows import RowError, from_row, to_row
from normfold.ir.facts import Fact
from normfold.ir.graph import op_name, shape_of
from normfold.ir.statistics import Statistics

SUFFIX = ".statistics.safetensors"
_FORMAT = "2"


@dataclass(frozen=True)
class _Key:
    op: str
    shape: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Restored:
    """What was found in a file: on how many tensors of the graph, and how many facts of kinds not kept now."""

    tensors: int
    skipped: int = 0


def sidecar_of(path: str | os.PathLike[str]) -> Path:
    """``out/model.statistics.safetensors`` for ``out/model.pt2`` and ``out/model.onnx``."""
    path = Path(path)
    return path.with_name(path.stem + SUFFIX)


def save(graph: Graph, path: Path) -> int:
    """Write what is kept of a graph's tensors, and return how many facts there are; no file for none."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for node, key in _keys(graph).items():
        found = [fact for fact in facts.facts_of(node) if fact.kept and fact.fits(node)]
        for fact in sorted(found, key=lambda fact: fact.kind_name):
            row, own = to_row(fact, str(len(rows)))
            tensors |= {name: _plain(value) for name, value in own.items()}
            rows.append({**row, "op": key.op, "shape": key.shape, "number": key.number})
    if rows:
        save_file(tensors, path, {"normfold": _FORMAT, "facts": json.dumps(rows)})
    return len(rows)


def restore(graph: Graph, path: Path) -> Restored:
    """Set the facts of a graph's tensors from a file, in place of those that are known.

    Raises:
        LoadError: the file is not one of these, or is damaged.
    """
    from safetensors import SafetensorError

    try:
        rows = list(_rows(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LoadError(
            "the statistics beside the model cannot be read",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            hint="remove the file, or convert the model again",
        ) from error
    by_key = {key: node for node, key in _keys(graph).items()}
    found = set[fx.Node]()
    for key, fact in rows:
        node = by_key.get(key)
        if node is not None and fact is not None and fact.fits(node):
            facts.put(node, fact)
            found.add(node)
    return Restored(len(found), sum(fact is None for _, fact in rows))


def _rows(path: Path) -> Iterator[tuple[_Key, Fact | None]]:
    """Each row of a file: the tensor that it is of, and the fact if its kind is kept."""
    from safetensors import safe_open

    kept = {name: kind for name, kind in facts.kinds().items() if kind.kept}
    with safe_open(path, "pt") as file:
        names = set(file.keys())

        def tensor(name: str) -> Tensor:
            if name not in names:
                raise KeyError(name)
            found: Tensor = file.get_tensor(name)
            return found

        metadata = file.metadata() or {}
        for number, row in enumerate(_of_format(metadata)):
            yield _key(row, str(number)), from_row(row, str(number), tensor, kept)


def _of_format(metadata: dict[str, str]) -> list[Any]:
    """The rows of a file of any format that there was, as of the newest."""
    match metadata["normfold"]:
        case "2":
            rows = json.loads(metadata["facts"])
        case "1":  # statistics alone, their fields beside the tensor's
            rows = [
                {
                    **row,
                    "kind": Statistics.kind_name,
                    "fields": {
                        "site": row["site"],
                        "dim": row["dim"],
                        "mean": f"{number}.mean",
                        "std": f"{number}.std",
                    },
                }
                for number, row in enumerate(json.loads(metadata["tensors"]))
            ]
        case other:
            raise RowError(f"its format is {other!r}, which this version of normfold does not know")
    if not isinstance(rows, list):
        raise RowError("the rows are not a list")
    return rows


def _key(row: Any, name: str) -> _Key:
    op, shape, number = row["op"], row["shape"], row["number"]
    sizes = shape if isinstance(shape, list) else [None]
    if type(op) is not str or any(type(size) is not int for size in (number, *sizes)):
        raise RowError(f"`{name}` does not say which tensor it is of")
    return _Key(op, tuple(shape), number)


def _plain(value: Tensor) -> Tensor:
    """A dense copy in the host's memory: files hold no views, and no memory that two tensors share."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


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
