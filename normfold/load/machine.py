"""The machine that reads a pickle into records: every instruction that Python writes for protocols 2 to 5.

It mirrors Lib/pickle.py instruction by instruction, and imports, calls and stores nothing. Lengths are checked
against the bytes that are there, numbers and keys against what can be hashed and held in bounded time.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from normfold.errors import LoadError
from normfold.load.records import Made, Name, Stored, key_of, name_of

LARGEST = 20_000_000  # instructions; the largest models that people pickle whole have some 100,000


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


def read_first(data: bytes, where: str, at: int = 0) -> tuple[Any, int]:
    """The records of the pickle that begins at ``at``, and where it ends: others may follow."""
    try:
        return _Machine(data, at).run()
    except Unknown as error:
        raise LoadError(
            "the file uses pickle instructions that safe loading does not have",
            where=where,
            found=error.code,
            hint="save it again with `torch.save(model, path)` and its default protocol",
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise LoadError(
            "the file is truncated or not a pickle",
            where=where,
            found=(str(error) or type(error).__name__)[:200],
            hint="write it again with `torch.save` and check that the copy is complete",
        ) from None


class _Machine:
    """The stack machine of a pickle, on records. Every instruction is a method without arguments."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        data, steps = self.data, _STEPS
        for _ in range(LARGEST):
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._pop(), self.at
            step = steps[code]
            if step is None:
                raise Unknown(_name(code))
            step(self)
        raise ValueError(f"more than {LARGEST} instructions")

    # -- what follows an instruction -----------------------------------------------------------------------------

    def _bytes(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise ValueError("it breaks off")
        self.at += size
        return found

    def _number(self, layout: struct.Struct) -> Any:
        (found,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def _line(self) -> bytes:
        end = self.data.index(b"\n", self.at)
        found, self.at = self.data[self.at : end], end + 1
        return found

    # -- the stack -----------------------------------------------------------------------------------------------

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is wanted")
        return value

    def _popped(self, size: int) -> list[Any]:
        stack = self.stack
        found = stack[-size:] if size else []
        if len(found) != size or _MARK in found:
            raise ValueError("a mark, or nothing, where a value is wanted")
        if size:
            del stack[-size:]
        return found

    def _to_mark(self) -> list[Any]:
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                found = stack[at + 1 :]
                del stack[at:]
                return found
        raise ValueError("no mark")

    # -- instructions --------------------------------------------------------------------------------------------

    def global_(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self.stack.append(name_of(module, name))

    def stack_global(self) -> None:
        self.stack.append(name_of(*self._popped(2)))

    def call(self) -> None:
        callee, args = self._popped(2)
        self.stack.append(Made(callee, args, new=False))

    def new(self) -> None:
        callee, args = self._popped(2)
        self.stack.append(Made(callee, args, new=True))

    def new_with_keywords(self) -> None:
        callee, args, keywords = self._popped(3)
        if keywords != {}:
            raise Unknown("NEWOBJ_EX with keywords")
        self.stack.append(Made(callee, args, new=True))

    def build(self) -> None:
        made, state = self._popped(2)
        if not isinstance(made, Made):
            raise ValueError("a state for what is not an object")
        made.states.append(state)
        self.stack.append(made)

    def append(self) -> None:
        self._extend(self._popped(1))

    def appends(self) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(key_of, values))
        elif isinstance(target, list | Made):
            (target.entries if isinstance(target, Made) else target).extend(values)
        else:
            raise ValueError("an entry for what is not a list")

    def set_item(self) -> None:
        self._store(self._popped(2))

    def set_items(self) -> None:
        self._store(self._to_mark())

    def _store(self, values: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(target, dict):
                target[key_of(key)] = value
            elif isinstance(target, Made):
                target.items.append((key, value))
            else:
                raise ValueError("an item for what is not a dictionary")

    def mark(self) -> None:
        self.stack.append(_MARK)

    def tuple_(self) -> None:
        self.stack.append(tuple(self._to_mark()))

    def list_(self) -> None:
        self.stack.append(self._to_mark())

    def dict_(self) -> None:
        values = self._to_mark()
        self.stack.append({})
        self._store(values)

    def frozen(self) -> None:
        self.stack.append(frozenset(map(key_of, self._to_mark())))

    def stored(self) -> None:
        match self._pop():
            case ("module", Name() as name, *_):  # torch before 1.6 stored a class with its source
                self.stack.append(name)
            case other:
                self.stack.append(Stored(other))

    def drop(self) -> None:
        self.stack.pop()

    def drop_to_mark(self) -> None:
        self._to_mark()

    def again(self) -> None:
        self.stack.append(self._pop())
        self.stack.append(self.stack[-1])

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def nothing(self) -> None:
        pass

    def long_of_bytes(self, size: int) -> None:
        if not 0 <= size <= _DIGITS:
            raise ValueError(f"a number of {size} bytes")
        self.stack.append(int.from_bytes(self._bytes(size), "little", signed=True))

    def number_in_text(self) -> None:
        text = self._line()
        if len(text) > _DIGITS:
            raise ValueError("a number that is too long")
        plain = {b"00": False, b"01": True}
        self.stack.append(plain[text] if text in plain else int(text.rstrip(b"L")))


_Step = Callable[[_Machine], None]


def _tuple_of(size: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.stack.append(tuple(machine._popped(size)))

    return step


def _push(make: Callable[[_Machine], Any]) -> _Step:
    return lambda machine: machine.stack.append(make(machine))


def _text(size: struct.Struct) -> _Step:
    """A text as bytes of UTF-8, with their number before them."""
    return _push(lambda m: m._bytes(m._number(size)).decode("utf-8", "surrogatepass"))


def _raw(size: struct.Struct, make: Callable[[bytes], Any] = bytes) -> _Step:
    return _push(lambda m: make(m._bytes(m._number(size))))


def _put(size: struct.Struct) -> _Step:
    def step(machine: _Machine) -> None:
        machine.memo[machine._number(size)] = machine.stack[-1]

    return step


def _get(size: struct.Struct) -> _Step:
    return _push(lambda m: m.memo[m._number(size)])


def _skip(size: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine._bytes(size)

    return step


_U1, _U2, _U4, _U8 = (struct.Struct(f"<{letter}") for letter in "BHIQ")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_STOP, _DIGITS = ord("."), 4000
# As in Lib/pickle.py. Left out: EXT1 to EXT4, INST, OBJ, PERSID, and buffers out of band.
_INSTRUCTIONS: dict[bytes, _Step] = {
    b"\x80": _skip(1), b"\x95": _skip(8),
    b"N": _push(lambda m: None), b"\x88": _push(lambda m: True), b"\x89": _push(lambda m: False),
    b"J": _push(lambda m: m._number(_I4)), b"K": _push(lambda m: m._number(_U1)),
    b"M": _push(lambda m: m._number(_U2)), b"G": _push(lambda m: m._number(_F8)),
    b"\x8a": lambda m: m.long_of_bytes(m._number(_U1)), b"\x8b": lambda m: m.long_of_bytes(m._number(_I4)),
    b"I": _Machine.number_in_text, b"L": _Machine.number_in_text,
    b"F": _push(lambda m: float(m._line())),
    b"X": _text(_U4), b"\x8c": _text(_U1), b"\x8d": _text(_U8),
    b"V": _push(lambda m: m._line().decode("raw-unicode-escape")),
    # protocols below 3 in Python 2: bytes that are texts as a rule
    b"U": _raw(_U1, lambda found: found.decode("latin1")), b"T": _raw(_I4, lambda found: found.decode("latin1")),
    b"B": _raw(_U4), b"C": _raw(_U1), b"\x8e": _raw(_U8), b"\x96": _raw(_U8, bytearray),
    b"q": _put(_U1), b"r": _put(_U4), b"\x94": _Machine.memoize, b"h": _get(_U1), b"j": _get(_U4),
    b"p": lambda m: m.memo.__setitem__(int(m._line()), m.stack[-1]),
    b"g": _push(lambda m: m.memo[int(m._line())]),
    b"c": _Machine.global_, b"\x93": _Machine.stack_global,
    b"R": _Machine.call, b"\x81": _Machine.new, b"\x92": _Machine.new_with_keywords, b"b": _Machine.build,
    b"a": _Machine.append, b"e": _Machine.appends, b"\x90": _Machine.appends,
    b"s": _Machine.set_item, b"u": _Machine.set_items, b"(": _Machine.mark, b"t": _Machine.tuple_,
    b"l": _Machine.list_, b"d": _Machine.dict_, b"\x91": _Machine.frozen, b"Q": _Machine.stored,
    b"0": _Machine.drop, b"1": _Machine.drop_to_mark, b"2": _Machine.again,
    b")": _push(lambda m: ()), b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3),
    b"]": _push(lambda m: []), b"}": _push(lambda m: {}), b"\x8f": _push(lambda m: set()),
}  # fmt: skip
_STEPS: list[_Step | None] = [_INSTRUCTIONS.get(bytes([code])) for code in range(256)]


def _name(code: int) -> str:
    found = next((op.name for op in pickletools.opcodes if ord(op.code) == code), None)
    if found is None:
        raise ValueError(f"instruction {code:#x}, which pickle does not have")
    return found
