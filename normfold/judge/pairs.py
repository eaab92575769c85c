"""The two sides of a `bench`: each a network with inputs that both take, ready to run again and again."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.data.opening import capture_source, load_source
from normfold.domains.placed import device_of
from normfold.errors import EnvironmentMissing, ExportError, LoadError, UsageError
from normfold.ir import Graph
from normfold.ir.graph import is_symbolic
from normfold.ir.paths import named_leaves
from normfold.job import Source
from normfold.job.presets import preset
from normfold.judge.bench_inputs import KINDS, Inputs, different, merged, text_of, values_for
from normfold.load.api import key_of
from normfold.progress import Listener, Progress
from normfold.report import Report
from normfold.report.sites import site_statuses
from normfold.rewrite import parse, run_pipeline
from normfold.target import target as find_target
from normfold.targets.feeds import Signature
from normfold.targets.untrusted import require_own_data

_PLAIN = Source()


@dataclass(frozen=True)
class Pair:
    """Two forward passes on the same inputs, and in words what they are.

    ``wait`` returns when the device has done all that it was given.
    """

    a: Callable[[], object]
    b: Callable[[], object]
    names: tuple[str, str]
    runtime: str
    inputs: str
    threads: int | None
    wait: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()


@contextmanager
def in_onnxruntime(
    models: tuple[Any, Any],
    inputs: Inputs,
    *,
    threads: int | None,
    provider: str,
    say: Listener,
    tensors: Sequence[Tensor] = (),
    source: Source = _PLAIN,
) -> Iterator[Pair]:
    """Both in onnxruntime; what is not an ``.onnx`` file is exported as it is to a temporary one.

    ``tensors`` are inputs of the files in their order, and are used as they are.
    """
    from normfold.targets.runtime import RuntimeSession

    provider = _provider(provider)
    folder, notes = Path(tempfile.mkdtemp(prefix="normfold-bench-")), list[str]()
    try:
        paths = []
        for model, letter in zip(models, "ab", strict=True):
            if _is_onnx(model):
                paths.append(Path(model))
                continue
            say(Progress("exporting", text=_name(model)))
            paths.append(folder / f"{letter}.onnx")
            _, made = export_bare(capture_source(_of(source, model)), paths[-1])
            notes.append(f"{_name(model)} was exported as it is (preset `baked`) to be timed")
            notes += (f"{_name(model)}: {note}" for note in made.notes)
        sessions = []
        for path, model in zip(paths, models, strict=True):
            try:
                sessions.append(RuntimeSession(path, "all", threads, provider, spin=True))
            except ExportError as error:
                raise LoadError(error.what, where=_name(model), found=error.found) from error
        a, b = sessions
        signature, names_of_b = merged(a.signature(), b.signature())
        values = list(tensors) or values_for(signature, inputs)
        feeds: tuple[Any, Any] = (values, dict(zip(names_of_b, values, strict=True)))
        for letter, session, given in zip("AB", sessions, feeds, strict=True):
            try:
                session.run(given)
            except ExportError as error:
                raise UsageError(
                    f"{letter} does not run on these inputs",
                    where=str(session.path),
                    found=error.found,
                    hint="give others with `--input`",
                ) from error
        yield Pair(
            a.prepare(feeds[0]),
            b.prepare(feeds[1]),
            (_name(models[0]), _name(models[1])),
            f"onnxruntime {provider}",
            text_of([name for name, _, _ in signature], values),
            threads,
            notes=tuple(notes),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_torch(
    models: tuple[Any, Any],
    inputs: Inputs,
    *,
    threads: int | None,
    device: str | None,
    compiled: bool,
    say: Listener,
    source: Source = _PLAIN,
) -> Pair:
    """Both in torch, eager or through torch.compile, on the inputs of A."""
    place = device_of(device)
    for model in models:
        if _is_onnx(model):
            raise UsageError(
                "torch does not run ONNX files", where=str(model), hint="`--runtime ort` does"
            )
    say(Progress("loading", text=_name(models[0])))
    first, args, kwargs = _module(models[0], inputs, source)
    say(Progress("loading", text=_name(models[1])))
    try:
        second, own_args, own_kwargs = _module(models[1], inputs, source)
    except UsageError as error:
        raise different(error.found or error.what) from error
    names, leaves = _leaves(first, args, kwargs)
    _, own = _leaves(second, own_args, own_kwargs)
    args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(place), (args, kwargs))
    calls = []
    for module in (first, second):
        module.to(place)
        call = _call(torch.compile(module) if compiled else module, args, kwargs)
        calls.append(call)
        try:
            with torch.no_grad():
                module(*args, **kwargs)
        except Exception as error:  # anything that a network can raise
            found = f"{type(error).__name__}: {str(error).strip()[:300]}"
            if module is second and text_of(names, leaves) != text_of(names, own):
                raise different(f"B on the inputs of A: {found}") from error
            raise UsageError(f"the network does not run on {place.type}", found=found) from error
        if compiled:
            say(Progress("compiling"))
            _try_compiled(call)
    return Pair(
        calls[0],
        calls[1],
        (_name(models[0]), _name(models[1])),
        f"torch {'compiled' if compiled else 'eager'} {place.type}",
        text_of(names, leaves),
        torch.get_num_threads() if threads is None else threads,
        torch.cuda.synchronize if place.type == "cuda" else lambda: None,
    )


def in_tensorrt(models: tuple[Any, Any], inputs: Inputs, *, say: Listener) -> Pair:
    """Both engines on this machine's GPU; their inputs are there before, and outputs stay there."""
    from normfold.targets.tensorrt.engine import Engine

    engines = []
    for model in models:
        if not is_engine(model):
            raise UsageError(
                "TensorRT runs engines",
                where=_name(model),
                hint="`normfold convert MODEL --export trt` builds a `.engine` file",
            )
        if not Path(model).is_file():
            raise LoadError("there is no such file", where=str(model))
        say(Progress("opening", text=_name(model)))
        engines.append(Engine(model))
    a, b = engines
    signature, names_of_b = merged(_signature(a), _signature(b))
    values = values_for(signature, inputs)
    names = [name for name, _, _ in signature]
    return Pair(
        a.prepare(dict(zip(names, values, strict=True))),
        b.prepare(dict(zip(names_of_b, values, strict=True))),
        (_name(models[0]), _name(models[1])),
        f"{a.runtime} and {b.runtime}" if a.runtime != b.runtime else a.runtime,
        text_of(names, values),
        None,
        torch.cuda.synchronize,
    )


