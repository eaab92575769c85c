"""Which records of a pickle may become objects: admitted by form, and everything else refused by name.

* Tensors: calls of torch's rebuilding functions, over storages of the file.
* Plain values: numbers, strings, containers, dtypes, devices, sizes, enums.
* Objects made without a constructor and given their state: see `normfold.load.admission`.
* Functions: those of `library.PURE`, also with fixed arguments (`functools.partial`).

The state of an object is data. It may not hide a method or a property of its class: admitted classes call
``self.parameters()`` of each other, and who decides what that is runs it. In the arguments of a call no name may
stand that the callee does not ask for.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Iterator
from functools import cache
from typing import Any

from torch import nn

from normfold.load.admission import Admission, Refused, refusal
from normfold.load.arrays import ARRAYS
from normfold.load.library import HOOKS, LOADING, LOADING_HOOKS
from normfold.load.records import Made, Name, Stored, key_of, parts_of
from normfold.load.tensors import FROM_TYPE, OF_BYTES, REBUILDS, STORAGES, TYPES, dtype_of

_CONTAINERS = {
    Name("builtins", "frozenset"), Name("builtins", "set"), Name("collections", "Counter"),
    Name("collections", "OrderedDict"), Name("collections", "defaultdict"), Name("collections", "deque"),
    Name("torch", "Size"),
}  # fmt: skip
_OF_SCALARS = {
    Name("_codecs", "encode"), Name("builtins", "bytearray"), Name("builtins", "complex"),
    Name("builtins", "range"), Name("builtins", "slice"), Name("pathlib", "PosixPath"),
    Name("pathlib", "PurePosixPath"), Name("pathlib", "PureWindowsPath"), Name("pathlib", "WindowsPath"),
    Name("torch", "device"), Name("torch.serialization", "_get_layout"),
}  # fmt: skip
PLAIN_TYPES = {
    Name("builtins", name) for name in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")
}  # fmt: skip
PARTIAL = Name("functools", "partial")
GETATTR = Name("builtins", "getattr")
ORDERED = Name("collections", "OrderedDict")
TENSOR_FUNCTIONS = Name("torch._C", "_VariableFunctionsClass")  # where `torch.relu` lives
_TORCH_PURE = {
    "abs", "celu", "cos", "exp", "relu", "rsqrt", "selu", "sigmoid", "sin", "softmax", "sqrt", "tanh",
}  # fmt: skip
_MEMBERS = ("_modules", "_parameters", "_buffers")
_MOST_LAYERS = 10_000  # recurrent layers are counted when their state is given
# Would answer for methods, or be called in place of `forward`.
_NEVER_STATE = {"attribute_map", "_compiled_call_impl", "_forward_unimplemented"}


def judge(root: Any, admission: Admission, where: str) -> None:
    """Admit all that ``root`` holds, or nothing; what is admitted is then known to ``admission``.

    Raises:
        LoadError: with every offending name and the reason for each.
    """
    rules = _Rules(admission)
    refused: dict[str, str] = {}
    seen: set[int] = set()
    left = [root]
    while left:
        record = left.pop()
        if id(record) in seen:
            continue
        seen.add(id(record))
        try:
            left.extend(rules.data(record))
        except Refused as reason:
            refused.setdefault(_label(record), str(reason))
            left.extend(part for part in parts_of(record) if not isinstance(part, Name))
    if refused:
        raise refusal(where, refused)


def _shown(name: Any) -> str:
    """A name for a message; other records are not written out, which could take all memory."""
    return repr(name[:60]) if isinstance(name, str) else f"of type {type(name).__name__}"


def _label(record: Any) -> str:
    if isinstance(record, Made):
        callee = record.callee
        if callee == GETATTR and isinstance(record.args, tuple) and len(record.args) == 2:
            name = record.args[1]
            return f"getattr(..., {name[:60]!r})" if isinstance(name, str) else "getattr(...)"
        return str(callee) if isinstance(callee, Name) else "<computed>"
    return str(record) if isinstance(record, Name) else f"<{type(record).__name__.lower()}>"


class _Rules:
    """Each method gives the records that must be data for its own to be admitted, or raises `Refused`."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission

    def data(self, record: Any) -> Iterable[Any]:
        if isinstance(record, Name):
            return self._name(record)
        if isinstance(record, Made):
            return self._new(record) if record.new else self._call(record)
        if isinstance(record, Stored):
            return require_storage(record)
        return parts_of(record)

    def _name(self, name: Name) -> Iterable[Any]:
        """A name that stands where a value stands."""
        if dtype_of(name) is None and name not in PLAIN_TYPES:
            self.admission.value(name)
        return ()

    def _call(self, record: Made) -> Iterable[Any]:
        callee, args = record.callee, record.args
        if not isinstance(callee, Name) or not isinstance(args, tuple):
            raise Refused("what is called, or what with, is computed")
        if callee in REBUILDS:
            _without_states(record)
            return _inert(args)
        if callee == OF_BYTES:
            _without_states(record)
            if len(args) != 1 or not isinstance(args[0], bytes):
                raise Refused("it would load something else than bytes")
            return ()
        if callee == FROM_TYPE:
            _without_states(record)
            if len(args) != 4 or not _is_one(args[0], REBUILDS) or not _is_one(args[1], TYPES):
                raise Refused("it would rebuild what is no tensor")
            return [*_inert(args[2]), *_inert(args[3])]
        if callee in ARRAYS:
            return [*ARRAYS[callee](record)]
        if callee == Name("collections", "defaultdict"):
            if not (
                args == ()
                or (len(args) == 1 and (args[0] is None or _is_one(args[0], PLAIN_TYPES)))
            ):
                raise Refused("the default of the dictionary is not a plain type")
            return _filled(record)
        if callee in _OF_SCALARS and not all(map(_is_scalar, args)):
            raise Refused("its arguments are not plain values")
        if callee in _CONTAINERS or callee in _OF_SCALARS:
            return [*_inert(args), *_filled(record)]
        if callee == PARTIAL:
            return self._partial(record)
        if callee == GETATTR:
            name = args[1] if len(args) == 2 and isinstance(args[1], str) else ""
            if name in _TORCH_PURE and args[0] == TENSOR_FUNCTIONS:
                return ()
            raise Refused("it looks an attribute up")
        if not self.admission.callee(callee) and not (len(args) == 1 and _is_scalar(args[0])):
            raise Refused("a lookup of more than one plain value")
        return [*_inert(args), *record.states, *_filled(record)]

    def _partial(self, record: Made) -> Iterable[Any]:
        """A function or a class with fixed arguments: ``(function,)``, and its state."""
        state = record.states[0] if len(record.states) == 1 else None
        if not isinstance(state, tuple) or len(state) != 4 or state[0] is not record.args[0]:
            raise Refused("it has another form than `functools.partial` writes")
        function, args, keywords, more = state
        if not isinstance(args, tuple) or not isinstance(keywords, dict) or more not in (None, {}):
            raise Refused("it has another form than `functools.partial` writes")
        return [function, *_inert(args), *_inert(keywords)]

    def _new(self, record: Made) -> Iterable[Any]:
        """An object made by ``__new__``, and the state that it is given."""
        callee = record.callee
        if not isinstance(callee, Name):
            raise Refused("what is made is computed")
        kind, trusted = self.admission.kind(callee)
        if record.args != () and not trusted:
            raise Refused("it would be made with arguments")
        if record.entries or record.items:
            raise Refused("it would be filled like a container")
        if trusted and not issubclass(kind, nn.Module):
            return [*_inert(record.args), *record.states]
        if len(record.states) != 1:
            raise Refused(f"it has {len(record.states)} states, not one")
        state = record.states[0]
        if not isinstance(state, dict):
            raise Refused("its state is not a dictionary")
        is_module = issubclass(kind, nn.Module)
        found: list[Any] = []
        for key, value in state.items():
            if not isinstance(key, str) or not key.isprintable() or key.startswith("__"):
                raise Refused(f"its attribute {_shown(key)} has no plain name")
            if key in _NEVER_STATE and value is not None:
                raise Refused(f"its attribute `{key}` would answer for its methods")
            if key == "num_layers" and isinstance(value, int) and value > _MOST_LAYERS:
                raise Refused(f"{value} layers")
            if key == "forward" and _own_forward(record, kind, value):
                continue
            if _hides(kind, key):
                raise Refused(f"its attribute `{key}` would hide that of its class")
            if is_module and key in _MEMBERS:
                found += self._members(key, value)
            elif is_module and key in LOADING_HOOKS:
                _loading(value)
            elif is_module and key.endswith("_hooks"):
                found += self._hooks(key, value)
            else:
                found.append(value)
        if is_module and not all(key in state for key in _MEMBERS):
            raise Refused("its state is not that of a module")
        return found

    def _members(self, key: str, value: Any) -> Iterator[Any]:
        for name, member in _items(key, value):
            plain = isinstance(name, str) and name.isprintable() and not name.startswith("__")
            if not plain or not name or "." in name:
                raise Refused(f"`{key}` has the name {_shown(name)}")
            if member is None:
                continue
            if not isinstance(member, Made):
                raise Refused(f"`{key}` holds what is neither a module nor a tensor")
            if not self._is_member(key, member):
                raise Refused(f"`{key}` holds `{_label(member)}`")
            yield member

    def _is_member(self, key: str, member: Made) -> bool:
        if key != "_modules":
            return not member.new and (
                _is_one(member.callee, REBUILDS) or member.callee == FROM_TYPE
            )
        try:
            return member.new and issubclass(self.admission.kind(member.callee)[0], nn.Module)
        except Refused:
            return True  # it is refused where it is judged itself

    def _hooks(self, key: str, value: Any) -> Iterator[Any]:
        for _, hook in _items(key, value):
            if hook is True:
                continue
            if not isinstance(hook, Made) or not hook.new or not _is_one(hook.callee, HOOKS):
                raise Refused(f"`{key}` would run `{_label(hook)}`")
            yield hook


