"""Capture: nn.Module and example inputs to a Graph, through torch.export."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from normfold.errors import CaptureError, UsageError
from normfold.ir import expressions
from normfold.ir.fresh import call, deepcopy
from normfold.ir.functional import functionalise
from normfold.ir.graph import Graph, is_symbolic
from normfold.ir.inline import NotLocal
from normfold.ir.logical import write_logically
from normfold.ir.names import require_printable, with_plain_names
from normfold.ir.outputs import has_dataclass, with_plain_outputs
from normfold.ir.paths import bind, distinct, input_names, named_leaves
from normfold.ir.paths import output_names as named_outputs
from normfold.ir.randomness import random_note
from normfold.ir.recurrent import decomposed, free_length
from normfold.ir.refusal import capture_error
from normfold.ir.shared import refused_write, require_apart, require_traceable
from normfold.ir.sizes import Sizes
from normfold.ir.traces import (
    Change,
    attributes_note,
    made,
    made_note,
    to_trace,
    warm,
    watched,
    writes_notes,
)

Axes = Mapping[str, Collection[int]]
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
        args, kwargs: example inputs; a tensor alone is the first one. Where the batch is dynamic their first size
            must be at least 2.
        dynamic: ``"batch"`` (see `dynamic_axes`), ``None`` for fixed sizes, or a ``dynamic_shapes`` specification
            as ``torch.export.export`` takes it.

    The network itself is not called: what a call leaves on modules and in buffers would become part of the graph.

    Raises:
        UsageError: something else than a network is given.
        CaptureError: the network cannot be captured, or a size asked to be dynamic became fixed. The message
            carries the user's own line.
    """
    if not isinstance(module, nn.Module | ExportedProgram):
        raise UsageError("only a module can be captured", found=type(module).__name__)
    args, kwargs = (args,) if isinstance(args, Tensor) else tuple(args or ()), dict(kwargs or {})
    if isinstance(module, ExportedProgram):
        return _from_program(module, args, kwargs)
    require_printable(name for name, _ in module.named_modules())
    require_printable(name for name in module.state_dict(keep_vars=True))
    notes: list[str] = []
    original = module
    if any(part.training for part in module.modules()):
        original = share_parameters(module).eval()
        notes.append("the model was in train mode: captured in eval mode from a copy")
    args, kwargs = _apart(args, kwargs)
    shapes = dynamic_axes(original, args, kwargs) if dynamic == "batch" else dynamic
    program, original = _export_plain(original, args, kwargs, shapes, notes)
    graph = _from_program(program, args, kwargs, input_names(original.forward, args, kwargs))
    graph.original, graph.notes = original, [*notes, *graph.notes]
    if dynamic != "batch":
        graph.dynamic_shapes = dynamic
    if shapes is not None:
        _check_dynamic(graph, shapes)
    return graph


def _apart(args: Any, kwargs: Any) -> Any:
    """Example inputs with memory of their own each.

    torch.export takes one tensor that is given twice for one input, and cannot find the tensor behind a view.
    """
    seen: set[int] = set()

    def own(leaf: Tensor) -> Tensor:
        memory = leaf.untyped_storage()._cdata
        if leaf._is_view() or memory in seen:
            return leaf.clone()
        seen.add(memory)
        return leaf

    return pytree.tree_map_only(Tensor, own, (args, kwargs))


