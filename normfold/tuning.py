"""Fine-tuning with the norms folded and their parameters still there: less memory, the same gradients.

In eval mode a BatchNorm behind a convolution keeps the convolution's result for the gradient of its gain. Here
each step makes the folded weight out of weight, gain and statistics, and runs one convolution with it:

    y = gamma (W x - mean) / sqrt(var + eps) + beta  =  (a W) x + (beta - a mean),  a = gamma / sqrt(var + eps)

The Tune mode of "Efficient ConvBN Blocks for Transfer Learning and Beyond" (You et al., arXiv 2305.11624), for all
that `fold-affine` folds: convolutions, linear layers, RepBN, gains of norms in front of linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.ir import capture
from normfold.rewrite import Effect, parse, run_pipeline

PIPELINE = "canonicalize,fold-affine,restore"


class Tuned(nn.Module):
    """A network that computes what another one computes in eval mode, with that one's parameters.

    A step on these parameters is a step on the network. Statistics stay, whatever the mode.

    Attributes:
        network: whose parameters these are.
        folded: how many norms and constants the forward pass does without.
    """

    def __init__(self, network: nn.Module, forward: nn.Module, folded: int) -> None:
        super().__init__()
        self.network, self.folded = network, folded
        self._forward = (forward,)  # of the same parameters: not a part of its own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward[0](*args, **kwargs)

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
    return Tuned(network, result.module, folded)
