"""A pickle as inert records: what it would import, call and store, without importing, calling or storing anything.

The machine has every instruction that Python's pickle module writes for protocols 2 to 5. Names that the pickle
would look up become `Name`, objects that it would make by a call become `Made`, tensors' storages become `Stored`;
numbers, strings and containers are themselves. Whether objects are then made of the records is decided by
`normfold.load.rules` and done by `normfold.load.making`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from normfold.errors import LoadError

LARGEST = 20_000_000  # instructions; the largest models that people pickle whole have some 100,000


@dataclass(frozen=True, order=True)
class Name:
    """A name that a pickle looks up: ``module.name``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """An object that a pickle makes by a call.

    Attributes:
        callee: what is called, as a rule a `Name`.
        args: its arguments.
        new: True for ``callee.__new__(callee, *args)``, False for ``callee(*args)``.
        states: what ``__setstate__`` is given, or ``__dict__`` is updated with.
        entries: what is appended to it, or added.
        items: what is stored in it by key.
    """

    callee: Any
    args: Any
    new: bool
    states: list[Any] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Stored:
    """A persistent id: the tuple by which `torch.save` refers to a tensor's storage."""

    id: Any


class Unknown(ValueError):
    """An instruction that is not read: ``code`` is its name."""

    def __init__(self, code: str) -> None:
        super().__init__(f"instruction {code}")
        self.code = code


class _Mark:
    pass


_MARK = _Mark()


def read_records(data: bytes, where: str) -> Any:
    """The records of one complete pickle.

    Raises:
        LoadError: the bytes are not a complete pickle, or have instructions that `torch.save` and
            `pickle.dump` do not write.
    """
    return read_first(data, where)[0]


def read_first(data: bytes, where: str) -> tuple[Any, int]:
    """The records of the first pickle in ``data``, and the number of bytes that it takes."""
    try:
        machine = _Machine()
        return machine.run(data)
    except Unknown as error:
        raise LoadError(
            "the file uses pickle instructions that safe loading does not have",
            where=where,
            found=error.code,
            hint="save it again with `torch.save(model, path)` and its default protocol",
        ) from None
    except (ValueError, IndexError, KeyError, EOFError, TypeError, OverflowError) as error:
        raise LoadError(
            "the file is truncated or not a pickle",
            where=where,
            found=(str(error) or type(error).__name__)[:200],
            hint="write it again with `torch.save` and check that the copy is complete",
        ) from None


class _Machine:
    """The stack machine of a pickle, on records."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> tuple[Any, int]:
        stack = self.stack
        for count, (code, argument, position) in enumerate(pickletools.genops(data)):
            name = code.name
            if name == "STOP":
                return self._pop(), int(position or 0) + 1
            if count > LARGEST:
                raise ValueError(f"more than {LARGEST} instructions")
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _PUT:
                self.memo[len(self.memo) if argument is None else int(argument)] = stack[-1]
            elif name in _GET:
                stack.append(self.memo[int(argument or 0)])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise Unknown(name)
        raise ValueError("it has no end")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is wanted")
        return value

    def _popped(self, size: int) -> list[Any]:
        return [self._pop() for _ in range(size)][::-1]

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (top := self.stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    def _global(self, argument: str) -> None:
        self.stack.append(name_of(*argument.split(" ")))

    def _stack_global(self, _: Any) -> None:
        self.stack.append(name_of(*self._popped(2)))

    def _call(self, _: Any) -> None:
        callee, args = self._popped(2)
        self.stack.append(Made(callee, args, new=False))

    def _new(self, _: Any) -> None:
        callee, args = self._popped(2)
        self.stack.append(Made(callee, args, new=True))

    def _new_with_keywords(self, _: Any) -> None:
        callee, args, keywords = self._popped(3)
        if keywords != {}:
            raise Unknown("NEWOBJ_EX with keywords")
        self.stack.append(Made(callee, args, new=True))

    def _build(self, _: Any) -> None:
        state = self._pop()
        made = self.stack[-1]
        if not isinstance(made, Made):
            raise ValueError("a state for what is not an object")
        made.states.append(state)

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, values))
        elif isinstance(target, list | Made):
            (target.entries if isinstance(target, Made) else target).extend(values)
        else:
            raise ValueError("an entry for what is not a list")

    def _set_item(self, _: Any) -> None:
        self._store(self._popped(2))

    def _set_items(self, _: Any) -> None:
        self._store(self._to_mark())

    def _store(self, values: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(target, dict):
                target[_key(key)] = value
            elif isinstance(target, Made):
                target.items.append((key, value))
            else:
                raise ValueError("an item for what is not a dictionary")

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._to_mark())

    def _dict(self, _: Any) -> None:
        values = self._to_mark()
        self.stack.append({})
        self._store(values)

    def _frozen(self, _: Any) -> None:
        self.stack.append(frozenset(map(_key, self._to_mark())))

    def _stored(self, _: Any) -> None:
        match self._pop():
            case ("module", Name() as name, *_):  # torch before 1.6 stored a class with its source
                self.stack.append(name)
            case other:
                self.stack.append(Stored(other))

    def _drop(self, _: Any) -> None:
        self.stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._to_mark()

    def _again(self, _: Any) -> None:
        self.stack.append(self.stack[-1])


def _tuple_of(size: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        machine.stack.append(tuple(machine._popped(size)))

    return step


def _empty(kind: type) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(kind())


_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._new,
    "NEWOBJ_EX": _Machine._new_with_keywords,
    "BUILD": _Machine._build,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozen,
    "BINPERSID": _Machine._stored,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_to_mark,
    "DUP": _Machine._again,
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_LIST": _empty(list),
    "EMPTY_DICT": _empty(dict),
    "EMPTY_SET": _empty(set),
}


def _key(value: Any, depth: int = 0) -> Any:
    """A key that is hashed in bounded time: plain values, and flat tuples of them."""
    if value is None or isinstance(value, str | bytes | int | float | Name | Made):
        return value
    if isinstance(value, tuple) and not depth and len(value) < 100:
        return tuple(_key(item, depth + 1) for item in value)
    raise ValueError(f"a key of type {type(value).__name__}")


def name_of(*parts: Any) -> Name:
    """The name as Python 3 has it; ValueError for what is not two texts."""
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"malformed global {' '.join(map(str, parts))[:80]!r}")
    module, name = parts
    # the same renaming of Python 2 names that torch's unpickler does
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    return Name(module, name)


def parts_of(record: Any) -> Iterator[Any]:
    """The records that one record holds directly."""
    if isinstance(record, Made):
        yield record.callee
        yield record.args
        yield from record.states
        yield from record.entries
        for key, value in record.items:
            yield key
            yield value
    elif isinstance(record, Stored):
        yield record.id
    elif isinstance(record, dict):
        yield from record
        yield from record.values()
    elif isinstance(record, list | tuple | set | frozenset):
        yield from record


def every(record: Any) -> Iterator[Any]:
    """``record`` and all that it holds, each once."""
    seen: set[int] = set()
    left = [record]
    while left:
        top = left.pop()
        if id(top) in seen:
            continue
        seen.add(id(top))
        yield top
        left.extend(parts_of(top))
