"""Where a tensor of the result belongs in the state dict of the original.

The original reads a parameter through an expression: itself, a turned or cut copy of it, or something computed of
several. Where elements are only moved, running the expression on the numbers of the elements tells which element
goes where. An expression ``s * w + t`` is solved for ``w``. Others belong to modules that compute their weight
(weight norm, spectral norm, weight standardisation), which become plain ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from normfold.errors import ExportError
from normfold.ir import Graph
from normfold.ir.expressions import evaluate, fetch, is_static, order
from normfold.ir.graph import argument, op_name
from normfold.ir.provenance import module_path
from normfold.ops.reads import reads_shape_only
from normfold.ops.table import Kind, row_of
from normfold.targets.computed import made_plain
from normfold.targets.surgery import Surgery

_CLOSE = 1e-6  # a solved value, put back into its expression


def refusal(what: str, hint: str = "") -> ExportError:
    """The error for what no module of the original expresses."""
    return ExportError(
        "the result cannot be expressed by the modules of the original",
        found=what,
        hint=hint or "`--export pt2` writes it as a program of PyTorch, which any graph is",
    )


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an op by name; those of a list are numbered. Empty for what has no schema."""
    schema = getattr(node.target, "_schema", None)
    found: dict[str, Any] = {}
    for spec in schema.arguments if schema is not None else ():
        value = argument(node, spec.name)
        if isinstance(value, (list, tuple)):
            found |= {f"{spec.name}.{place}": part for place, part in enumerate(value)}
        else:
            found[spec.name] = value
    return found


def own(node: fx.Node, name: str) -> fx.Node | None:
    """The parameter expression that an op reads as an argument."""
    value = arguments(node).get(name)
    return value if is_static(value) else None


