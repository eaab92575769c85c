"""What torch.export took for granted about the sizes that stay free, and sizes for which it holds.

A trace follows one branch of every `if` on a size. The conditions under which it would be the same trace are kept
as guards on the symbols of the graph; at other sizes the graph is not the network, or does not run.
"""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx

from normfold.ir.graph import Graph, is_symbolic
from normfold.ir.provenance import is_user_file

_AT = re.compile(r"(?:(?P<code>.*?)\s*# |\()?(?P<file>[^\s()]+):(?P<line>\d+)(?: in .*)?$")
_OWN = "the network was captured on the branch of its example, and is that only at such sizes"
_TORCHS = (
    "torch.export took this for granted, for no line of the network's own; the file is judged at such sizes only, "
    "and nothing is known of others"
)
_REACH = 4  # sizes up to so many times the example's are looked at for a rule


@dataclass
class Guard:
    """A condition on sizes (a sympy expression), and the user's source line that asks for it, or nothing."""

    condition: Any
    line: str

    @property
    def symbols(self) -> set[Any]:
        return set(self.condition.free_symbols)

    def holds(self, values: Mapping[Any, int]) -> bool:
        """False where it is known not to hold."""
        known = {str(symbol): value for symbol, value in values.items()}
        if self._code is not None and known.keys() >= {str(symbol) for symbol in self.symbols}:
            return bool(eval(self._code, {"math": math}, known))
        found = self.condition.xreplace(dict(values))
        return bool(found.is_Relational or found)  # a relation is left where a size is not known

    @cached_property
    def _code(self) -> CodeType | None:
        """The condition as Python, a hundred times as fast; None where it cannot be written so."""
        from torch.utils._sympy.printers import PythonPrinter

        try:
            code = compile(PythonPrinter().doprint(self.condition), "<guard>", "eval")
        except Exception:  # the printer has no word for a function
            return None
        allowed = {
            *map(str, self.symbols),
            "math",
            "floor",
            "ceil",
            "trunc",
            "sqrt",
            "min",
            "max",
            "abs",
        }
        return code if set(code.co_names) <= allowed else None


