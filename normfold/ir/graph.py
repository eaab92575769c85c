"""The graph that passes rewrite: a torch.fx GraphModule of ATen calls plus what capture knew."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import expressions, facts
from normfold.ir.sites import Site
from normfold.ir.states import State

# Size of what data decide (``x[mask]``, ``nonzero``), which no example input tells: not 1, which
# broadcasts, and with divisors enough for the usual splits.
STAND_IN = 12


@dataclass(frozen=True)
class Entry:
    """How an input that a pass took over relates to that of the original, which reads ``(x - mean) / std``.

    Attributes:
        mean, std: (C,), float64, along the second axis.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What the original reads, in float64, for an input of the graph."""
        rank = x.dim() - 2
        mean, std = (part.reshape(-1, *[1] * rank) for part in (self.mean, self.std))
        return (x.double() - mean) / std


@dataclass
class Graph:
    """A captured network.

    Attributes:
        module: GraphModule of ATen calls, parameters as ``get_attr`` nodes, callable like the original.
        args, kwargs: the example inputs it was captured with (batch 2 where the batch is dynamic).
        dynamic_shapes: the specification for ``torch.export``, or None when every size is fixed.
        input_names: the parameters of ``forward``, or paths in them (``batch.image``).
        output_names: of the tensors that are returned, by their place (``boxes``, ``maps.0``, ``output``).
        output_sources: names that the outputs have in the original, empty for one that a pass added; nothing where
            all are as they were.
        original: the module that was captured, in eval mode, sharing its parameters.
        sites: every norm and per-channel constant that was found, by path.
        notes: what capture did that the user should know.
        trials: flat inputs at other sizes, on which every verdict is based besides its own.
        samples: inputs, each ``(args, kwargs)``, that passes may measure on; None where there are none.
        states: what the graph as a whole is in, by the passes that ran.
        trainable: norms that a pass put in, by the path that their tensors have in the graph: the graph holds
            what they are in eval mode, `normfold.train` what they are in training.
        entries: inputs that are not those of the original, by name.
        own_names: names that parameters have in the network, by those that they have in ``module``, where they
            are no identifiers there.
    """

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    output_sources: tuple[str, ...] = field(default=(), kw_only=True)
    original: nn.Module | None = None
    sites: dict[str, Site] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    states: frozenset[State] = frozenset()
    trials: list[tuple[Any, ...]] = field(default_factory=list)
    samples: Sequence[Any] | None = None
    trainable: dict[str, nn.Module] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    own_names: dict[str, str] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def copy(self) -> Graph:
        """A graph of its own nodes that shares the parameter tensors."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch's own, on copying its pytree codegen
            module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
        module.meta.update(self.module.meta)
        for mine, twin in zip(self.nodes, module.graph.nodes, strict=True):
            facts.carry(mine, twin)
        return replace(
            self,
            module=module,
            sites=dict(self.sites),
            notes=list(self.notes),
            trainable=dict(self.trainable),
            entries=dict(self.entries),
        )

    def sample_inputs(self) -> list[list[Any]]:
        """Flat inputs of every sample; none where there are none.

        Raises:
            UsageError: the samples are not ``(args, kwargs)`` of the network.
        """
        if self.samples is None:
            return []
        found = [pytree.tree_leaves(sample) for sample in self.samples]
        wanted = len(pytree.tree_leaves((self.args, self.kwargs)))
        if not isinstance(self.samples, Sequence) or any(len(leaves) != wanted for leaves in found):
            raise UsageError(
                "the samples of the graph are not inputs of it",
                found=f"{type(self.samples).__name__} of {len(found)}; the network has {wanted} inputs",
                hint="`graph.samples = [(args, kwargs), ...]`: for one tensor, `[((x,), {})]`",
            )
        return found

    @property
    def baked(self) -> bool:
        """True if weights were rounded to their types once, even if something was rewritten since."""
        return State.BAKED in self.states

    @property
    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.module.graph.nodes)

    def recompile(self) -> None:
        """Drop dead nodes and unused parameters, check the graph, regenerate its code."""
        self.module.graph.eliminate_dead_code(_is_impure)
        self.module.graph.lint()
        self.module.recompile()

    def value(self, node: fx.Node) -> torch.Tensor:
        """Float64 value of a small parameter expression (for legality checks)."""
        return expressions.small_value(self.module, node)

    def parameter_bytes(self) -> int:
        """Bytes of every distinct tensor that the graph still refers to."""
        seen: dict[int, int] = {}
        for node in self.nodes:
            if node.op == "get_attr":
                tensor = expressions.fetch(self.module, str(node.target))
                seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(seen.values())


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def op_name(node: fx.Node) -> str:
    """Packet name without overload: ``aten.conv2d.padding`` is ``conv2d``; ops of others keep their namespace."""
    return _name_of(node.target) if node.op == "call_function" else node.op


@cache
def _name_of(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    if schema is not None:
        if schema.overload_name == "dtype" and schema.name == "aten::view":
            return "bitcast"  # shares its packet with the reshape, and nothing else
        name = str(schema.name)
        return name.removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The captured shape with symbolic sizes replaced by the sizes of the example inputs; () of a number."""
    return tuple(concrete(size) for size in getattr(node.meta["val"], "shape", ()))


def concrete(size: Any) -> int:
    """The example's value of a possibly symbolic size; a size that data decide has a stand-in."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is not None:
        return int(size.node.hint)
    env, expression = size.node.shape_env, size.node.expr
    hints = {
        free: env.create_symintnode(free, hint=None).node.hint for free in expression.free_symbols
    }
    return int(expression.subs({free: hint or STAND_IN for free, hint in hints.items()}))


def is_symbolic(size: Any) -> bool:
    """True if a size is a symbol, that is, may differ at run time."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Argument of an ATen call by schema name, positional or keyword, else its default."""
    schema = node.target._schema  # type: ignore[union-attr]
    for index, spec in enumerate(schema.arguments):
        if spec.name == name:
            if index < len(node.args) and not spec.kwarg_only:
                return node.args[index]
            if name in node.kwargs:
                return node.kwargs[name]
            return spec.default_value if spec.has_default_value() else default
    return default


def argument_index(node: fx.Node, name: str) -> int:
    """Position of an argument in the op's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [spec.name for spec in schema.arguments]
    return names.index(name)
