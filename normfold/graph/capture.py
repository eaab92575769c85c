"""Capture: nn.Module and example inputs to a Graph, through torch.export."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from normfold.errors import CaptureError, UsageError
from normfold.graph import expressions
from normfold.graph.graph import Graph, is_symbolic
from normfold.graph.names import require_printable, with_plain_names
from normfold.graph.provenance import FRAME, is_user_file

BATCH = 2  # the smallest size that torch.export does not specialise


def capture(
    module: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    dynamic: Any = "batch",
) -> Graph:
    """Capture a network once as a graph of ATen calls.

    Args:
        module: the network, or an exported program (then ``dynamic`` is what it was exported with). A module
            in train mode is captured in eval mode, from a copy that shares its parameters.
        args, kwargs: example inputs. Where the batch is dynamic their first size must be at least 2.
        dynamic: ``"batch"`` (axis 0 of every tensor input that has the common batch size), ``None`` for fixed
            sizes, or a ``dynamic_shapes`` specification as ``torch.export.export`` takes it.

    Raises:
        CaptureError: the network cannot be captured, or a size asked to be dynamic became fixed. The message
            carries the user's own line.
    """
    kwargs = dict(kwargs or {})
    if isinstance(module, ExportedProgram):
        return _from_program(module, args, kwargs)
    require_printable(name for name, _ in module.named_modules())
    require_printable(name for name in module.state_dict(keep_vars=True))
    notes = []
    original = module
    if any(part.training for part in module.modules()):
        original = share_parameters(module).eval()
        notes.append("the model was in train mode: captured in eval mode from a copy")
    # torch.export guards the tensor behind a view, and then cannot find it
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda leaf: leaf.clone() if leaf._is_view() else leaf, (args, kwargs)
    )
    shapes = dynamic_axes(original, args, kwargs) if dynamic == "batch" else dynamic
    program = _export(original, args, kwargs, shapes)
    graph = _from_program(program, args, kwargs)
    graph.original, graph.notes = original, notes
    if dynamic != "batch":
        graph.dynamic_shapes = dynamic
    if shapes is not None:
        _check_dynamic(graph, shapes)
    return graph


def share_parameters(module: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers are the given module's own tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def dynamic_axes(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: bool = True,
    axes: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Any:
    """A ``dynamic_shapes`` specification: axis 0 of what has the batch size, and ``axes`` of inputs by name.

    Raises:
        CaptureError: a dynamic batch of size 1. UsageError: no such input, or no such axis.
    """
    tensors = [
        leaf
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and leaf.dim()
    ]
    if not tensors:
        return None
    size = tensors[0].shape[0]
    if batch and size < BATCH:
        raise CaptureError(
            "a dynamic batch cannot be captured at size 1",
            found=f"first input of shape {tuple(tensors[0].shape)}",
            hint="give example inputs with a batch of 2, or ask for a fixed batch (`--batch static`)",
        )
    # torch.export wants the structure of the bound call: keywords by name, *args as one tuple
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    for name, wanted in axes.items():
        leaf = bound.get(name)
        if not isinstance(leaf, Tensor) or any(not 0 <= axis < leaf.dim() for axis in wanted):
            shapes = ", ".join(f"{key} {_shape(value)}" for key, value in bound.items())
            raise UsageError(
                f"`{name}` has no axis {', '.join(map(str, sorted(wanted)))} to be dynamic",
                found=f"inputs: {shapes}",
                hint="write NAME:AXIS, as in `--dynamic input_ids:1`",
            )

    def spec(leaf: Any, free: Collection[int]) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        first = {0} if batch and leaf.dim() and leaf.shape[0] == size else set()
        return dict.fromkeys(sorted(first | set(free)), Dim.DYNAMIC)

    return {
        name: pytree.tree_map(lambda leaf, name=name: spec(leaf, axes.get(name, ())), value)
        for name, value in bound.items()
    }


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _export(module: nn.Module, args: Any, kwargs: Any, shapes: Any) -> ExportedProgram:
    first: Exception | None = None
    for strict in (False, True):
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(
                    module, args, kwargs, dynamic_shapes=shapes, strict=strict
                )
        except (
            Exception
        ) as error:  # torch.export raises dozens of types, some of them bare RuntimeErrors
            first = first or error
    assert first is not None
    raise _capture_error(first) from first


def _capture_error(error: Exception) -> CaptureError:
    text = str(error)
    frames = [frame for frame in FRAME.finditer(text) if is_user_file(frame["file"])]
    trace = error.__traceback__
    where = ""
    if frames:
        where = f"{frames[-1]['file']}:{frames[-1]['line']}: {frames[-1]['code'].strip()}"
    while trace is not None:
        code = trace.tb_frame.f_code
        if not frames and is_user_file(code.co_filename) and "normfold" not in code.co_filename:
            where = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    reason = next(
        (line.strip() for line in text.splitlines() if line.strip()), type(error).__name__
    )
    if "specialized" in text or "Constraints violated" in text or "not DYNAMIC" in text:
        hint = "the network fixes a size that was asked to be dynamic: use `--batch static`, or mend that line"
    else:
        hint = "run `normfold doctor MODEL`: it uses torch.export.draft_export to list every obstacle at once"
    return CaptureError(
        "torch.export could not capture the network",
        where=where or None,
        found=reason[:500],
        hint=hint,
    )


def _from_program(program: ExportedProgram, args: Any, kwargs: Any) -> Graph:
    if not args and not kwargs and program.example_inputs is not None:
        args, kwargs = program.example_inputs
    with quiet():
        program, own_names = with_plain_names(program)
        module = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    expressions.hoist(module.graph)
    inputs = tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    graph = Graph(module, tuple(args), dict(kwargs), None, inputs, _output_names(module, program))
    graph.own_names = own_names
    if any(is_symbolic(size) for node in _placeholders(graph) for size in _sizes(node)):
        graph.dynamic_shapes = _program_shapes(graph)
    graph.recompile()
    return graph


def _output_names(module: fx.GraphModule, program: ExportedProgram) -> tuple[str, ...]:
    """Dictionary keys where the network returns a dictionary, else the names that the exporter gives."""
    spec = program.call_spec.out_spec
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]
    if spec is not None and spec.context and len(spec.context or ()) == len(leaves):
        keys = spec.context[0] if isinstance(spec.context, tuple) else spec.context
        if (
            isinstance(keys, list)
            and len(keys) == len(leaves)
            and all(isinstance(key, str) for key in keys)
        ):
            return tuple(keys)
    return tuple(leaf.name for leaf in leaves)


def _placeholders(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _program_shapes(graph: Graph) -> Any:
    """The dynamic_shapes specification that a loaded program was exported with."""
    specs = [
        {axis: Dim.DYNAMIC for axis, size in enumerate(_sizes(node)) if is_symbolic(size)}
        for node in _placeholders(graph)
    ]
    leaves, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    positional, named = pytree.tree_unflatten(specs[: len(leaves)], tree)
    return dict(inspect.signature(graph.module.forward).bind(*positional, **named).arguments)


def _check_dynamic(graph: Graph, shapes: Any) -> None:
    leaves, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    positional, named = pytree.tree_unflatten(_placeholders(graph)[: len(leaves)], tree)
    assert graph.original is not None
    # keywords come in the order of the call, a specification in that of the signature
    bound = inspect.signature(graph.original.forward).bind(*positional, **named).arguments
    by_name = shapes if isinstance(shapes, dict) else dict(zip(bound, shapes, strict=False))
    for name, spec in by_name.items():
        for node, axes in zip(pytree.tree_leaves(bound.get(name)), _leaves(spec), strict=False):
            _require_dynamic(node, axes or {})


def _require_dynamic(node: fx.Node, axes: dict[int, Any]) -> None:
    for axis, dim in axes.items():
        if dim is not None and not is_symbolic(_sizes(node)[axis]):
            raise CaptureError(
                f"axis {axis} of input `{node.name}` was asked to be dynamic and became fixed",
                found=f"shape {tuple(_sizes(node))}",
                hint="use `--batch static`, or remove what fixes the size in the model",
            )


def _leaves(shapes: Any) -> list[Any]:
    def is_spec(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict) and all(isinstance(key, int) for key in value)
        )

    return list(pytree.tree_leaves(shapes, is_leaf=is_spec))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's export chatter off the user's terminal; errors still raise."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # a failing trace prints the partial graph, on stderr too: the message is what the user wants
        silent = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