class Sizes:
    """The symbols among the sizes of a graph's inputs.

    Attributes:
        shapes: of every input: a number or a sympy expression for each size; None of what is not a tensor.
        names: of the inputs.
    """

    def __init__(self, graph: Graph) -> None:
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        self.names = graph.input_names or tuple(node.name for node in nodes)
        self.shapes = [_shape(node) for node in nodes]
        self._env = next(
            (size.node.shape_env for node in nodes for size in _sizes(node) if is_symbolic(size)),
            None,
        )

    @cached_property
    def example(self) -> dict[Any, int]:
        """The size that each symbol has in the example inputs, in the order of the inputs."""
        found: dict[Any, int] = {}
        for shape in self.shapes:
            for size in shape or ():
                for symbol in sorted(getattr(size, "free_symbols", ()), key=str):
                    hint = (
                        self._env.backed_var_to_val.get(symbol) if self._env is not None else None
                    )
                    found.setdefault(symbol, int(hint) if hint is not None else 2)
        return found

    @cached_property
    def batch(self) -> Any:
        """The symbol of the first size of the first input that has sizes; None where it is a number."""
        first = next((shape for shape in self.shapes if shape), None)
        size = first[0] if first else None
        return size if getattr(size, "is_symbol", False) else None

    @cached_property
    def guards(self) -> list[Guard]:
        """Every condition, once."""
        found: dict[Any, Guard] = {}
        for guard in getattr(self._env, "guards", ()):
            found.setdefault(guard.expr, Guard(guard.expr, _line(guard)))
        return list(found.values())

    def accepts(self, values: Mapping[Any, int], of: Any = None) -> bool:
        """True if the graph is known to be the network at these sizes, as far as guards (``of`` a symbol) say."""
        limits = getattr(self._env, "var_to_range", {})
        for symbol, value in values.items():
            known = limits.get(symbol)
            if known is not None and not known.lower <= value <= known.upper:
                return False
        if any(size is None or size < 1 for size in self._numbers(values)):
            return False
        asked = self.guards if of is None else self._guards_of(of)
        return all(guard.holds(values) for guard in asked)

    def may_be_one(self, symbol: Any) -> bool:
        """False where the network itself asks for more; torch takes 2 as the least of every free size."""
        known = getattr(self._env, "var_to_range", {}).get(symbol)
        return known is None or bool(known.lower <= 2)

    def _rules_of(self, symbol: Any) -> list[Guard]:
        """Without the guards that a size is not another one, as torch assumes of every free size and 1."""
        own = self._guards_of(symbol)
        return [guard for guard in own if getattr(guard.condition, "rel_op", "") != "!="]

    def _guards_of(self, symbol: Any) -> list[Guard]:
        return [guard for guard in self.guards if symbol in guard.symbols]

    def _numbers(self, values: Mapping[Any, int]) -> Iterator[int | None]:
        for place in range(len(self.shapes)):
            yield from self.shape_at(place, values) or ()

    def shape_at(self, place: int, values: Mapping[Any, int]) -> tuple[int, ...] | None:
        """The shape of an input at these sizes; None of what is not a tensor."""
        shape = self.shapes[place]
        if shape is None:
            return None
        return tuple(
            int(size.xreplace(dict(values))) if hasattr(size, "xreplace") else int(size)
            for size in shape
        )

    def axis_of_batch(self, place: int) -> int | None:
        """The axis of an input that follows the batch; None where none does, or a multiple of it."""
        shape = self.shapes[place] if place < len(self.shapes) else None
        if self.batch is None or shape is None:
            return None
        return next((axis for axis, size in enumerate(shape) if size == self.batch), None)

    def solve(self, place: int, shape: tuple[int, ...]) -> dict[Any, int] | None:
        """Values of the symbols by which an input has a shape, those of other symbols as in the example.

        None where the shape is not one that the graph takes.
        """
        own = self.shapes[place]
        if own is None or len(own) != len(shape):
            return None
        values = dict(self.example)
        for size, wanted in zip(own, shape, strict=True):
            if getattr(size, "is_symbol", False):
                values[size] = wanted
        if self.shape_at(place, values) != shape:
            return None
        # a trace takes for granted that no free size is 1; at a batch of 1 it is the same in all that matters
        many = (
            {**values, self.batch: max(2, values[self.batch])} if self.batch in values else values
        )
        return values if self.accepts(many) else None

    def words(self, place: int) -> list[str]:
        """The sizes of an input, those that are free by name."""
        return [
            str(size) if isinstance(size, int) else "batch" if size == self.batch else "free"
            for size in self.shapes[place] or ()
        ]

    @property
    def free(self) -> list[str]:
        """Every free axis besides the batch: ``x:2``."""
        return [axis for s in self.example if s != self.batch for axis in self.axes_of(s)]

    def axes_of(self, symbol: Any) -> list[str]:
        """Where a symbol is a size: ``x:2``."""
        return [
            f"{name}:{axis}"
            for name, shape in zip(self.names, self.shapes, strict=False)
            for axis, size in enumerate(shape or ())
            if size == symbol
        ]

    def rules(self) -> list[str]:
        """What free sizes must be, in words, with the source line where it is known."""
        found: dict[tuple[str, str], list[str]] = {}
        for symbol in self.example:
            text = self._rule(symbol)
            if text:
                lines = {
                    guard.line for guard in self.guards if symbol in guard.symbols and guard.line
                }
                where = f" ({'; '.join(sorted(lines)[:2])})" if lines else ""
                found.setdefault((text, where), []).extend(self.axes_of(symbol))
        return [
            f"{', '.join(f'`{axis}`' for axis in axes)}: {text}{where}: {_OWN if where else _TORCHS}"
            for (text, where), axes in found.items()
        ]

    def _rule(self, symbol: Any) -> str:
        own = self._rules_of(symbol)
        reach = range(1, _REACH * self.example[symbol] + 1)
        fits = [
            size
            for size in reach
            if all(guard.holds({**self.example, symbol: size}) for guard in own)
        ]
        if not fits:
            return ""
        if fits == list(range(fits[0], reach[-1] + 1)):  # no limit within reach
            limit = getattr(self._env, "var_to_range", {})[symbol].upper
            if limit.is_Integer:
                return f"at most {limit}"
            return f"at least {fits[0]}" if fits[0] > max(2, self.example[symbol] // 4) else ""
        if fits == list(range(fits[0], fits[-1] + 1)):
            return f"{fits[0]} to {fits[-1]}" if fits[0] > 2 else f"at most {fits[-1]}"
        ends = [size for size in fits if size + 1 not in fits and size < reach[-1]]
        step = math.gcd(*ends)
        less = next(size for size in range(fits[0], reach[-1]) if size + 1 not in fits) - fits[0]
        blocks = [end - back for end in ends for back in range(less, -1, -1)]
        if step > 1 and blocks == [size for size in fits if size <= ends[-1]]:
            return f"multiples of {step}" + (f", or up to {less} less" if less else "")
        return f"{', '.join(map(str, fits[:4]))}{', ...' if len(fits) > 4 else ''} only"


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _shape(node: fx.Node) -> tuple[Any, ...] | None:
    if not isinstance(node.meta.get("val"), Tensor):
        return None
    return tuple(
        size.node.expr if isinstance(size, torch.SymInt) else int(size) for size in _sizes(node)
    )


def _line(guard: Any) -> str:
    """``net.py:41 `if ph or pw``` of a guard that the user's code asked for; nothing for one of torch's own.

    torch gives the line as text with the end of the path, or as a frame.
    """
    match = _AT.search(str(guard.sloc.maybe_user_loc or ""))
    frame = guard.sloc.framework_loc
    if match is not None:
        file, line, code = match["file"], int(match["line"]), match["code"] or ""
        own = file.startswith("nn/") or "/torch/" in file
    elif hasattr(frame, "filename"):
        file, line = str(frame.filename), int(frame.lineno)
        code, own = linecache.getline(file, line).strip(), not is_user_file(file)
    else:
        return ""
    if own or "load/exportable.py" in file:  # our own hook, which ties the sizes of masks
        return ""
    return f"{Path(file).name}:{line}" + (f" `{code[:80]}`" if code else "")