def _signature(engine: Any) -> Signature:
    """An engine's inputs; it does not keep the names of free sizes."""
    return [
        (
            item.name,
            tuple(
                size if size >= 0 else f"{item.name}:{axis}" for axis, size in enumerate(item.shape)
            ),
            KINDS.get(item.dtype, item.dtype),
        )
        for item in engine.bindings
        if item.kind == "input"
    ]


def export_bare(
    graph: Graph, path: Path, opset: int | None = None, target: str = "ort-x86"
) -> tuple[Graph, Report]:
    """Write a captured graph as it is: only baked, in types that the target has; the graph given is untouched."""
    from normfold.targets.floats import widened
    from normfold.targets.onnx import export_onnx

    wide, note = widened(graph, find_target(target))
    bare, passes = run_pipeline(wide, parse(preset("baked")))
    exported = export_onnx(bare, path, opset=opset, target=target)
    return bare, Report(
        passes=passes,
        sites=site_statuses(bare, passes),
        notes=[*bare.notes, *filter(None, [note]), *exported.notes],
        census=dict(exported.census.ops),
        opset=exported.opset,
        parameters_after=bare.parameter_bytes(),
    )


def _provider(name: str) -> str:
    """onnxruntime's name of an execution provider: ``cpu``, ``cuda`` and so on, or the whole name."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissing(
            "onnxruntime is not installed", hint="`pip install onnxruntime`"
        ) from error

    def short(provider: str) -> str:
        return provider.lower().removesuffix("executionprovider")

    every = {short(provider): provider for provider in onnxruntime.get_all_providers()}
    found: str | None = every.get(short(name))
    if found is None:
        close = difflib.get_close_matches(short(name), every, 1)
        raise UsageError(
            f"onnxruntime has no execution provider `{name}`",
            hint=f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(sorted(every))}",
        )
    available = onnxruntime.get_available_providers()
    if found not in available:
        raise EnvironmentMissing(
            f"the installed onnxruntime was built without `{found}`",
            found=f"it has {', '.join(available)}",
            hint="for CUDA and TensorRT: `pip install onnxruntime-gpu`",
        )
    return found


def _of(source: Source, model: Any) -> Source:
    return replace(source, model=model, key=key_of(model, source.key))


def _module(
    model: Any, inputs: Inputs, source: Source
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if isinstance(model, Graph):
        return model.module, *_of_size(model, inputs.batch)
    loaded = load_source(_of(source, model), inputs.batch)
    return loaded.module, loaded.args, loaded.kwargs


def _of_size(graph: Graph, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs of a graph, with as many rows where their number is free."""
    leaves, structure = pytree.tree_flatten((graph.args, graph.kwargs))
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    sized = []
    for node, leaf in zip(nodes, leaves, strict=True):
        free = isinstance(leaf, Tensor) and leaf.dim() and is_symbolic(node.meta["val"].shape[0])
        sized.append(leaf[torch.arange(batch) % len(leaf)] if free else leaf)
    args, kwargs = pytree.tree_unflatten(sized, structure)
    return args, kwargs


def _call(module: Any, args: Any, kwargs: Any) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    return call


def _try_compiled(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # inductor raises what the compiler behind it raises
        raise EnvironmentMissing(
            "torch.compile does not work here for this network",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            hint="omit `--compile` to time eager mode",
        ) from error


def _leaves(module: nn.Module, args: Any, kwargs: Any) -> tuple[list[str], list[Any]]:
    """Names and values of the flat inputs."""
    found = named_leaves(module.forward, args, kwargs)
    return [name for name, _ in found], [leaf for _, leaf in found]


def _is_onnx(model: Any) -> bool:
    if not isinstance(model, (str, Path)) or Path(model).suffix != ".onnx":
        return False
    if not Path(model).is_file():
        raise LoadError("there is no such file", where=str(model))
    require_own_data(Path(model))
    return True


def is_engine(model: Any) -> bool:
    """Does the name say that it is a TensorRT engine?"""
    return isinstance(model, (str, Path)) and Path(model).suffix == ".engine"


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else f"a `{type(model).__name__}`"
