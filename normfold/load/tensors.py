"""Tensors rebuilt from records: over storages of the file, where offsets, sizes and strides fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import LoadError
from normfold.load.records import Name

_DTYPES = {
    name: value
    for name, value in vars(torch).items()
    if (isinstance(value, torch.dtype) and not value.is_complex)
    or name in ("complex64", "complex128")
}
_OF_STORAGES = {
    "BFloat16": torch.bfloat16, "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8,
    "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Double": torch.float64,
    "Float": torch.float32, "Half": torch.float16, "Int": torch.int32, "Long": torch.int64, "Short": torch.int16,
}  # fmt: skip
STORAGES: dict[Name, torch.dtype] = {
    Name(module, f"{name}Storage"): dtype
    for name, dtype in _OF_STORAGES.items()
    for module in ("torch", "torch.cuda")
} | {
    Name("torch.storage", "UntypedStorage"): torch.uint8,
    Name("torch", "UntypedStorage"): torch.uint8,
}
_OTHER_CONSTANTS = (torch.layout, torch.memory_format)
# a storage in a pickle that `torch.save` did not write: the bytes of a file that it did
OF_BYTES = Name("torch.storage", "_load_from_bytes")
FROM_TYPE = Name("torch._tensor", "_rebuild_from_type_v2")
TYPES = {
    Name("torch", "Tensor"): Tensor,
    Name("torch.nn.parameter", "Parameter"): nn.Parameter,
}
# A view may repeat its numbers (`expand`), within reason: this many more than the storage has.
_REPEATED = 2**24


@cache
def dtype_of(name: Name) -> Any:
    """The dtype, layout or memory format of this name; None for other names."""
    if name.module != "torch":
        return None
    value = vars(torch).get(name.name)
    return value if isinstance(value, (torch.dtype, *_OTHER_CONSTANTS)) else None


class Storage:
    """A storage of the file, with the dtype that its reference names."""

    def __init__(self, untyped: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.untyped, self.dtype = untyped, dtype


class Unfit(Exception):
    """Parts of a tensor that do not fit each other, in words."""


def strided(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """A view of a storage; `Unfit` where it would reach beyond it."""
    if not isinstance(storage, Storage):
        raise Unfit("its numbers are not a storage of the file")
    dtype = storage.dtype if dtype is None else dtype
    size, stride = whole(size), whole(stride)
    (offset,) = whole((offset,))
    if len(size) != len(stride):
        raise Unfit(f"{len(size)} sizes and {len(stride)} strides")
    held = storage.untyped.nbytes() // dtype.itemsize
    elements = 1
    for length in size:
        elements *= length
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if elements and reach > held:
        raise Unfit(f"it reaches to element {reach} of a storage of {held}")
    if elements > held + _REPEATED:
        raise Unfit(f"{elements} elements of a storage of {held}")
    return torch.empty(0, dtype=dtype).set_(
        storage.untyped, offset if elements else 0, size, stride
    )


def whole(values: Any) -> tuple[int, ...]:
    """Numbers from 0 up, as sizes and strides are; `Unfit` otherwise."""
    if not isinstance(values, tuple | list | torch.Size):
        raise Unfit("sizes and strides are not whole numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**62:
            raise Unfit("sizes, strides and offsets are not whole numbers from 0 up")
    return tuple(values)


def _v1(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return strided(storage, offset, size, stride)


def _v2(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    return _marked(strided(storage, offset, size, stride), grad, hooks, metadata)


def _v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise Unfit("its dtype is none")
    return _marked(strided(storage, offset, size, stride, dtype), grad, hooks, metadata)


def _marked(tensor: Tensor, grad: Any, hooks: Any, metadata: Any) -> Tensor:
    _no_hooks(hooks)
    if metadata:
        if not isinstance(metadata, dict) or not set(metadata) <= {"conj", "neg"}:
            raise Unfit("it has marks that are not known")
        tensor = tensor.conj() if metadata.get("conj") else tensor
        tensor = torch._neg_view(tensor) if metadata.get("neg") else tensor
    return tensor.requires_grad_(bool(grad)) if _differentiable(tensor) else tensor


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _no_hooks(hooks: Any) -> None:
    if hooks:
        raise Unfit("it has hooks")


def _parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise Unfit("a parameter without a tensor")
    _no_hooks(hooks)
    parameter = nn.Parameter(data.detach(), bool(grad) and _differentiable(data))
    give_state(parameter, state)
    return parameter


def give_state(tensor: Tensor, state: Any) -> None:
    """Attributes that people put on tensors (`weight._no_weight_decay = True`)."""
    if isinstance(state, tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    if not state:
        return
    if not isinstance(state, dict):
        raise Unfit("a tensor with a state that is not a dictionary")
    for key, value in state.items():
        if (
            not isinstance(key, str)
            or not key.isidentifier()
            or key.startswith("__")
            or hasattr(Tensor, key)
            or callable(value)
        ):
            raise Unfit(
                f"a tensor with an attribute {key[:40]!r}"
                if isinstance(key, str)
                else "a tensor with attributes"
            )
        setattr(tensor, key, value)


def _sparse(layout: Any, data: Any) -> Tensor:
    if not isinstance(data, tuple):
        raise Unfit("a sparse tensor without parts")
    if layout == torch.sparse_coo and len(data) in (3, 4):
        size = whole(tuple(data[2]))
        made = torch.sparse_coo_tensor(data[0], data[1], size, check_invariants=True)
        return made.coalesce() if len(data) == 4 and data[3] else made
    compressed = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    if layout in compressed and len(data) == 4:
        size = whole(tuple(data[3]))
        return torch.sparse_compressed_tensor(
            data[0], data[1], data[2], size, layout=layout, check_invariants=True
        )
    raise Unfit("a sparse tensor of an unknown layout")


REBUILDS: dict[Name, Callable[..., Tensor]] = {
    Name("torch._utils", "_rebuild_tensor"): _v1,
    Name("torch._utils", "_rebuild_tensor_v2"): _v2,
    Name("torch._utils", "_rebuild_tensor_v3"): _v3,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("torch._utils", "_rebuild_sparse_tensor"): _sparse,
}


def from_type(function: Name, kind: Name, args: Any, state: Any) -> Tensor:
    """A tensor of a subclass that adds nothing: Tensor itself, or Parameter."""
    tensor = REBUILDS[function](*args)
    if TYPES[kind] is nn.Parameter and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
    give_state(tensor, state)
    return tensor


def damaged(where: str, why: str) -> LoadError:
    """The error for parts that do not fit."""
    return LoadError(
        "the file is damaged, or was made to look like a checkpoint",
        where=where,
        found=why,
        hint="write it again with `torch.save` and check that the copy is complete",
    )
