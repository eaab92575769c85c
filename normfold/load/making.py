"""Objects made of records that the rules have admitted: no constructor or function of the file's choice runs."""

from __future__ import annotations

import collections
import functools
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normfold.errors import LoadError
from normfold.load import tensors
from normfold.load.admission import Admission, Refused, Unmade
from normfold.load.archive import open_file
from normfold.load.arrays import ARRAYS, number_of
from normfold.load.library import LOADING_HOOKS
from normfold.load.records import Made, Name, Stored, key_of
from normfold.load.rules import GETATTR, PARTIAL, PLAIN_TYPES, TENSOR_FUNCTIONS, require_storage
from normfold.load.tensors import FROM_TYPE, OF_BYTES, REBUILDS, Storage, Unfit

_AS_IT_IS = {type(None), bool, int, float, str, bytes, bytearray}
_DEEPEST = 800  # objects in objects; each takes up to five calls
_EMPTY: dict[Name, Callable[[], Any]] = {
    Name("collections", "Counter"): collections.Counter,
    Name("collections", "OrderedDict"): collections.OrderedDict,
    Name("collections", "deque"): collections.deque,
}
_BUILTINS = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


class Maker:
    """Makes each record once, so that what was shared in the file is shared again.

    Args:
        admission: where the names were resolved that `rules.judge` admitted.
        storage: the numbers of a reference: ``(key, dtype, elements)`` to a storage.
        where: the file, for errors.
    """

    def __init__(
        self,
        admission: Admission,
        storage: Callable[[str, torch.dtype, int], torch.UntypedStorage],
        where: str,
    ) -> None:
        self.admission, self.storage, self.where = admission, storage, where
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is used twice
        self._open: set[int] = set()

    def make(self, root: Any) -> Any:
        """The object that ``root`` stands for.

        Raises:
            LoadError: parts that do not fit each other, or too deep a structure.
        """
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(max(usual, 6 * _DEEPEST))
        try:
            return self._make(root, 0)
        except LoadError:
            raise
        except (Unfit, Refused) as error:
            raise tensors.damaged(self.where, str(error)) from None
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise tensors.damaged(self.where, f"{type(error).__name__}: {text[:200]}") from None
        finally:
            sys.setrecursionlimit(usual)

    def _make(self, record: Any, depth: int) -> Any:
        kind = type(record)
        if kind in _AS_IT_IS:
            return record
        key = id(record)
        if key in self._made:
            return self._made[key]
        if key in self._open or depth > _DEEPEST:
            raise Unfit(
                "objects that hold themselves" if depth <= _DEEPEST else "objects nested too deeply"
            )
        self._open.add(key)
        made = self._new_one(kind, record, depth + 1)
        self._open.discard(key)
        return self._note(record, made)

    def _note(self, record: Any, made: Any) -> Any:
        """Known from now on, so that what is inside may refer to it."""
        self._open.discard(id(record))
        if id(record) not in self._made:
            self._made[id(record)] = made
            self._kept.append(record)
        return made

    def _new_one(self, kind: type, record: Any, depth: int) -> Any:
        if kind is Made:
            return self._object(record, depth) if record.new else self._called(record, depth)
        if kind is tuple or kind is set or kind is frozenset:
            made = [self._make(value, depth) for value in record]
            return tuple(made) if kind is tuple else kind(map(key_of, made))
        if kind is dict:
            found: Any = self._note(record, {})
            for key, value in record.items():
                found[self._make(key, depth)] = self._make(value, depth)
            return found
        if kind is list:
            found = self._note(record, [])
            found += [self._make(value, depth) for value in record]
            return found
        if kind is Name:
            return self._named(record)
        if kind is Stored:
            return self._stored(record)
        raise Unfit(f"a value of type {kind.__name__}")

    def _named(self, name: Name) -> Any:
        found = tensors.dtype_of(name)
        if found is not None:
            return found
        return _BUILTINS[name.name] if name in PLAIN_TYPES else self.admission.value(name)

    def _stored(self, record: Stored) -> Storage:
        _, kind, key, _, elements = record.id[:5]
        dtype = tensors.STORAGES[kind]
        return Storage(self.storage(key, dtype, elements), dtype)

    def _embedded(self, data: bytes) -> Storage:
        record, storage = open_file(data, self.where)
        if not isinstance(record, Stored):
            raise Unfit("the bytes of a storage hold something else")
        require_storage(record)
        return Maker(self.admission, storage, self.where)._stored(record)

    def _object(self, record: Made, depth: int) -> Any:
        kind, trusted = self.admission.kind(record.callee)
        own: Any = kind.__new__
        if trusted and own is not object.__new__:
            made: Any = own(kind, *self._make(record.args, depth))
        else:
            made = own(kind)  # object's, or that of a helper in the list
        if isinstance(made, nn.Module):
            nn.Module.__init__(
                made
            )  # the attributes that every module has, where a state has not all
        self._note(record, made)
        for state in record.states:
            self._give(made, kind, record, state, depth)
        return made

    def _give(self, made: Any, kind: type, record: Made, state: Any, depth: int) -> None:
        if not isinstance(state, dict):
            # only what the user trusts has such a state
            setstate = getattr(kind, "__setstate__", None)
            if setstate is None:
                raise Unfit("a state that is not a dictionary")
            made.__setstate__(self._make(state, depth))
            return
        found: dict[str, Any] = {}
        for key, value in state.items():
            if key in LOADING_HOOKS and issubclass(kind, nn.Module):
                found[key] = collections.OrderedDict()
            elif key == "forward" and isinstance(value, Made) and value.callee == GETATTR:
                found[key] = types.MethodType(getattr(kind, value.args[1]), made)
            else:
                found[key] = self._make(value, depth)
        if hasattr(kind, "__setstate__"):
            made.__setstate__(found)
        else:
            made.__dict__.update(found)

    def _called(self, record: Made, depth: int) -> Any:
        callee = record.callee
        if callee in ARRAYS:
            return number_of(record)
        if callee == OF_BYTES:
            return self._embedded(record.args[0])
        if callee == PARTIAL:
            function, args, keywords, _ = record.states[0]
            made = self._make(function, depth)
            if isinstance(made, Unmade):
                return made
            return functools.partial(made, *self._make(args, depth), **self._make(keywords, depth))
        if callee == GETATTR:
            assert record.args[0] == TENSOR_FUNCTIONS
            return getattr(torch, record.args[1])
        if callee == FROM_TYPE:
            function, kind, args, state = record.args
            return tensors.from_type(
                function, kind, self._make(args, depth), self._make(state, depth)
            )
        args = self._make(record.args, depth)
        if callee in REBUILDS:
            return REBUILDS[callee](*args)
        if callee in _EMPTY:
            return self._container(record, _EMPTY[callee](), args, depth)
        if callee == Name("collections", "defaultdict"):
            return self._container(record, collections.defaultdict(*args), (), depth)
        if callee in _PLAIN:
            return _PLAIN[callee](*args)
        self.admission.callee(callee)
        return self._container(record, self.admission.resolve(callee)(*args), (), depth)

    def _container(self, record: Made, made: Any, args: tuple[Any, ...], depth: int) -> Any:
        self._note(record, made)
        if len(args) == 1 and isinstance(args[0], list | dict):
            _fill(made, args[0])
        elif args:
            raise Unfit("a container with unknown arguments")
        if record.entries:
            made.extend(self._make(value, depth) for value in record.entries)
        for key, value in record.items:
            made[self._make(key, depth)] = self._make(value, depth)
        for state in record.states:
            if "_metadata" in state:
                made._metadata = self._make(state["_metadata"], depth)
        return made