class Slots:
    """New values of the original's parameters and buffers, by their names in its state dict."""

    def __init__(self, captured: Graph, result: Graph, surgery: Surgery) -> None:
        assert captured.original is not None
        self.original: nn.Module = captured.original
        self.captured, self.result, self.surgery = captured, result, surgery
        tensors = dict(self.original.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {
            **tensors,
            **dict(self.original.named_buffers(remove_duplicate=False)),
        }
        self.aliases: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.aliases.setdefault(id(tensor), []).append(name)
        self.values: dict[str, Tensor] = {}
        self.partial: dict[str, Tensor] = {}  # which elements are known
        self.made: dict[str, Tensor] = {}
        self.replaced: dict[str, dict[str, Tensor]] = {}  # state of modules that became others

    def result_value(self, node: fx.Node | None) -> Tensor | None:
        """Float64 value of a parameter expression of the result."""
        return None if node is None else torch.as_tensor(evaluate(self.result.module, node))

    def pair(self, node: fx.Node, twin: fx.Node) -> None:
        """One op of the original, and itself in the result: what it reads now is what its parameters become."""
        mine, theirs = arguments(node), arguments(twin)
        before: Any
        after: Any
        for name in mine.keys() | theirs.keys():
            before, after = mine.get(name), theirs.get(name)
            if not (is_static(before) or is_static(after)):
                continue
            if is_static(after) and before is None:
                self.make(node, name, self._cast(after))
            elif is_static(before) and after is None and name == "bias":
                self.assign(before, 0.0, node)
            elif is_static(before) and is_static(after):
                self._pair(before, after, node, name, twin)
            else:
                where = f"`{op_name(node)}` of `{module_path(node) or 'forward'}`"
                raise refusal(f"{where} reads something else than a parameter now")

    def _cast(self, node: fx.Node) -> Tensor:
        value = self.result_value(node)
        assert value is not None
        return value.to(node.meta["val"].dtype)

    def _pair(
        self, before: fx.Node, after: fx.Node, node: fx.Node, name: str, twin: fx.Node
    ) -> None:
        if not isinstance(before.meta.get("val"), Tensor):
            return
        baked, path = after.op == "get_attr", module_path(node)
        computed = before.op != "get_attr" and not _only_moves(before)
        if computed and baked and made_plain(self.original, self.result, self.surgery, node, name):
            made = self.replaced.setdefault(path, {})
            made[name] = self._cast(after)
            if path in self.surgery.layers and argument(twin, "bias") is not None:
                made["bias"] = self._cast(argument(twin, "bias"))
            return
        self.assign(
            before,
            fetch(self.result.module, str(after.target)) if baked else self._cast(after),
            node,
        )

    def assign(self, expression: fx.Node, value: float | Tensor, node: fx.Node) -> None:
        """Make a parameter expression of the original have a value.

        Args:
            value: one number for all elements, or as many as the expression has, in its order.

        Raises:
            ExportError: no values of the parameters give it, or another op needs other ones.
        """
        shape = expression.meta["val"].shape
        if isinstance(value, Tensor) and value.numel() == shape.numel():
            value = value.reshape(shape)
        elif not isinstance(value, Tensor) or value.numel() == 1:
            value = torch.full(shape, float(value), dtype=torch.float64)
        if expression.op == "get_attr" and self._known(str(expression.target)):
            key = self.key(str(expression.target), node)
            if value.shape == shape:
                self._claim(key, value, node)
            else:
                self._make(key, value)
            return
        if value.shape != shape:
            raise refusal(f"a tensor of another shape in `{module_path(node) or 'forward'}`")
        sources = [part for part in _sources(expression) if _is_float(part)]
        before = torch.as_tensor(evaluate(self.captured.module, expression))
        if _same(before, value, expression.meta["val"].dtype):
            sources = [part for part in sources if self._known(str(part.target))]
            if not _only_moves(expression):  # what it is computed of has to stay
                for source in sources:
                    key = self.key(str(source.target), node)
                    self._claim(key, self.tensors[key], node)
                return
            value = before
        if _only_moves(expression):
            self._scatter(expression, sources, value, before, node)
        else:
            self._solve(expression, sources, value, node)

    def make(self, node: fx.Node, name: str, value: Tensor) -> None:
        """A parameter of its own for an argument that the original does not give."""
        path = module_path(node)
        try:
            owner = self.original.get_submodule(path)
        except AttributeError:
            owner = self.original
        if name not in ("weight", "bias") or getattr(owner, name, owner) is not None:
            raise refusal(
                f"a `{name}` of `{op_name(node)}` in `{path or 'forward'}`, which has none"
            )
        self._make(f"{path}.{name}" if path else name, value)

    def _make(self, key: str, value: Tensor) -> None:
        known = self.made.setdefault(key, value)
        if known.shape != value.shape or not torch.equal(known, value):
            raise refusal(f"`{key}` would need two values: its module is called more than once")
        if key not in self.surgery.made:
            self.surgery.made.append(key)

    def replace(self, path: str, state: dict[str, Tensor | None]) -> None:
        """A module becomes another one, with this state."""
        self.replaced[path] = {name: value for name, value in state.items() if value is not None}

    def _known(self, target: str) -> bool:
        return self.captured.own_names.get(target, target) in self.tensors

    def key(self, target: str, node: fx.Node) -> str:
        """The name of a tensor in the module that reads it, where it has several."""
        name = self.captured.own_names.get(target, target)
        if name not in self.tensors:
            raise refusal(
                f"a constant in the code of `{module_path(node) or 'forward'}` has another value"
            )
        names, path = self.aliases[id(self.tensors[name])], module_path(node)
        return next((item for item in names if path and item.startswith(f"{path}.")), name)

    def _claim(self, key: str, value: Tensor, node: fx.Node) -> None:
        value = value.to(self.tensors[key].dtype)
        if key in self.values and not torch.equal(self.values[key], value):
            raise self._conflict(key, node)
        self.values[key] = value
        self.partial.pop(key, None)

    def _conflict(self, key: str, node: fx.Node) -> ExportError:
        return refusal(
            f"`{key}` would need two values, one of them at `{op_name(node)}` of `{module_path(node)}`"
        )

    def _scatter(
        self,
        expression: fx.Node,
        sources: list[fx.Node],
        value: Tensor,
        before: Tensor,
        node: fx.Node,
    ) -> None:
        """Elements that are only moved: the expression, run on their numbers, says where each of them goes."""
        numbers: dict[fx.Node, Any] = {}
        start, ranges = 1, list[tuple[str, int, int]]()
        for source in sources:
            size = source.meta["val"].shape
            end = start + size.numel()
            numbers[source] = torch.arange(start, end, dtype=torch.float64).reshape(size)
            ranges.append((self.key(str(source.target), node), start, end))
            start = end
        places = torch.as_tensor(evaluate(self.captured.module, expression, numbers))
        places, values = places.flatten().long(), value.flatten()
        fixed = places == 0  # in the code, as zeros for keys without a bias
        if not _same(before.flatten()[fixed], values[fixed], expression.meta["val"].dtype):
            raise refusal(
                f"a constant in the code of `{module_path(node) or 'forward'}` has another value"
            )
        for key, first, end in ranges:
            inside = (places >= first) & (places < end)
            self._write(key, places[inside] - first, values[inside], node)

    def _write(self, key: str, places: Tensor, values: Tensor, node: fx.Node) -> None:
        values = values.to(self.tensors[key].dtype)
        whole = key in self.values and key not in self.partial
        if key not in self.values:
            self.values[key] = self.tensors[key].detach().clone()
            self.partial[key] = torch.zeros(self.values[key].numel(), dtype=torch.bool)
        flat = self.values[key].reshape(-1)
        known = (
            self.partial[key][places] if not whole else torch.ones_like(places, dtype=torch.bool)
        )
        if not torch.equal(flat[places][known], values[known]):
            raise self._conflict(key, node)
        if not whole:
            flat[places] = values
            self.partial[key][places] = True
            if not torch.equal(flat[places], values):  # one element, read at two places
                raise self._conflict(key, node)

    def _solve(
        self, expression: fx.Node, sources: list[fx.Node], value: Tensor, node: fx.Node
    ) -> None:
        """s * w + t = value, element by element."""
        what = f"a computed parameter in the code of `{module_path(node) or 'forward'}`"
        if len(sources) != 1 or sources[0].meta["val"].numel() != value.numel():
            raise refusal(what)
        source = sources[0]

        def at(operand: Tensor) -> Tensor:
            known = {source: operand.double()}
            return torch.as_tensor(evaluate(self.captured.module, expression, known))

        zero = torch.zeros(source.meta["val"].shape)
        shift, slope = at(zero), at(zero + 1) - at(zero)
        found = ((value.double() - shift) / slope).reshape(zero.shape)
        error = (at(found) - value).abs().max() if found.numel() else torch.zeros(())
        if not float(error) <= _CLOSE * max(1.0, float(value.abs().max())):
            raise refusal(what)
        self._claim(self.key(str(source.target), node), found, node)

    def finish(self) -> None:
        """Write the state dict of the changed network."""
        for key, known in self.partial.items():
            if not bool(known.all()) and not torch.equal(self.values[key], self.tensors[key]):
                raise refusal(
                    f"{int((~known).sum())} elements of `{key}` are not read at the sizes of the example inputs: "
                    "what they become is not known",
                    "capture with inputs that use all of them (`--input`), or with free sizes (`--dynamic`)",
                )
        state = {}
        for key, tensor in self.original.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):
                raise refusal(f"`{key}` of the state dict is not a tensor")
            state[key] = tensor.detach()
        lost = [key for key in self.values if key not in state and not self._inside(key)]
        for key in lost:
            if not torch.equal(self.values[key], self.tensors[key]):
                self.surgery.buffers.append(key)
                state[key] = self.values[key]
        for names in self.aliases.values():
            self._share(names, state)
        self.surgery.own = {key: value for key, value in state.items() if key not in lost}
        state |= self.made
        for path, made in self.replaced.items():
            self._exchange(path, made, state)
        self.surgery.made = [key for key in self.surgery.made if not self._inside(key)]
        self.surgery.state = state

    def _exchange(self, path: str, made: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """The state of a module that became another one."""
        plain = [name for owner, name, _ in self.surgery.plain if owner == path]
        for key in list(state):
            leaf = key.removeprefix(f"{path}.")
            if leaf == key:
                continue
            if not plain or any(_belongs(leaf, name) for name in plain):
                del state[key]
        for name, value in made.items():
            like = self.tensors.get(f"{path}.{name}")
            dtype = value.dtype if like is None else like.dtype
            norm = self.surgery.norms.get(path)
            state[f"{path}.{name}"] = value.to(dtype if norm is None else norm.dtype)

    def _inside(self, key: str) -> bool:
        """True for what belongs to a module that became another one."""
        return any(
            key.startswith(f"{path}.")
            and not any(owner == path for owner, _, _ in self.surgery.plain)
            for path in self.replaced
        )

    def _share(self, names: list[str], state: dict[str, Tensor]) -> None:
        """One tensor under several names: they keep sharing it, unless their readers need different ones."""
        names = [name for name in names if name in state]
        given = [name for name in names if name in self.values]
        first = given[0] if given else None
        for name in names:
            if first is None:
                if name != names[0]:
                    self.surgery.ties[name] = names[0]
                continue
            value = self.values.get(name, self.values[first])
            state[name] = value.detach()
            if name == first:
                continue
            if torch.equal(value, self.values[first]):
                self.surgery.ties[name] = first
            else:
                self.surgery.made.append(name)


def _same(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Equal but for the last bits of a type: one of them may have been rounded on the way."""
    if not before.is_floating_point():
        return torch.equal(before, after.to(before.dtype))
    before, after = before.double(), after.double()
    largest = float(before.abs().max()) if before.numel() else 0.0
    return bool(((before - after).abs() <= 4 * torch.finfo(dtype).eps * largest).all())


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def _sources(expression: fx.Node) -> list[fx.Node]:
    return [part for part in order(expression, ()) if part.op == "get_attr"]


def _only_moves(expression: fx.Node) -> bool:
    parts = [part for part in order(expression, ()) if part.op == "call_function"]
    return all(
        row_of(part).kind is Kind.MOVE
        or row_of(part).lookup
        or reads_shape_only(part, 0)
        or not _sources(part)
        or not part.meta["val"].is_floating_point()
        for part in parts
        if isinstance(part.meta.get("val"), Tensor)
    )


def _belongs(leaf: str, name: str) -> bool:
    """True for entries that a parametrised tensor has: ``parametrizations.weight.original0``, ``weight_g``."""
    return leaf.startswith(f"parametrizations.{name}.") or leaf in (
        name,
        *(f"{name}_{part}" for part in ("g", "v", "orig", "u")),
    )
