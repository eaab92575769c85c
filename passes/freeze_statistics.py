"""freeze-statistics: a norm that measures each input takes the average of what it measures on samples, and folds.

(x - m) / d  ->  x / D - M / D      M = E[m]    D^2 = E[d^2] + Var(m), over the inputs of all samples

D^2 is the variance of all of them together (the law of total variance). Norms are BatchNorms without running
statistics, InstanceNorms, and any that is written by hand with one mean and deviation for each channel of an
input: UnMix-TNS after its adaptation (Tomar et al., ICLR 2024), whose mixture becomes one affine so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from normfold.ir import Graph, Site, facts
from normfold.ir.custom_ops import channel_affine
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import is_static
from normfold.ir.graph import argument, is_symbolic, shape_of
from normfold.ir.provenance import layer_name, module_type, source_line
from normfold.ir.sites import AffineOf, norm_sites
from normfold.ir.states import State
from normfold.ops.handwritten import own_statistic
from normfold.ops.table import Kind, is_norm, norm_of, row_of
from normfold.rewrite import Between, Decline, Exactness, Match, Pass, Reason, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class _Measured:
    """A norm of ``x`` whose channels lie along ``axis``; ``mean`` and ``divisor`` where it is written by hand.

    Attributes:
        node, result: the norm, and the node that has what it gives.
        inverse: ``divisor`` is multiplied by.
    """

    node: fx.Node
    x: fx.Node
    result: fx.Node
    axis: int
    mean: fx.Node | None = None
    divisor: fx.Node | None = None
    inverse: bool = False


@dataclass(frozen=True)
class _Frozen:
    """Per channel: mean and deviation; how much ``deviates`` of what the norm gives, as a root mean square."""

    mean: Tensor
    deviation: Tensor
    deviates: float


@dataclass(frozen=True)
class FreezeStatistics(Pass):
    """Replace norms that take one mean and deviation for each channel of an input by affines with their averages.

    It changes what such norms are for; no preset runs it, and the verdict says by how much. LayerNorms and
    RMSNorms, which measure each token, become affines by training (`--to affine`).

    Options:
        max_deviation: root mean square of what an affine may be off by on the samples, relative to what the norm
            returns.

    Exact:    no; the report gives the deviation of each norm.
    Declines: not-per-channel, own-statistics, no-samples, not-near-affine.
    """

    name: ClassVar[str] = "freeze-statistics"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    measures: ClassVar[bool] = True
    requires: ClassVar[frozenset[State]] = frozenset({State.CANONICAL})

    max_deviation: Annotated[float, Between(0)] = 0.5

    def match(self, graph: Graph) -> Iterable[Match]:
        norms = {node: _norm(node) for node in graph.nodes if _measures(node)}
        made = _frozen(graph, [norm for norm in norms.values() if norm is not None])
        for node, norm in norms.items():
            sites = norm_sites(node) or (_site(graph, node),)
            yield Match(node, sites, (norm, None if norm is None else made.get(norm.result)))

    def check(self, graph: Graph, match: Match) -> Match | Decline:
        norm, frozen = match.plan
        if norm is None:
            reason = Reason.NOT_PER_CHANNEL if norm_of(match.node) else Reason.OWN_STATISTICS
            return Decline(reason, match.node, "not one mean and deviation for each channel")
        if frozen is None:
            return Decline(Reason.NO_SAMPLES, match.node)
        text = f"{frozen.deviates:.2g} of what the norm gives is off on the samples"
        if not frozen.deviates <= self.max_deviation:
            return Decline(Reason.NOT_NEAR_AFFINE, match.node, text)
        return match.planned(match.plan, text)

    def rewrite(self, match: Match, rewriter: Rewriter) -> None:
        norm, frozen = match.plan
        name, dtype = match.path.replace(".", "_"), norm.result.meta["val"].dtype
        scale: Any = rewriter.constant(frozen.deviation.reciprocal().to(dtype), f"{name}_scale")
        mean = rewriter.constant(frozen.mean.to(dtype), f"{name}_mean")
        gain, bias = _affine(match.node)
        if gain is not None:
            scale = rewriter.expression(aten.mul.Tensor, gain, scale)
        shift = rewriter.expression(
            aten.neg.default, rewriter.expression(aten.mul.Tensor, mean, scale)
        )
        if bias is not None:
            shift = rewriter.expression(aten.add.Tensor, bias, shift)
        new = rewriter.insert_before(norm.result, channel_affine, norm.x, scale, shift, norm.axis)
        facts.put(new, AffineOf(match.sites))
        for site in match.sites:
            rewriter.graph.sites[site.path] = site
        rewriter.replace(norm.result, new, same=False)
        rewriter.changed_behind(new)
        rewriter.record(f"{match.path}: {match.detail}")


def _measures(node: fx.Node) -> bool:
    """True for a norm of activations that takes statistics of each input or batch for each channel."""
    if is_static(node):
        return False
    if norm_of(node, "batch"):
        running = [argument(node, name, None) for name in ("running_mean", "running_var")]
        return bool(argument(node, "training", False)) or not all(map(is_static, running))
    if is_norm(node, "instance-norm"):
        return bool(argument(node, "use_input_stats", True))
    if is_norm(node, "layer-norm"):  # over each map of an image: an InstanceNorm
        over = len(argument(node, "normalized_shape"))
        return over > 1 and over == len(shape_of(node)) - 2 and argument(node, "weight") is None
    return own_statistic(node) is not None


def _norm(node: fx.Node) -> _Measured | None:
    """What there is to measure of a norm; None where that is not one number per channel."""
    if norm_of(node):
        x, result = node.args[0], node
        if isinstance(node.meta["val"], (tuple, list)):
            if any(user.args[1] != 0 for user in node.users):
                return None
            (result,) = node.users
        assert isinstance(x, fx.Node)
        known = len(shape_of(x)) > 1 and not is_symbolic(shape_of(x)[1])
        return _Measured(node, x, result, 1) if known else None
    return _by_hand(node)


def _by_hand(node: fx.Node) -> _Measured | None:
    left, right = node.all_input_nodes
    inverse = not row_of(node).inverts
    for value, divisor in ((left, right), (right, left)) if inverse else ((left, right),):
        x, mean = value, None
        row = row_of(value)
        if row.kind is Kind.ADD and row.inverts and value.kwargs.get("alpha", 1) == 1:
            first, second = value.args[:2]
            if isinstance(first, fx.Node) and isinstance(second, fx.Node) and not is_static(second):
                x, mean = first, second
        axis = _axis(divisor, node)
        alike = mean is None or _axis(mean, node) == axis
        if axis is not None and alike and shape_of(x) == shape_of(node):
            return _Measured(node, x, node, axis, mean, divisor, inverse)
    return None


def _axis(part: fx.Node, node: fx.Node) -> int | None:
    """The axis behind the batch along which ``part`` has the numbers of its channels, one for each image."""
    sizes = shape_of(part)
    if len(sizes) != len(shape_of(node)) or len(sizes) < 3:
        return None
    axes = [dim for dim, size in enumerate(sizes) if dim and (is_symbolic(size) or size != 1)]
    return axes[0] if len(axes) == 1 and not is_symbolic(sizes[axes[0]]) else None


def _frozen(graph: Graph, norms: Sequence[_Measured]) -> Mapping[fx.Node, _Frozen]:
    """What each norm is frozen to, by its result, on ``graph.samples``."""
    samples = graph.sample_inputs() if norms else []
    if not samples:
        return {}
    means: dict[fx.Node, list[Tensor]] = {norm.result: [] for norm in norms}
    squares: dict[fx.Node, list[Tensor]] = {norm.result: [] for norm in norms}

    def measure(values: Mapping[fx.Node, Tensor], norm: _Measured) -> None:
        mean, square = _statistics(values, norm)
        means[norm.result].append(mean)
        squares[norm.result].append(square)

    _watch(graph, samples, norms, measure)
    frozen = {}
    for norm in norms:
        mean, square = torch.cat(means[norm.result]), torch.cat(squares[norm.result])
        variance = square.mean(0) + mean.var(0, unbiased=False)
        frozen[norm.result] = mean.mean(0), variance.sqrt()
    off = {norm.result: [0.0, 0.0] for norm in norms}

    def compare(values: Mapping[fx.Node, Tensor], norm: _Measured) -> None:
        x, y = (values[node].double().movedim(norm.axis, -1) for node in (norm.x, norm.result))
        mean, deviation = frozen[norm.result]
        made = (x - mean) / deviation
        gain, bias = _affine(norm.node)
        made = made if gain is None else made * graph.value(gain)
        made = made if bias is None else made + graph.value(bias)
        off[norm.result][0] += float((made - y).square().sum())
        off[norm.result][1] += float(y.square().sum())

    _watch(graph, samples, norms, compare)
    return {
        node: _Frozen(*frozen[node], (wrong / max(whole, 1e-300)) ** 0.5)
        for node, (wrong, whole) in off.items()
    }


def _watch(
    graph: Graph,
    samples: Sequence[Sequence[Any]],
    norms: Sequence[_Measured],
    tell: Callable[[Mapping[fx.Node, Tensor], _Measured], None],
) -> None:
    """Run samples, and tell each norm's values when it has given its result."""
    results = {norm.result: norm for norm in norms}
    kept = {node for norm in norms for node in (norm.x, norm.mean, norm.divisor, norm.result)}
    values: dict[fx.Node, Tensor] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if node in kept:
            values[node] = value
        if node in results:
            tell(values, results[node])

    run = Evaluator(graph.module, watch=watch)
    for sample in samples:
        run(*sample)
        values.clear()


