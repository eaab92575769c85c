"""The pass API: capture, run, verify, layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from normfold.data.opening import capture_source
from normfold.errors import ExportError, LoadError, UsageError
from normfold.ir import Graph
from normfold.ir import capture as _capture
from normfold.ir.capture import share_parameters
from normfold.ir.randomness import random_note
from normfold.job import Source
from normfold.judge import Verifier
from normfold.judge.fixed import at_its_batch, require_its_sizes
from normfold.judge.half import allowed, half_types, noted
from normfold.judge.inputs import own_samples
from normfold.judge.layers import compare_layers
from normfold.load.api import key_of, require_checkpoint
from normfold.progress import Listener, silent
from normfold.report import Check, OutputCheck, Report
from normfold.report.events import Recorder
from normfold.report.layers import LayerReport
from normfold.rewrite import Pass
from normfold.steps.rewrite import Verify, passes_of, require_mode, run_judged
from normfold.target import target
from normfold.targets.originals import OwnExport, named_runs
from normfold.targets.untrusted import require_own_data

# files that a runtime runs, by suffix
_RUNTIMES = {".onnx": "ort-x86", ".xml": "openvino"}


def capture(
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    dynamic: Any = "batch",
) -> Graph:
    """Capture a network as a graph that passes can rewrite; see `normfold.ir.capture.capture`."""
    return _capture(module, args, kwargs, dynamic)


def run(
    graph: Graph,
    pipeline: str | Sequence[Pass],
    verify: Verify = "final",
    *,
    verifier: Verifier | None = None,
    progress: Listener | None = None,
    copy: bool = True,
) -> tuple[Graph, Report]:
    """Run a pipeline on a copy of ``graph``.

    Args:
        graph: a captured graph; it is left untouched.
        pipeline: pipeline text, or passes.
        verify: ``each`` judges after every pass, ``final`` the algebra before baking and the result at the
            end, ``off`` nothing.
        verifier: to reuse reference outputs; made from ``graph`` when not given.
        progress: called with a `Progress` before each step.
        copy: False rewrites ``graph`` itself, so that replaced parameters can be freed; nothing is judged then.

    Returns:
        The new graph and the report. A failing verdict does not raise: look at ``report.ok``.

    Raises:
        UsageError: the pipeline text is wrong. PassError: a pass broke.
    """
    passes = passes_of(pipeline)
    require_mode(verify)
    start = time.perf_counter()
    if not copy and verify != "off":
        raise UsageError("a graph that is rewritten in place cannot be judged", hint="verify='off'")
    record = Recorder(Report(parameters_before=graph.parameter_bytes()))
    judge = (verifier or Verifier(graph)) if verify != "off" else None
    result = run_judged(
        graph, passes, verify, record, verifier=judge, say=progress or silent, copy=copy
    )
    return result, record.report(seconds=time.perf_counter() - start)


def verify(
    original: nn.Module | Graph | str | Path,
    result: Any,
    inputs: tuple[Any, ...] | Sequence[str] = (),
    *,
    tries: Sequence[str] = (),
    half_budget: float | None = None,
    max_error: float | None = None,
    **options: Any,
) -> Check:
    """Does ``result`` compute what ``original`` computes?

    Args:
        original: a module, a captured graph, or any MODEL that `convert` takes.
        result: a graph, a module, what `convert` returned, an ``.onnx`` file, OpenVINO's IR (``.xml``), or another
            MODEL. Where the batch of a file is fixed, that of the original is too.
        inputs: example inputs (tensors, which are judged too, and so are those of ``inputs_from``) or `--input`
            texts; not needed for a captured graph.
        tries: sizes to judge at, as texts of `--try`.
        half_budget, max_error: what half precision in the result, and the passes that made it, may cost: it is
            judged by the sum, as a relative error on typical inputs. Without, by rounding.
        options: of `normfold.job.Source`, by keyword: ``seed``, ``factory``, ``dynamic``, ``batch`` ...

    Returns:
        The verdict; for an ONNX file that of the worse of the two optimisation levels. It fails for networks that
        draw random numbers: nothing can be said of them.

    Raises:
        LoadError: a model or the ONNX file cannot be read. CaptureError: the original cannot be captured.
        UsageError: the result does not run on the original's inputs, or has other sizes; ``half_budget`` where
            nothing is in half precision.
    """
    file = _file(result)
    source = Source.of({"model": original, "inputs": inputs, **options})
    require_checkpoint(source.key, original, result)
    graph = _captured(source, file)
    verifier = Verifier(graph, source.seed, own_samples(graph, source), tries)
    if tries and graph.original is not None:
        captured = verifier.capture()
        if not captured.ok:  # at a size that was asked for the network is not what was captured
            return captured
    other: Graph | nn.Module | Path = file or _opened(result, source)
    halves = half_types(other)
    budget = allowed(halves, half_budget, max_error)
    drawn = [*random_note(graph), *(random_note(other) if isinstance(other, Graph) else [])]
    if drawn:
        nothing = OutputCheck("*", "every input", 0.0, float("inf"), 0.0, float("inf"))
        return Check("rounding", (nothing,), seed=source.seed, note=drawn[0])
    if isinstance(other, Path):
        return noted(_of_file(verifier, other, budget), halves, graph)
    return noted(_of_network(verifier, other, budget), halves, graph)


def layers(
    original: nn.Module | Graph | str | Path,
    result: Any,
    inputs: tuple[Any, ...] | Sequence[str] = (),
    **options: Any,
) -> LayerReport:
    """Where does ``result`` leave ``original``? What leaves every module that is in both, compared.

    Args:
        original, inputs, options: as of `verify`.
        result: a graph, what `convert` returned, an ``.onnx`` file that normfold wrote, or another MODEL.

    Raises:
        LoadError, CaptureError: as `verify`. UsageError: a file that does not say which modules it is made of.
    """
    source = Source.of({"model": original, "inputs": inputs, **options})
    file = _file(result)
    graph = _captured(source, file)
    result = getattr(result, "graph", result)
    if not isinstance(result, Graph) and file is None:
        result = capture_source(replace(source, model=result, key=key_of(result, source.key)))
    return compare_layers(graph, file or result, source.seed)


def _file(result: Any) -> Path | None:
    """A file that a runtime runs; None for any other result."""
    if not isinstance(result, (str, Path)) or Path(result).suffix not in _RUNTIMES:
        return None
    file = Path(result)
    if not file.is_file():
        raise LoadError("there is no such file", where=str(file))
    if _RUNTIMES[file.suffix] == "ort-x86":
        require_own_data(file)
    return file


def _captured(source: Source, file: Path | None) -> Graph:
    """The original, at the batch of the file that it is compared with where that is fixed."""
    source = replace(source, key=key_of(source.model, source.key))
    if file is None:
        return capture_source(source)
    graph = capture_source(at_its_batch(source, file))
    require_its_sizes(graph, file)
    return graph


def _opened(result: Any, source: Source) -> Graph | nn.Module:
    """A result that runs in torch: a graph, or a module in eval mode."""
    if isinstance(result, nn.Module):
        # containers without a forward, as in captured graphs, have no mode
        parts = (part for part in result.modules() if type(part) is not nn.Module)
        training = any(part.training for part in parts if not isinstance(part, fx.GraphModule))
        return share_parameters(result).eval() if training else result
    result = getattr(result, "graph", result)
    if isinstance(result, Graph):
        return result
    return capture_source(replace(source, model=str(result), key=key_of(result, source.key)))


def _of_network(verifier: Verifier, result: Graph | nn.Module, budget: float | None) -> Check:
    try:
        if budget is None:
            return verifier.rounding(result)
        return verifier.within(result, budget, own_types=True)
    except Exception as error:  # anything that a network can raise
        raise UsageError(
            "the result does not run on the inputs of the original",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
        ) from error


def _of_file(verifier: Verifier, file: Path, budget: float | None) -> Check:
    try:
        return max(_checks(verifier, file, budget), key=_excess)
    except ExportError as error:
        raise LoadError(error.what, where=error.where, found=error.found) from error


def _checks(verifier: Verifier, file: Path, budget: float | None) -> Iterator[Check]:
    row, graph = target(_RUNTIMES[file.suffix]), verifier.graph
    own = OwnExport(graph, row)
    for kind, run, note in named_runs(row, file, graph):
        check = verifier.outputs(kind, run, budget, partial(own, kind))
        yield replace(check, note="; ".join(filter(None, [check.note, note])))


def _excess(check: Check) -> float:
    worst = check.worst
    if worst is None or worst.error != worst.error:
        return 0.0 if worst is None else float("inf")
    return worst.error / (worst.tolerance or 1e-30)
