"""bisect: the pass, the site and the layer that break a verdict, and the smallest part that shows it, as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from normfold.api import verify
from normfold.errors import EnvironmentMissing, LoadError, NormfoldError, UsageError
from normfold.files import publish, require_writable, staging
from normfold.ir import Graph
from normfold.ir.randomness import random_note
from normfold.judge import Culprit, Verifier
from normfold.judge import bisect as _bisect
from normfold.judge.bisect import Written
from normfold.judge.fixed import require_its_sizes
from normfold.judge.half import allowed, half_types
from normfold.judge.parts import Part, failing_parts
from normfold.judge.rules import Rules, budgets
from normfold.progress import Listener, Progress, silent
from normfold.report import Check
from normfold.report.machine import versions
from normfold.rewrite import Pass
from normfold.steps.rewrite import passes_of
from normfold.target import target
from normfold.targets import export_onnx
from normfold.targets.floats import widened
from normfold.targets.order import runs_of
from normfold.targets.originals import OwnExport, named_runs
from normfold.targets.untrusted import require_own_data

_TRIED = 10  # parts, the smallest first, that are written and judged


def bisect(
    graph: Graph,
    pipeline: str | Sequence[Pass],
    *,
    verifier: Verifier | None = None,
    progress: Listener | None = None,
    file: str | Path | None = None,
    export: bool = False,
    reproducer: str | Path | None = None,
    max_error: float | None = None,
    half_budget: float | None = None,
) -> Culprit | None:
    """The first pass, rewrite in it and layer after which the verdict fails; None if none does.

    Passes, and their file, are judged by the rules of a conversion (`normfold.judge.rules`).

    Args:
        file: an ONNX file of the result, judged where every pass keeps the verdict.
        export: write that file, out of sight, where none is given and the passes bake.
        reproducer: a folder for the smallest part that fails, which must not hold anything yet; left alone where
            nothing fails, or where no part can be written (`Culprit.no_reproducer` says why).
        max_error: relative error that approximate passes may cost, in place of the budgets that they declare.
        half_budget: relative error that half precision in ``file`` may cost besides.

    Raises:
        LoadError: there is no such file, or it is not ONNX.
        UsageError: a folder that is not empty; a file of other sizes; the network draws random numbers, so that
            no two calls of it compare; or as `normfold.judge.rules.budgets` and `normfold.judge.half.allowed`.
        ExportError: the file cannot be written. EnvironmentMissing: onnxruntime is not here.
    """
    say, judge, passes = progress or silent, verifier or Verifier(graph), passes_of(pipeline)
    rules = Rules(judge, budgets(passes, max_error), max_error)
    if drawn := random_note(graph):
        raise UsageError("there is nothing to bisect", found=drawn[0])
    folder = None if reproducer is None else Path(reproducer)
    if folder is not None:
        _require_empty(folder)
    given = None if file is None else _given(Path(file), graph, half_budget)
    allowed(set() if given is None else given.halves, half_budget)
    with TemporaryDirectory() as hidden:

        def write(result: Graph) -> Written | None:
            if given is not None:
                return given
            return _exported(graph, result, Path(hidden), say) if export and result.baked else None

        culprit = _bisect(graph, passes, rules, say, write)
        if culprit is not None and folder is not None:
            say(Progress("looking for the smallest part that fails"))
            try:
                write_reproducer(graph, culprit, folder, judge.seed)
            except NormfoldError as error:  # what was found stands without
                return replace(culprit, no_reproducer=error.what)
    return culprit


def write_reproducer(graph: Graph, culprit: Culprit, folder: Path, seed: int = 0) -> list[Path]:
    """Write the smallest part of a culprit that fails by itself: both networks, the inputs, and what to do.

    Raises:
        UsageError: none of the smallest parts fails by itself, or the result takes other inputs.
        ExportError: a part cannot be written; nothing is left of it.
    """
    result = culprit.result
    if result is None:
        raise UsageError("it is the capture that fails, not a part of a result")
    if isinstance(result, Graph) and (result.entries or result.output_sources):
        raise UsageError(
            "the result takes other inputs, or gives others outputs, than the original"
        )
    parts = failing_parts(graph, result, seed)
    with staging(folder) as hidden:
        for part, _ in zip(parts, range(_TRIED), strict=False):
            if any(value.dtype == torch.bfloat16 for *_, value in part.inputs):
                raise UsageError(
                    "inputs in bfloat16 cannot be written",
                    hint="`model.float()` has the same fault, or none",
                )
            files = part.write(hidden)
            arrays = {name: value.numpy() for name, _, value in part.inputs}
            np.savez(hidden / "inputs.npz", **arrays)  # type: ignore[arg-type]
            check = verify(
                *files, inputs_from=str(hidden / "inputs.npz"), batch="static", seed=seed
            )
            if not check.ok:
                (hidden / "README.md").write_text(_readme(culprit, part, files, check))
                return publish(hidden, folder)
            for path in hidden.iterdir():
                path.unlink()
    raise UsageError(
        "no part of the network fails by itself, in its own type; the fault may be smaller than the rounding of "
        "that (`model.double()` shows more)",
        found=f"a fault of {culprit.after.max_rel:.1e} in the outputs",
    )


def _readme(culprit: Culprit, part: Part, files: Sequence[Path], check: Check) -> str:
    by = f"`{culprit.spec}` at `{culprit.site or 'the network'}`" if culprit.spec else culprit.file
    worst = check.worst
    assert worst is not None
    names = [path.name for path in files]
    held = ", ".join(f"{name} {found}" for name, found in versions().items())
    return (
        "# The smallest part that fails\n\n"
        f"    normfold verify {' '.join(names)} --inputs inputs.npz --batch static\n\n"
        f"ends with exit code 1: error {worst.error:.2e} on `{worst.inputs}`, {worst.tolerance:.2e} allowed "
        f"({check.kind}).\n\n"
        f"- fault: {by}\n"
        f"- in the original: {part.op}\n"
        f"- ops: {part.ops[0]} in {names[0]}, {part.ops[1]} in {names[1]}\n"
        f"- versions: {held}\n"
    )


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            "the folder for the reproducer is not empty",
            where=str(folder),
            hint="name one that is not there yet",
        )
    require_writable(folder)


def _given(path: Path, graph: Graph, half_budget: float | None) -> Written:
    if not path.is_file():
        raise LoadError("there is no such file", where=str(path))
    if path.suffix != ".onnx":
        raise LoadError("not an .onnx file", where=str(path), hint="`normfold verify` takes others")
    require_own_data(path)
    require_its_sizes(graph, path)
    halves, row = frozenset(half_types(path)), target("ort-x86")
    return Written(
        path,
        lambda: ((kind, run) for kind, run, _ in named_runs(row, path, graph)),
        OwnExport(graph, row),
        halves=halves,
        half_budget=half_budget,
    )


def _exported(graph: Graph, result: Graph, folder: Path, say: Listener) -> Written | None:
    """The file of a result; None where this machine has nothing to write or to run it with."""
    row = target("ort-x86")

    try:
        import onnxruntime  # noqa: F401

        path = export_onnx(widened(result, row)[0], folder / "result.onnx", target=row).path
    except (ImportError, EnvironmentMissing) as error:
        say(Progress("result.onnx", text=f"not judged here ({error})"))
        return None
    return Written(path, lambda: runs_of(row, path), OwnExport(graph, row))
