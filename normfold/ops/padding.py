"""Zero pads that the ops behind them can take into their own padding, on each side as much as it needs."""

from __future__ import annotations

from torch import fx

from normfold.ir.graph import argument, op_name, shape_of
from normfold.ops.exact_sums import sizes_of
from normfold.ops.linear import linear_of, zero_pad_of
from normfold.ops.table import bounds

_MAXIMA = ("max_pool1d", "max_pool2d", "max_pool3d")
_MEANS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")


def is_taken(node: fx.Node) -> bool:
    """True for a pad with zeros of which nothing is left in a file: every reader is a convolution, or a pool that
    makes the same of it (a maximum of what is not negative, a mean that counts what is padded)."""
    pad = zero_pad_of(node)
    if pad is None or min(pad, default=-1) < 0 or len(pad) > 2 * (len(shape_of(node)) - 2):
        return False
    return bool(node.users) and all(_takes(user, node, pad) for user in node.users)


def source_of(node: fx.Node) -> fx.Node:
    """What is read where the pads in front of a reader are taken; the node itself where there are none."""
    while is_taken(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _takes(user: fx.Node, node: fx.Node, pad: list[int]) -> bool:
    if user.op != "call_function" or user.args[0] is not node:
        return False
    if zero_pad_of(user) is not None:
        return is_taken(user)
    linear = linear_of(user)
    if linear is not None:
        own = argument(user, "padding", "")
        return bool(linear.kernel) and not linear.transposed and not isinstance(own, str)
    if op_name(user) in (*_MAXIMA, *_MEANS) and argument(user, "ceil_mode"):
        return False  # windows that begin in the padding are left out
    if op_name(user) in _MAXIMA:
        source = node.args[0]
        return isinstance(source, fx.Node) and bounds(source).low >= 0 and _fits(user, pad)
    if op_name(user) in _MEANS:
        plain = not any(sizes_of(argument(user, "padding"), 1))
        return plain and argument(user, "divisor_override") is None and _fits(user, pad)
    return False


def _fits(pool: fx.Node, pad: list[int]) -> bool:
    """True if no window of a pool lies in the padding alone, which runtimes refuse."""
    spatial = len(shape_of(pool)) - 2
    kernel = sizes_of(argument(pool, "kernel_size"), spatial)
    own = sizes_of(argument(pool, "padding"), spatial)
    widest = [max(pad[at : at + 2], default=0) for at in range(0, 2 * spatial, 2)]
    return all(
        width + mine < size
        for width, mine, size in zip(widest, reversed(own), reversed(kernel), strict=True)
    )
