"""Fine-tuning with the norms folded and their parameters still there: less memory, the same gradients.

In eval mode a BatchNorm behind a convolution keeps the convolution's result for the gradient of its gain. Here
each step makes the folded weight out of weight, gain and statistics, and runs one convolution with it:

    y = gamma (W x - mean) / sqrt(var + eps) + beta  =  (a W) x + (beta - a mean),  a = gamma / sqrt(var + eps)

The backward pass makes a W again where it needs it: neither that nor the result of W x is kept.

The Tune mode of "Efficient ConvBN Blocks for Transfer Learning and Beyond" (You et al., arXiv 2305.11624), for all
that `fold-affine` folds: convolutions, linear layers, RepBN, gains of norms in front of linear layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.ir.evaluation import Domain
from normfold.ir.expressions import evaluate, is_static, order
from normfold.rewrite import Effect, parse, run_pipeline

PIPELINE = "canonicalize,fold-affine,restore"


_LARGE = 1024  # elements: what is smaller is kept


class _Folded:
    """Folded weights that a backward pass makes again, from the parameters that they are made of."""

    def __init__(self, graph: Graph) -> None:
        self.module = graph.module
        self.weights = {node.name: node for node in graph.nodes if _is_weight(node)}
        self.forward = graph.copy().module
        nodes = self.forward.graph
        placed = set[fx.Node]()
        readers = [node for node in nodes.nodes if not is_static(node)]
        for (
            node
        ) in readers:  # a weight is made where it is read, the next one when this one is gone
            for made in order(node, placed):
                placed.add(made)
                if made is not node:
                    node.prepend(made)
        for node in list(nodes.nodes):
            if node.name in self.weights:
                with nodes.inserting_after(node):
                    noted = nodes.call_function(_noted, (node, node.name))
                node.replace_all_uses_with(noted, lambda user, noted=noted: user is not noted)
        self.forward.recompile()
        self.made: dict[int, str] = {}  # address of a weight that is alive -> its node

    @contextmanager
    def remade(self, inputs: Any) -> Iterator[None]:
        """What is computed within keeps no folded weight."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *pytree.tree_leaves(inputs)]
        kept = [(item, item._version) for item in tensors if isinstance(item, Tensor)]
        token = _FOLDED.set(self)
        try:
            with torch.autograd.graph.saved_tensors_hooks(
                self._pack, partial(self._unpack, kept=kept)
            ):
                yield
        finally:
            _FOLDED.reset(token)

    def note(self, value: Tensor, name: str) -> None:
        if value.grad_fn is not None and value._base is None:  # no view of a parameter
            address = value.untyped_storage().data_ptr()
            self.made[address] = name
            weakref.finalize(value, self.made.pop, address, None)

    def _pack(self, tensor: Tensor) -> Any:
        name = self.made.get(tensor.untyped_storage().data_ptr())
        if name is None:
            return tensor
        return name, tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, packed: Any, kept: Sequence[tuple[Tensor, int]]) -> Tensor:
        if any(item._version != version for item, version in kept):  # hooks have to look themselves
            raise RuntimeError(
                "a parameter, a statistic or an input has been modified by an inplace operation "
                "between the forward and the backward pass"
            )
        if isinstance(packed, Tensor):
            return packed
        name, *layout = packed
        value: Tensor = evaluate(self.module, self.weights[name], domain=Domain())
        return value.as_strided(*layout)


_FOLDED: ContextVar[_Folded] = ContextVar("folded")


def _noted(value: Tensor, name: str) -> Tensor:
    _FOLDED.get().note(value, name)
    return value


def _is_weight(node: fx.Node) -> bool:
    value = node.meta.get("val")
    large = isinstance(value, Tensor) and value.is_floating_point() and value.numel() >= _LARGE
    return node.op == "call_function" and is_static(node) and large


class Tuned(nn.Module):
    """A network that computes what another one computes in eval mode, with that one's parameters.

    A step on these parameters is a step on the network. Statistics stay, whatever the mode.

    Attributes:
        network: whose parameters these are.
        folded: how many norms and constants the forward pass does without.
    """

    def __init__(self, network: nn.Module, graph: Graph, folded: int) -> None:
        super().__init__()
        self.network, self.folded = network, folded
        self._folded = _Folded(graph)  # of the same parameters: no module of its own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._folded.remade((args, kwargs)):
            return self._folded.forward(*args, **kwargs)

    def train(self, mode: bool = True) -> Tuned:
        """Stays in eval mode: statistics are constants of the folded weights."""
        del mode
        return super().train(False)

    def finalize(self) -> dict[str, Tensor]:
        """The state dict of the network as it has been trained, by its own names."""
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}


def tune(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    passes: str = PIPELINE,
    dynamic: Any = "batch",
) -> Tuned:
    """A network's forward pass with its norms folded, for training the network itself.

    Move the network to its device first; it is put into eval mode.

    Args:
        args, kwargs: example inputs.
        passes: exact ones that do not bake.
        dynamic: axes that stay free, as of `normfold.capture`.

    Raises:
        CaptureError: as `normfold.capture`.
        UsageError: passes that round weights once and for all, or that are not exact.
    """
    chosen = parse(passes)
    wrong = [x.name for x in chosen if Effect.BAKES in x.effects or x.exactness.value != "exact"]
    if wrong:
        raise UsageError(
            "these passes leave nothing to train as it was",
            found=", ".join(wrong),
            hint=f"`{PIPELINE}`, or other exact ones without `bake`",
        )
    network.eval()
    graph = capture(network, args, dict(kwargs or {}), dynamic)
    mine = {id(parameter) for parameter in network.parameters()}
    if any(id(x) not in mine for x in graph.module.parameters()):
        raise UsageError(
            "the parameters of the captured graph are not those of the network",
            hint="tune the module itself, before it is wrapped or exported",
        )
    result, reports = run_pipeline(graph, chosen)
    folded = sum(len(report.applied) for report in reports if report.name == "fold-affine")
    return Tuned(network, result, folded)