def _members(values: Any) -> list[Any]:
    """What a set is made of: a list that the file holds, not a range that it names."""
    if not isinstance(values, list | tuple | set | frozenset):
        raise Unfit("a set of what is not a list")
    return [key_of(value) for value in values]


def _fill(made: Any, content: Any) -> None:
    """What a container is made of, as older pickles give it."""
    if isinstance(made, collections.deque):
        made.extend(content)
        return
    pairs = content.items() if isinstance(content, dict) else content
    for pair in pairs:
        key, value = pair
        made[key_of(key)] = value


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8", "ascii"):
        raise Unfit("bytes in an unknown form")
    return text.encode(encoding)


def _bytearray(content: Any = b"", encoding: Any = "latin1") -> bytearray:
    if isinstance(content, bytes | bytearray):
        return bytearray(content)
    return bytearray(_bytes(content, encoding))


def _layout(text: Any) -> torch.layout:
    found = vars(torch).get(str(text).rpartition(".")[2])
    if not isinstance(found, torch.layout):
        raise Unfit("a layout that is not known")
    return found


def _size(values: Any = ()) -> torch.Size:
    return torch.Size(tensors.whole(values))


def _path(*parts: Any) -> pathlib.PurePath:
    return pathlib.PurePosixPath(*(str(part) for part in parts))


_PLAIN: dict[Name, Callable[..., Any]] = {
    Name("_codecs", "encode"): _bytes,
    Name("builtins", "bytearray"): _bytearray,
    Name("builtins", "complex"): complex,
    Name("builtins", "frozenset"): lambda values=(): frozenset(_members(values)),
    Name("builtins", "range"): range,
    Name("builtins", "set"): lambda values=(): set(_members(values)),
    Name("builtins", "slice"): slice,
    Name("pathlib", "PosixPath"): _path,
    Name("pathlib", "PurePosixPath"): _path,
    Name("pathlib", "PureWindowsPath"): _path,
    Name("pathlib", "WindowsPath"): _path,
    Name("torch", "Size"): _size,
    Name("torch", "device"): torch.device,
    Name("torch.serialization", "_get_layout"): _layout,
}