def share_parameters(module: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers are the given module's own tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return deepcopy(module, {id(tensor): tensor for tensor in tensors})


def dynamic_axes(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: bool = True,
    axes: Axes = MappingProxyType({}),
    hoped: Axes = MappingProxyType({}),
) -> Any:
    """A ``dynamic_shapes`` specification.

    The batch is the first size of the first tensor. In other inputs the first axis of that size follows it where
    the network lets it; ``axes`` must stay free, ``hoped`` (such as a length) may.

    Args:
        axes, hoped: axes of inputs, by the name of the parameter or the path in it (``batch.image``).

    Raises:
        CaptureError: a dynamic batch of size 1.
    """
    leaves = named_leaves(module.forward, args, kwargs)
    tensors = {name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)}
    sized = {name: leaf for name, leaf in tensors.items() if leaf.dim()}
    if not sized:
        return None
    first, size = next((name, leaf.shape[0]) for name, leaf in sized.items())
    if batch and size < BATCH:
        raise CaptureError(
            "a dynamic batch cannot be captured at size 1",
            found=f"first input of shape {tuple(sized[first].shape)}",
            hint="give example inputs with a batch of 2, or ask for a fixed batch (`--batch static`)",
        )

    def spec(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        found: dict[int, Any] = {
            axis: Dim.AUTO for axis in hoped.get(name, ()) if axis < leaf.dim()
        }
        if batch and size in leaf.shape:
            found[list(leaf.shape).index(size)] = Dim.AUTO
        if batch and name == first:
            found[0] = Dim.DYNAMIC
        return dict(sorted((found | dict.fromkeys(axes.get(name, ()), Dim.DYNAMIC)).items()))

    _, tree = pytree.tree_flatten((args, kwargs))
    # torch.export wants the structure of the bound call: keywords by name, *args as one tuple
    specs, keywords = pytree.tree_unflatten([spec(*leaf) for leaf in leaves], tree)
    return bind(module.forward, specs, keywords)


def _export_plain(
    module: nn.Module, args: Any, kwargs: Any, shapes: Any, notes: list[str]
) -> tuple[ExportedProgram, nn.Module]:
    """The program, and the network that it is of: with dictionaries for the dataclasses that it returns."""
    try:
        return _export_warm(module, args, kwargs, shapes, notes)
    except CaptureError:
        if not _returns_dataclass(module, args, kwargs):
            raise
    return _export_warm(with_plain_outputs(module), args, kwargs, shapes, notes)


def _export_warm(
    module: nn.Module, args: Any, kwargs: Any, shapes: Any, notes: list[str]
) -> tuple[ExportedProgram, nn.Module]:
    """The program of a network; of one that makes its buffers at the first call, as it is after that."""
    changes: list[Change] = []
    program = _export(to_trace(module), args, kwargs, shapes, changes)
    first = made(program)
    if first:
        module, changes = warm(module, args, kwargs), []
        program = _export(to_trace(module), args, kwargs, shapes, changes)
        notes.append(made_note(first))
    again = made(program)
    if again:
        raise CaptureError(
            "every call of the network changes the size of its buffers",
            found=", ".join(map(str, again)),
            hint="a file has no state: give the network a table of one size",
        )
    notes += attributes_note(changes)
    return program, module


def _returns_dataclass(module: nn.Module, args: Any, kwargs: Any) -> bool:
    with torch.no_grad(), suppress(Exception):  # why the network does not run was said already
        return has_dataclass(call(module, *args, **kwargs))
    return False


def _export(
    module: nn.Module, args: Any, kwargs: Any, shapes: Any, changes: list[Change]
) -> ExportedProgram:
    """The program; attributes that a call changes are added to ``changes``."""
    errors: list[Exception] = []
    for strict in (False, True):
        # the strict mode would trace what watches, too
        watching = nullcontext() if strict else watched(module, changes)
        try:
            with quiet(), torch.no_grad(), free_length(), watching:
                return torch.export.export(
                    module, args, kwargs, dynamic_shapes=shapes, strict=strict
                )
        except (
            Exception
        ) as error:  # torch.export raises dozens of types, some of them bare RuntimeErrors
            errors.append(error)
    raise capture_error(errors) from errors[0]


def _from_program(
    program: ExportedProgram, args: Any, kwargs: Any, names: Sequence[str] = ()
) -> Graph:
    if not args and not kwargs and program.example_inputs is not None:
        args, kwargs = program.example_inputs
    with quiet():
        require_traceable(program)
        program, own_names = with_plain_names(program)
        program, module = _functional(program, own_names)
    _drop_writes(module)
    _fix_squeezes(module.graph)
    write_logically(module.graph)
    notes = writes_notes(program, own_names)
    expressions.hoist(module.graph)
    inputs = tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    if len(names) == len(inputs):
        inputs = tuple(names)
    outputs, left_out = _outputs(module, program)
    outputs, renamed = distinct(outputs, inputs)
    graph = Graph(
        module, tuple(args), dict(kwargs), None, inputs, outputs, notes=notes + left_out + renamed
    )
    graph.own_names = own_names
    if any(is_symbolic(size) for node in placeholders(graph) for size in _sizes(node)):
        graph.dynamic_shapes = _program_shapes(graph)
    graph.recompile()
    graph.notes += [*Sizes(graph).rules(), *random_note(graph)]
    return graph


def _functional(
    program: ExportedProgram, own_names: Mapping[str, str]
) -> tuple[ExportedProgram, fx.GraphModule]:
    """A program and its module, in which no op writes, but into buffers and inputs at the end."""
    try:
        module = program.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        functionalise(module)
    except NotLocal:
        require_apart(program, own_names)
        try:
            program = decomposed(program, program.run_decompositions)
        except Exception as error:  # what torch.export let pass and its decompositions do not
            raise refused_write(program) or capture_error([error]) from error
        module = program.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
    return program, module


def _drop_writes(module: fx.GraphModule) -> None:
    """Take what a call writes into buffers and inputs out of the graph: a file has no state."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.copy_.default and node.args[0].op != "call_function":
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)


def _fix_squeezes(graph: fx.Graph) -> None:
    """Let a squeeze remove what it removed at capture: a file has outputs of one rank, whatever the sizes."""
    for node in list(graph.nodes):
        if str(node.target) not in (
            "aten.squeeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
        ):
            continue
        shape = _sizes(node.args[0])
        asked = node.args[1] if len(node.args) > 1 else range(len(shape))
        named = [asked] if isinstance(asked, int) else asked
        axes = [axis % len(shape) for axis in named] if shape else []
        kept = [axis for axis in axes if not is_symbolic(shape[axis]) and shape[axis] == 1]
        if len(kept) == len(axes):
            continue
        node.target, node.args = torch.ops.aten.squeeze.dims, (node.args[0], kept)
        if not kept:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _outputs(module: fx.GraphModule, program: ExportedProgram) -> tuple[tuple[str, ...], list[str]]:
    """Names of the tensors that the network returns, by their place, and notes on what else it returns."""
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    leaves, spec = pytree.tree_flatten(output.args[0])
    own = program.call_spec.out_spec
    if own is not None and own.num_leaves == len(leaves):
        spec = own
    names, left_out = [], []
    for name, leaf in named_outputs(pytree.tree_unflatten(leaves, spec)):
        if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor):
            names.append(name)
        else:
            what = "a size" if isinstance(leaf, fx.Node) else f"`{leaf!r}`"[:60]
            left_out.append(f"`{name}` ({what})")
    if not names:
        raise CaptureError(
            "the network returns no tensor",
            found=", ".join(left_out) or "nothing",
            hint="a file has tensors as outputs: return one from `forward`",
        )
    note = f"left out of the files, as they are not tensors: {', '.join(left_out)}"
    return tuple(names), [note] if left_out else []


def placeholders(graph: Graph) -> list[fx.Node]:
    """The inputs of a graph, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _program_shapes(graph: Graph) -> Any:
    """The dynamic_shapes specification that a loaded program was exported with."""
    specs = [
        {axis: Dim.DYNAMIC for axis, size in enumerate(_sizes(node)) if is_symbolic(size)}
        for node in placeholders(graph)
    ]
    leaves, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    positional, named = pytree.tree_unflatten(specs[: len(leaves)], tree)
    return dict(inspect.signature(graph.module.forward).bind(*positional, **named).arguments)


def _check_dynamic(graph: Graph, shapes: Any) -> None:
    leaves, tree = pytree.tree_flatten((graph.args, graph.kwargs))
    positional, named = pytree.tree_unflatten(placeholders(graph)[: len(leaves)], tree)
    assert graph.original is not None
    # keywords come in the order of the call, a specification in that of the signature
    bound = inspect.signature(graph.original.forward).bind(*positional, **named).arguments
    by_name = shapes if isinstance(shapes, dict) else dict(zip(bound, shapes, strict=False))
    for name, spec in by_name.items():
        for node, axes in zip(pytree.tree_leaves(bound.get(name)), _leaves(spec), strict=False):
            _require_dynamic(node, axes or {})


def _require_dynamic(node: fx.Node, axes: dict[int, Any]) -> None:
    for axis, dim in axes.items():
        if dim not in (None, Dim.AUTO) and not is_symbolic(_sizes(node)[axis]):
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
