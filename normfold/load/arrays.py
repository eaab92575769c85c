"""Numbers of numpy in a pickle: scalars and arrays, whose bytes are in the records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from normfold.load.admission import Refused
from normfold.load.records import Made, Name

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_DTYPE = Name("numpy", "dtype")
_NDARRAY = Name("numpy", "ndarray")
_KINDS = "biufc"


def _dtype(record: Any) -> np.dtype[Any]:
    """``dtype('f4', False, True)`` and its state, whose second part is the order of bytes."""
    match record:
        case Made(callee=callee, args=(str(text), *_), states=[(int(), str(order), *_)]) if (
            callee == _DTYPE
        ):
            if len(text) <= 4 and text[:1] in _KINDS and text[1:].isdigit() and order in "<>|=":
                return np.dtype(order.replace("|", "=") + text)
    raise Refused("numbers of a type that is not plain")


def _scalar(record: Made) -> Any:
    match record.args:
        case (kind, data) if isinstance(data := _bytes(data), bytes):
            dtype = _dtype(kind)
            if len(data) == dtype.itemsize and not record.states:
                return np.frombuffer(data, dtype)[0]
    raise Refused("a number that is not plain")


def _array(record: Made) -> Any:
    match record.states:
        case [(int(), tuple(shape), kind, bool(fortran), data)] if isinstance(
            data := _bytes(data), bytes
        ):
            dtype = _dtype(kind)
            if record.args[:1] == (_NDARRAY,) and all(type(n) is int and n >= 0 for n in shape):
                found = np.frombuffer(data, dtype)
                if int(np.prod(shape, dtype=np.float64)) == found.size:
                    return found.reshape(shape, order="F" if fortran else "C").copy()
    raise Refused("an array that is not of plain numbers")


def _bytes(value: Any) -> Any:
    """Bytes as such, or as pickles before protocol 3 have them: a text in latin-1."""
    match value:
        case Made(callee=Name("_codecs", "encode"), args=(str(text), "latin1")):
            return text.encode("latin1", errors="replace")
    return value


def _plain_dtype(record: Made) -> Any:
    return _dtype(record)


_READ: dict[Name, Callable[[Made], Any]] = {
    _DTYPE: _plain_dtype,
    **{Name(module, "scalar"): _scalar for module in _MODULES},
    **{Name(module, "_reconstruct"): _array for module in _MODULES},
}


def number_of(record: Made) -> Any:
    """The scalar, array or dtype that a record stands for; `Refused` where it is not of plain numbers."""
    return _READ[record.callee](record)


def _judge(record: Made) -> Iterable[Any]:
    number_of(record)
    return ()


ARRAYS: dict[Name, Callable[[Made], Iterable[Any]]] = dict.fromkeys(_READ, _judge)
