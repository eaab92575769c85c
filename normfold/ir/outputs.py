"""What a network returns, in a form that torch.export can follow."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from normfold.ir.fresh import with_forward


def plain(value: Any) -> Any:
    """The value with dictionaries by field name in place of dataclasses that pytree does not know."""
    if type(value) in pytree.SUPPORTED_NODES:
        if isinstance(value, (list, dict)):
            return pytree.tree_map(plain, value, is_leaf=lambda x: x is not value)
        if type(value) is tuple:
            return tuple(plain(item) for item in value)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def has_dataclass(value: Any) -> bool:
    """True if `plain` would change it."""
    return any(
        dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
        for leaf in pytree.tree_leaves(value)
    )


def with_plain_outputs(module: nn.Module) -> nn.Module:
    """A copy whose class returns dictionaries for dataclasses; parameters keep their names.

    A network that cannot be copied is returned itself.
    """
    own: Any = type(module)

    @functools.wraps(own.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(own.forward(self, *args, **kwargs))

    forward.__signature__ = inspect.signature(own.forward)  # type: ignore[attr-defined]
    return with_forward(module, forward)