def _own_forward(record: Made, kind: type, value: Any) -> bool:
    """``self.forward = self.forward_train``: another method of the same object, which takes the same inputs."""
    if not isinstance(value, Made) or value.callee != GETATTR or value.args[:1] != (record,):
        return False
    name = value.args[1] if len(value.args) == 2 else None
    if not isinstance(name, str) or not name.lstrip("_").startswith("forward"):
        return False
    return inspect.isfunction(inspect.getattr_static(kind, name, None))


@cache
def _hides(kind: type, key: str) -> bool:
    """True if a class has a method, a property or a class of this name, or a module the name of one.

    transformers' heads call ``getattr(self, self.base_model_prefix)``.
    """
    missing = object()
    value = inspect.getattr_static(kind, key, missing)
    if value is missing:
        return False
    if isinstance(value, str) and issubclass(kind, nn.Module):
        return True
    return callable(value) or hasattr(type(value), "__get__")


def _items(key: str, value: Any) -> list[tuple[Any, Any]]:
    """The items of a real dictionary; a subclass could answer anything."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, Made) and value.callee == ORDERED and value.args == () and not value.new:
        if value.states or value.entries:
            raise Refused(f"`{key}` has attributes of its own")
        return value.items
    raise Refused(f"`{key}` is not a dictionary")


def _loading(value: Any) -> None:
    """Hooks that save and load state dicts: they are not made, and may only be what libraries register."""
    left = [hook for _, hook in _items("hooks", value)]
    seen: set[int] = set()
    while left:
        hook = left.pop()
        if id(hook) in seen:
            continue
        seen.add(id(hook))
        if isinstance(hook, Made) and hook.new and _is_one(hook.callee, LOADING):
            for state in hook.states:
                if not isinstance(state, dict):
                    raise Refused("a hook without attributes")
                left += [part for key, part in state.items() if key in ("fn", "hook")]
        elif not _is_bound(hook):
            raise Refused(f"its hooks would run `{_label(hook)}`")


def _is_bound(hook: Any) -> bool:
    """A bound method of an object that is judged where it stands."""
    return (
        isinstance(hook, Made)
        and hook.callee == GETATTR
        and len(hook.args) == 2
        and isinstance(hook.args[0], Made)
        and hook.args[0].new
    )


def require_storage(record: Stored) -> Iterable[Any]:
    """Nothing more to admit; `Refused` where a reference is not to a tensor's numbers."""
    match record.id:
        case ("storage", Name() as kind, str(), str(), int()) if kind in STORAGES:
            return ()
        case ("storage", Name() as kind, str(), str(), int(), None) if kind in STORAGES:
            return ()
    raise Refused("a reference that is not to a tensor's numbers")