def _statistics(values: Mapping[fx.Node, Tensor], norm: _Measured) -> tuple[Tensor, Tensor]:
    """Means and squared deviations (images, channels) of each image, of a BatchNorm of each batch, in float64."""
    x = values[norm.x].double()
    if norm.divisor is None:
        together = norm_of(norm.node, "batch")
        axes = [dim for dim in range(x.dim()) if dim != 1 and (dim or together)]
        mean, square = x.mean(axes), x.var(axes, unbiased=False) + float(argument(norm.node, "eps"))
        return (mean[None], square[None]) if together else (mean, square)
    divisor = _of_channels(values[norm.divisor], norm.axis)
    square = divisor.square().reciprocal() if norm.inverse else divisor.square()
    if norm.mean is None:
        return torch.zeros_like(square), square
    return _of_channels(values[norm.mean], norm.axis), square


def _of_channels(part: Tensor, axis: int) -> Tensor:
    return part.double().movedim(axis, 1).flatten(1)


def _affine(node: fx.Node) -> tuple[Any, Any]:
    """Gain and bias of a norm that still has them."""
    if not norm_of(node):
        return None, None
    return argument(node, "weight", None), argument(node, "bias", None)


def _site(graph: Graph, node: fx.Node) -> Site:
    path, count = layer_name(node), 1
    while (name := path if count == 1 else f"{path}#{count}") in graph.sites:
        count += 1
    kind = "batch-norm" if norm_of(node) else "input-norm"
    return Site(name, kind, source_line(node), module_type(node))
