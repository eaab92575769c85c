"""The pass API: capture, run, verify, bisect."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfold.errors import ExportError, LoadError, UsageError
from normfold.graph import Graph
from normfold.graph import capture as _capture
from normfold.graph.capture import dynamic_axes, share_parameters
from normfold.judge import Culprit, Verifier
from normfold.judge import bisect as _bisect
from normfold.load import load
from normfold.report import Check, PassReport, Report
from normfold.report.sites import site_statuses
from normfold.rewrite import Pass, parse, run_pipeline, text_of

Verify = Literal["final", "each", "off"]
Progress = Callable[[str], None]


def capture(
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    dynamic: Any = "batch",
) -> Graph:
    """Capture a network as a graph that passes can rewrite; see `normfold.graph.capture.capture`."""
    return _capture(module, args, kwargs, dynamic)


def run(
    graph: Graph,
    pipeline: str | Sequence[Pass],
    verify: Verify = "final",
    *,
    verifier: Verifier | None = None,
    progress: Progress | None = None,
    copy: bool = True,
) -> tuple[Graph, Report]:
    """Run a pipeline on a copy of ``graph``.

    Args:
        graph: a captured graph; it is left untouched.
        pipeline: pipeline text, or passes.
        verify: ``each`` judges after every pass, ``final`` the algebra before baking and the result at the
            end, ``off`` nothing.
        verifier: to reuse reference outputs; made from ``graph`` when not given.
        progress: called with a line of text before each step.
        copy: False rewrites ``graph`` itself, so that replaced parameters can be freed; nothing is judged then.

    Returns:
        The new graph and the report. A failing verdict does not raise: look at ``report.ok``.

    Raises:
        UsageError: the pipeline text is wrong. PassError: a pass broke.
    """
    passes = parse(pipeline) if isinstance(pipeline, str) else list(pipeline)
    _require_mode(verify)
    start = time.perf_counter()
    if not copy and verify != "off":
        raise UsageError("a graph that is rewritten in place cannot be judged", hint="verify='off'")
    verifier = verifier or Verifier(graph)
    say = progress or (lambda text: None)
    bakes = [index for index, item in enumerate(passes) if item.name == "bake"]
    last_unbaked = (bakes[0] if bakes else len(passes)) - 1
    checks: list[Check] = []
    if verify != "off":
        say("checking the capture")
        checks.append(verifier.capture())
    done = 0

    def after(item: Pass, current: Graph, report: PassReport) -> None:
        nonlocal done
        index, done = done, done + 1
        say(f"{item}: {report.rewrites} rewrites, {len(report.declined)} declined")
        wanted = verify == "each" or (
            verify == "final" and index in (last_unbaked, len(passes) - 1)
        )
        if wanted and not current.baked:
            report.check = verifier.algebra(current)
        elif wanted:
            report.check = verifier.rounding(current)

    before = graph.parameter_bytes()
    result, reports = run_pipeline(graph, passes, after, copy)
    report = Report(
        pipeline=text_of(passes),
        passes=reports,
        checks=checks,
        sites=site_statuses(result, reports),
        notes=[*result.notes, *_nothing_done(reports)],
        parameters_before=before,
        parameters_after=result.parameter_bytes(),
    )
    report.seconds = time.perf_counter() - start
    return result, report


def _nothing_done(reports: Sequence[PassReport]) -> list[str]:
    """A note for every pass that met sites and could rewrite none."""
    notes = []
    for item in reports:
        if item.declined and not item.applied:
            codes = Counter(declined.code for declined in item.declined)
            why = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
            notes.append(f"{item.name} changed nothing: it declined {why}")
    return notes


def verify(
    original: nn.Module | Graph | str | Path,
    result: Any,
    inputs: tuple[Any, ...] | Sequence[str] = (),
    *,
    seed: int = 0,
    factory: str | None = None,
    trust_modules: Sequence[str] = (),
    trust_pickle: bool = False,
    batch: Literal["dynamic", "static"] = "dynamic",
) -> Check:
    """Does ``result`` compute what ``original`` computes?

    Args:
        original: a module, a captured graph, or any MODEL that `convert` takes.
        result: a graph, a module, what `convert` returned, an ``.onnx`` file, or another MODEL.
        inputs: example inputs (tensors, which are judged too) or `--input` texts; not needed for a captured
            graph.

    Returns:
        The verdict; for an ONNX file that of the worse of the two optimisation levels.

    Raises:
        LoadError: a model or the ONNX file cannot be read. CaptureError: the original cannot be captured.
        UsageError: the result does not run on the original's inputs.
    """
    is_file = isinstance(result, (str, Path)) and Path(result).suffix == ".onnx"
    if is_file and not Path(result).is_file():
        raise LoadError("there is no such file", where=str(result))
    given: dict[str, Any] = {
        "factory": factory,
        "trust_modules": trust_modules,
        "trust_pickle": trust_pickle,
    }
    graph = (
        original if isinstance(original, Graph) else capture_model(original, inputs, batch, **given)
    )
    verifier = Verifier(graph, seed, own_samples(graph, inputs))
    if isinstance(result, nn.Module):
        # containers without a forward, as in captured graphs, have no mode
        parts = (part for part in result.modules() if type(part) is not nn.Module)
        training = any(part.training for part in parts if not isinstance(part, fx.GraphModule))
        return _rounding(verifier, share_parameters(result).eval() if training else result)
    result = getattr(result, "graph", result)
    if isinstance(result, Graph):
        return _rounding(verifier, result)
    if not is_file:
        return _rounding(verifier, capture_model(str(result), inputs, batch, **given))
    try:
        return max(runtime_checks(verifier, Path(result)), key=_excess)
    except ExportError as error:
        raise LoadError(error.what, where=error.where, found=error.found) from error


def bisect(
    graph: Graph,
    pipeline: str | Sequence[Pass],
    *,
    verifier: Verifier | None = None,
    progress: Progress | None = None,
) -> Culprit | None:
    """The first pass, and the first rewrite in it, after which the verdict fails; None if none does."""
    passes = parse(pipeline) if isinstance(pipeline, str) else list(pipeline)
    return _bisect(graph, passes, verifier or Verifier(graph), progress)


def capture_model(
    model: Any,
    inputs: Sequence[Any] = (),
    batch: Literal["dynamic", "static"] = "dynamic",
    **loading: Any,
) -> Graph:
    """Load any MODEL and capture it; ``loading`` goes to `normfold.load.load`."""
    loaded = load(model, inputs=inputs, **loading)
    return capture_loaded(loaded, batch)


def capture_loaded(
    loaded: Any, batch: Literal["dynamic", "static"], axes: Sequence[str] = ()
) -> Graph:
    """Capture what `normfold.load.load` returned; its notes travel with the graph.

    ``axes`` names more dynamic axes, each as ``NAME:AXIS``.
    """
    if batch not in ("dynamic", "static"):
        raise UsageError("`batch` is `dynamic` or `static`", found=f"`{batch}`")
    if loaded.exported is not None:
        graph = _capture(loaded.exported, loaded.args, loaded.kwargs)
    else:
        wanted = _axes(axes)
        example = (loaded.module, loaded.args, loaded.kwargs)
        free = batch == "dynamic"
        dynamic = dynamic_axes(*example, free, wanted) if free or wanted else None
        graph = _capture(*example, "batch" if free and not wanted else dynamic)
    graph.notes = [*loaded.notes, *graph.notes]
    return graph


def _axes(texts: Sequence[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for text in texts:
        name, colon, axes = text.rpartition(":")
        if not colon or not name or not all(axis.isdigit() for axis in axes.split(",")):
            raise UsageError(
                "a dynamic axis cannot be read",
                found=f"`{text}`",
                hint="write NAME:AXIS, as in `input_ids:1`",
            )
        found.setdefault(name, set()).update(map(int, axes.split(",")))
    return found


def runtime_checks(verifier: Verifier, path: Path, budget: float | None = None) -> list[Check]:
    """Verdicts of an ONNX file in onnxruntime, with all graph optimisations and with none."""
    from normfold.targets.runtime import RuntimeSession

    checks = []
    for level in ("all", "none"):
        session: Any = RuntimeSession(path, level)
        checks.append(verifier.outputs(f"onnxruntime-{level}", session.run, budget))
        del session  # before the next one reads the weights again
    return checks


def own_samples(graph: Graph, inputs: Sequence[Any]) -> list[tuple[Any, ...]] | None:
    """The user's own tensors as a case of the verifier's, if there is one for each input of the graph."""
    whole = len(inputs) == len(pytree.tree_leaves((graph.args, graph.kwargs)))
    tensors = bool(inputs) and all(isinstance(item, Tensor) for item in inputs)
    return [tuple(inputs)] if whole and tensors else None


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


def _require_mode(mode: str) -> None:
    if mode not in ("final", "each", "off"):
        raise UsageError("`verify` is `final`, `each` or `off`", found=f"`{mode}`")
