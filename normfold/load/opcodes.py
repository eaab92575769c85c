"""Read a pickle without running it: which globals it names, and which of them it calls."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field

from torch import _weights_only_unpickler
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from normfold.errors import LoadError


@dataclass(frozen=True, order=True)
class Global:
    """A name that a pickle looks up: ``module.name``."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class Scan:
    """The outcome of a static reading.

    ``names`` are all globals, ``called`` those that a REDUCE would call, ``unknown`` the opcodes
    that the restricted unpickler does not have (their effect was not followed).
    """

    names: set[Global] = field(default_factory=set)
    called: set[Global] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


class _Mark:
    pass


_OPAQUE = object()
_MARK = _Mark()
# Opcodes by what they take from the stack before they push one opaque value.
_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "LONG1", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
}  # fmt: skip
_DROP = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Calls its first argument with its third, so the call behind it has to be seen through.
_INDIRECT = Global("torch._tensor", "_rebuild_from_type_v2")


def scan(data: bytes, where: str) -> Scan:
    """Follow one pickle with a stack of symbols; nothing is imported or called.

    The machine mirrors ``torch._weights_only_unpickler`` opcode by opcode. No opcode takes a value
    out of a container, so a global is either on the stack, in the memo, or inside a tuple of
    arguments, and every callee of a REDUCE is known by name.

    Raises:
        LoadError: the bytes are not a complete pickle.
    """
    found = Scan()
    try:
        _run(data, found)
    except (ValueError, IndexError, KeyError, EOFError, UnicodeDecodeError) as error:
        raise LoadError(
            "the file is truncated or not a pickle",
            where=where,
            found=str(error) or type(error).__name__,
            hint="write it again with `torch.save` and check that the copy is complete",
        ) from None
    return found


def _run(data: bytes, found: Scan) -> None:
    stack: list[object] = []
    memo: dict[int, object] = {}

    def to_mark() -> list[object]:
        items: list[object] = []
        while (top := stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    for op, arg, _ in pickletools.genops(data):
        name = op.name
        if name == "GLOBAL":
            entry = _global(str(arg))
            found.names.add(entry)
            stack.append(entry)
        elif name in _PUSH:
            stack.append(_OPAQUE)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("APPENDS", "SETITEMS"):
            to_mark()
        elif name in _DROP:
            del stack[-_DROP[name] :]
        elif name in ("REDUCE", "NEWOBJ"):
            args, callee = stack.pop(), stack.pop()
            if name == "REDUCE":
                _note_call(callee, args, found)
            stack.append(_OPAQUE)
        elif name == "BINPERSID":
            stack[-1] = _OPAQUE
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(arg or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg or 0)])
        elif name == "STOP":
            return
        elif name != "PROTO":
            found.unknown.add(name)
            _names_only(data, found)
            return


def _note_call(callee: object, args: object, found: Scan) -> None:
    if isinstance(callee, Global):
        found.called.add(callee)
        if callee == _INDIRECT:
            first = args[0] if isinstance(args, tuple) and args else _OPAQUE
            found.called.add(first if isinstance(first, Global) else Global("<computed>", "call"))
    else:
        found.called.add(Global("<computed>", "call"))


def _names_only(data: bytes, found: Scan) -> None:
    # Only to name things in a refusal: such a file is never given to the restricted unpickler.
    recent: list[str] = []
    for op, arg, _ in pickletools.genops(data):
        if op.name in ("GLOBAL", "INST"):
            found.names.add(_global(str(arg)))
        elif op.name == "STACK_GLOBAL" and len(recent) >= 2:
            found.names.add(Global(recent[-2], recent[-1]))
        elif isinstance(arg, str):
            recent.append(arg)


def _global(text: str) -> Global:
    parts = text.split(" ")
    if len(parts) != 2:
        raise ValueError(f"malformed global {text!r}")
    module, name = parts
    # The same renaming of Python 2 names that torch's unpickler does.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    return Global(module, name)


def torch_safe(entry: Global) -> bool:
    """Whether torch itself admits the name under ``weights_only=True``."""
    return str(entry) in _weights_only_unpickler._get_allowed_globals()
