"""The pass API: capture, run, verify, layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from normfold.data.opening import capture_source
from normfold.errors import ExportError, LoadError, UsageError
from normfold.ir import Graph
from normfold.ir import capture as _capture
from normfold.ir.capture import share_parameters
from normfold.job import Source
from normfold.judge import Verifier
from normfold.judge.inputs import own_samples
from normfold.judge.layers import compare_layers
from normfold.load.api import key_of, require_checkpoint
from normfold.progress import Listener, silent
from normfold.report import Check, Report
from normfold.report.events import Recorder
from normfold.report.layers import LayerReport
from normfold.rewrite import Pass
from normfold.steps.rewrite import Verify, passes_of, require_mode, run_judged
from normfold.target import target
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
    **options: Any,
) -> Check:
    """Does ``result`` compute what ``original`` computes?

    Args:
        original: a module, a captured graph, or any MODEL that `convert` takes.
        result: a graph, a module, what `convert` returned, an ``.onnx`` file, OpenVINO's IR (``.xml``), or another
            MODEL.
        inputs: example inputs (tensors, which are judged too, and so are those of ``inputs_from``) or `--input`
            texts; not needed for a captured graph.
        tries: sizes to judge at, as texts of `--try`.
        options: of `normfold.job.Source`, by keyword: ``seed``, ``factory``, ``dynamic``, ``batch`` ...

    Returns:
        The verdict; for an ONNX file that of the worse of the two optimisation levels.

    Raises:
        LoadError: a model or the ONNX file cannot be read. CaptureError: the original cannot be captured.
        UsageError: the result does not run on the original's inputs.
    """
    runtime = _RUNTIMES.get(Path(result).suffix) if isinstance(result, (str, Path)) else None
    is_file = runtime is not None
    if is_file and not Path(result).is_file():
        raise LoadError("there is no such file", where=str(result))
    if runtime == "ort-x86":
        require_own_data(Path(result))
    source = Source.of({"model": original, "inputs": inputs, **options})
    require_checkpoint(source.key, original, result)
    graph = capture_source(replace(source, key=key_of(original, source.key)))
    verifier = Verifier(graph, source.seed, own_samples(graph, source), tries)
    if tries and graph.original is not None:
        captured = verifier.capture()
        if not captured.ok:  # at a size that was asked for the network is not what was captured
            return captured
    if isinstance(result, nn.Module):
        # containers without a forward, as in captured graphs, have no mode
        parts = (part for part in result.modules() if type(part) is not nn.Module)
        training = any(part.training for part in parts if not isinstance(part, fx.GraphModule))
        return _rounding(verifier, share_parameters(result).eval() if training else result)
    result = getattr(result, "graph", result)
    if isinstance(result, Graph):
        return _rounding(verifier, result)
    if not is_file:
        other = replace(source, model=str(result), key=key_of(result, source.key))
        return _rounding(verifier, capture_source(other))
    try:
        runs = target(runtime).runner()(result)  # type: ignore[arg-type]
        return max((verifier.outputs(kind, call) for kind, call in runs), key=_excess)
    except ExportError as error:
        raise LoadError(error.what, where=error.where, found=error.found) from error


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
    graph = capture_source(replace(source, key=key_of(original, source.key)))
    result = getattr(result, "graph", result)
    if isinstance(result, Graph):
        return compare_layers(graph, result, source.seed)
    if isinstance(result, (str, Path)) and Path(result).suffix in _RUNTIMES:
        require_own_data(Path(result))
        return compare_layers(graph, Path(result), source.seed)
    other = replace(source, model=result, key=key_of(result, source.key))
    return compare_layers(graph, capture_source(other), source.seed)


def _rounding(verifier: Verifier, result: Graph | nn.Module) -> Check:
    try:
        return verifier.rounding(result)
    except Exception as error:  # anything that a network can raise
        raise UsageError(
            "the result does not run on the inputs of the original",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
        ) from error


def _excess(check: Check) -> float:
    worst = check.worst
    if worst is None or worst.error != worst.error:
        return 0.0 if worst is None else float("inf")
    return worst.error / (worst.tolerance or 1e-30)