def _is_one(part: Any, names: Container[Name]) -> bool:
    """Whether a record is one of these names; others are not hashed."""
    return isinstance(part, Name) and part in names


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | bytearray | int | float)


def _inert(args: Any) -> list[Any]:
    """Arguments of a call, where no name stands but of a dtype."""
    left, found = [args], list[Any]()
    seen: set[int] = set()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Name):
            if dtype_of(part) is None:
                raise Refused(f"`{part}` stands among its arguments")
        elif isinstance(part, Made | Stored):
            found.append(part)
        else:
            left.extend(parts_of(part))
    return found


def _filled(record: Made) -> list[Any]:
    """What is put in a container that was made empty."""
    if record.states and not (
        record.callee == ORDERED and all(_is_metadata(state) for state in record.states)
    ):
        raise Refused("a container with attributes of its own")
    found = list(record.entries)
    for key, value in record.items:
        if isinstance(key, Made):
            raise Refused("a key that is not a plain value")
        try:
            found += [key_of(key), value]
        except ValueError as error:
            raise Refused(str(error)) from None
    return [*found, *record.states]


def _is_metadata(state: Any) -> bool:
    return isinstance(state, dict) and set(state) <= {"_metadata"}


def _without_states(record: Made) -> None:
    if record.states or record.entries or record.items:
        raise Refused("a tensor with a state of its own")
