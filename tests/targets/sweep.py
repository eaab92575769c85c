"""Each op of the table, written alone and run: ``python -m tests.targets.sweep [NAME ...] [--opset N]``.

A result is wrong where the float64 one fits into float32 and the file's is not finite, or errs by more than 16 ulp
and four times torch's own error in float32; and where it is another infinity or NaN than torch's.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.errors import NormfoldError
from normfold.targets import RuntimeSession, export_onnx
from tests.targets.extremes import Case, every
from tests.targets.nets import folded

_LEVELS: tuple[Any, ...] = ("all", "none")
_MOST = torch.finfo(torch.float32).max


class Net(nn.Module):
    """Some ops; their inputs are the file's, as are their outputs."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        results, taken = [], 0
        for case in self.cases:
            count = len(case.inputs)
            results += pytree.tree_leaves(case.function(*inputs[taken : taken + count]))
            taken += count
        return results


@dataclass
class Outcome:
    """What came of a case: why it was not run, or its wrong results, as (level, input, file, torch, float64)."""

    case: Case
    refused: str = ""
    wrong: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    count: int = 0
    ops: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.refused:
            return f"{self.case.name}: not written: {self.refused}"
        shown = "; ".join(
            f"{level} f({given}) = {ours:.9g}, torch {single:.9g}, truth {double:.9g}"
            for level, given, ours, single, double in self.wrong[:3]
        )
        return f"{self.case.name}: {self.count} wrong: {shown} {self.ops}"


def outcome(case: Case, opset: int | None = None, dynamic: Any = None) -> Outcome:
    """Write the op and compare its results."""
    (found,) = outcomes([case], opset, dynamic)
    return found


def outcomes(cases: list[Case], opset: int | None = None, dynamic: Any = None) -> list[Outcome]:
    """The outcomes of several ops that are written into one file, or several where one is refused."""
    net, inputs = Net(cases).eval(), [x for case in cases for x in case.inputs]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = folded(net, *inputs, dynamic=dynamic)
            written = export_onnx(graph, Path(folder) / "op.onnx", opset=opset)
            results = {
                level: iter(RuntimeSession(written.path, level, threads=1).run(inputs))
                for level in _LEVELS
            }
        except Exception as error:  # of torch's too: only one case tells which
            if len(cases) > 1:
                half = len(cases) // 2
                return [
                    x
                    for part in (cases[:half], cases[half:])
                    for x in outcomes(part, opset, dynamic)
                ]
            why = "" if isinstance(error, NormfoldError) else f"{type(error).__name__}: "
            return [Outcome(cases[0], why + " ".join(str(error).split())[:300])]
    found = []
    for case in cases:
        single, double = _outputs(case, False), _outputs(case, True)
        found.append(Outcome(case, ops=dict(written.census.ops) if len(cases) == 1 else {}))
        for level in _LEVELS:
            for index, (near, truth) in enumerate(zip(single, double, strict=True)):
                _compare(found[-1], f"{level}{index}", next(results[level]), near, truth)
    return found


def _outputs(case: Case, wide: bool) -> list[Tensor]:
    inputs = [x.double() if wide and x.dtype == torch.float32 else x for x in case.inputs]
    with torch.no_grad():
        return list(pytree.tree_leaves(case.function(*inputs)))


def _compare(found: Outcome, level: str, ours: Tensor, near: Tensor, truth: Tensor) -> None:
    if ours.shape != near.shape or ours.dtype != near.dtype:
        found.count += 1
        found.wrong.append(
            (
                f"{level} {tuple(ours.shape)} {ours.dtype} for {tuple(near.shape)} {near.dtype}",
                "",
                0,
                0,
                0,
            )
        )
        return
    bad = differs(ours, near, truth, _sizes(found.case, truth))
    found.count += int(bad.sum())
    for place in bad.nonzero()[:8]:
        at = tuple(place.tolist())
        values = [float(x[at]) for x in (ours, near, truth)]
        inputs = [x[at] for x in found.case.inputs if x.shape == ours.shape]
        given = ", ".join(f"{float(x):.4g}" for x in inputs) or f"at {list(at)}"
        found.wrong.append((level, given, *values))  # type: ignore[arg-type]


def _sizes(case: Case, truth: Tensor) -> Tensor:
    """Of what size a result is, whose ulp counts."""
    if not truth.is_floating_point():
        return truth
    truth = truth.abs()
    if not case.coarse:
        return truth
    finite = truth.nan_to_num(0.0, 0.0, 0.0)
    if truth.dim() < 2:
        return torch.maximum(finite, finite.max() if finite.numel() else finite)
    return finite.flatten(1).amax(1).view(-1, *[1] * (truth.dim() - 1)).expand_as(truth)


def differs(ours: Tensor, near: Tensor, truth: Tensor, size: Tensor) -> Tensor:
    """Where a result is wrong."""
    if not ours.is_floating_point():
        return (ours != near) & (ours != truth)
    wide = ours.double()
    truth = truth.double()
    ulp = torch.finfo(torch.float32).eps * size.double().clamp(min=torch.finfo(torch.float32).tiny)
    own = (near.double() - truth).abs()
    fits = truth.abs() <= _MOST
    allowed = torch.maximum(16 * ulp, 4 * own.nan_to_num(torch.inf))
    far = ((wide - truth).abs() > allowed) | (~wide.isfinite() & near.isfinite())
    same = (wide == truth) | (wide.isnan() & truth.isnan())
    also = (ours == near) | (ours.isnan() & near.isnan())
    return torch.where(fits, far, ~same & ~also & ~(truth.isfinite() & ours.isinf())) & ~also


def main() -> None:
    """Print every wrong op."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--opset", type=int)
    parser.add_argument("--dynamic", action="store_true", help="the first axis is free")
    parser.add_argument("--together", type=int, default=24, help="ops in one file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [c for c in every() if not given.names or any(name in c.name for name in given.names)]
    dynamic = "batch" if given.dynamic else None
    for start in range(0, len(cases), given.together):
        for found in outcomes(cases[start : start + given.together], given.opset, dynamic):
            if found.refused or found.count:
                print(found, flush=True)
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
