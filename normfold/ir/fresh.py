"""Copies of a network to try things on: a call may leave traces on modules, in buffers and in parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


def fresh(module: nn.Module) -> nn.Module:
    """A copy with buffers and attributes of its own that shares the parameters.

    What shares the memory of a parameter goes on sharing it. A network that cannot be copied, and a graph of
    torch.export, which keeps nothing besides its buffers, is returned itself.
    """
    if isinstance(module, fx.GraphModule):
        return module
    shared: dict[Any, Any] = {id(tensor): tensor for tensor in module.parameters()}
    shared["torch"] = memories(module.parameters())  # where torch looks for the copy of a storage
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # which deepcopy refuses
                shared[id(value)] = value.detach().clone()
    try:
        return deepcopy(module, shared)
    except Exception:  # whatever the attributes of a network raise
        return module


def copied(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own, in which those share memory that did; torch's own parts a parameter from it.

    Raises:
        Exception: what the attributes of a network raise that cannot be copied.
    """
    module = fresh(module)  # every tensor of which can be copied
    own = {key: storage.clone() for key, storage in memories(module.parameters()).items()}
    memo: dict[Any, Any] = {"torch": own}
    for parameter in module.parameters():
        storage = None if type(parameter) is not nn.Parameter else own.get(_memory(parameter))
        if storage is not None:
            place = (parameter.storage_offset(), parameter.size(), parameter.stride())
            data = parameter.data.new_empty(0).set_(storage, *place)
            memo[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
    return deepcopy(module, memo)


def deepcopy(module: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """As Python's, without what torch warns of where it copies a graph of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module, memo)


def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a copy returns; the parameters, which it shares, are afterwards what they were."""
    called = fresh(module)
    with unchanged(called, buffers=called is module):
        return called(*args, **kwargs)


@contextmanager
def unchanged(module: nn.Module, buffers: bool = False) -> Iterator[None]:
    """Put back, at the end of the block, parameters (and ``buffers``) that were written into."""
    tensors = [*module.parameters(), *(module.buffers() if buffers else ())]
    watch = _Writes(memories(tensors))
    try:
        with watch:
            yield
    finally:
        for key, before in watch.before.items():
            watch.memories[key].copy_(before)


def memories(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """The storages of plain tensors, by their addresses."""
    plain = (x for x in tensors if not is_lazy(x) and not is_traceable_wrapper_subclass(x))
    return {_memory(x): x.untyped_storage() for x in plain}


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


class _Writes(TorchDispatchMode):
    """Keeps what is in a memory when an op writes into it for the first time."""

    supports_higher_order_operators = True

    def __init__(self, memories: dict[int, torch.UntypedStorage]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memories = memories
        self.before: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for place, spec in enumerate(func._schema.arguments):
                if spec.alias_info is not None and spec.alias_info.is_write:
                    self._keep(args[place] if place < len(args) else kwargs.get(spec.name))
        return func(*args, **kwargs)

    def _keep(self, written: Any) -> None:
        leaves = pytree.tree_leaves(written)
        for key in memories(leaf for leaf in leaves if isinstance(leaf, Tensor)):
            if key in self.memories and key not in self.before:
                self.before[key] = self.memories[key].clone()


def with_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A copy whose class has another ``forward``; parameters, and the name of the class, stay.

    A network that cannot be copied is returned itself.
    """
    made, own = fresh(module), type(module)
    if made is not module:
        made.__class__ = type(
            own.__name__, (own,), {"forward": forward, "__module__": own.__module__}
        )
    return made
