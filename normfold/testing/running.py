"""What every check does: prepare a network, run the pass on it, judge what came out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from normfold.ir import Graph, capture
from normfold.ir.randomness import random_note
from normfold.ir.states import State
from normfold.ir.text import graph_text
from normfold.judge import Verifier
from normfold.judge.rules import Rules, budgets
from normfold.report import PassReport
from normfold.rewrite import Exactness, Pass, parse, run_pipeline
from normfold.testing.shapes import untrue_shapes


@dataclass(frozen=True)
class Ran:
    """A graph, what a pass made of it, and what the pass says of that."""

    before: Graph
    after: Graph
    report: PassReport

    @property
    def outcome(self) -> str:
        """What the pass did, in words."""
        declined = ", ".join(f"{item.site} for {item.code}" for item in self.report.declined)
        return f"{self.report.rewrites} rewritten, declined: {declined or 'nothing'}"


def failure(item: Pass, what: str, where: str = "", found: str = "") -> AssertionError:
    """The error of a check: what is wrong, where, and what was found."""
    lines = [f"`{item}` {what}"]
    lines += [f"  at {where}"] if where else []
    lines += [f"  found: {found}"] if found else []
    return AssertionError("\n".join(lines))


def perturbed(network: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of ``network`` in eval mode in which no parameter and no statistic has its initial value.

    A gain of one and a bias of zero hide a pass that forgets them. Gains (``weight`` with one axis) get both
    signs, variances stay positive, other constant parameters change by up to a half; parameters whose numbers are
    random already stay as they are.
    """
    made = copy.deepcopy(network).eval()
    random = torch.Generator().manual_seed(seed)
    statistics = [item for item in made.named_buffers() if "running_" in item[0]]
    for name, tensor in [*made.named_parameters(), *statistics]:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        leaf = name.rpartition(".")[2]
        noise, share = (
            make(tensor.shape, generator=random, dtype=torch.float64).to(tensor.device)
            for make in (torch.randn, torch.rand)
        )
        with torch.no_grad():
            value = tensor.double()
            if leaf == "running_var":
                value = 0.5 + 1.5 * share
            elif leaf == "weight" and tensor.dim() == 1:
                value = (0.5 + share) * torch.where(noise > -0.5, 1.0, -1.0)
            elif not value.any() or leaf in ("bias", "running_mean"):
                value = value + 0.3 * noise
            elif bool((value == value.flatten()[0]).all()):
                value = value * (0.5 + share)
            tensor.copy_(value)
    return made


def prepared(
    item: Pass, network: nn.Module | Graph, inputs: tuple[Any, ...], before: str | None
) -> Graph:
    """A graph on which a pass can run: perturbed, captured, and behind the passes of ``before``."""
    if isinstance(network, Graph):
        graph = network
    else:
        graph = capture(perturbed(network), inputs)
        graph.samples = [(graph.args, graph.kwargs)]
    if before is None:
        before = ",".join(state.made_by for state in State if state in item.requires - graph.states)
    return run_pipeline(graph, parse(before))[0] if before else graph


def ran(item: Pass, graph: Graph, limit: int | None = None) -> Ran:
    """Run a pass on a copy of ``graph``.

    Raises:
        AssertionError: the pass changed ``graph`` or its tensors, which the copy shares; or shapes and types that
            the new graph says of its nodes are not those that it computes.
    """
    text, numbers = graph_text(graph), digest(graph)
    after = graph.copy()
    report = item.run(after, limit)
    if graph_text(graph) != text:
        raise failure(item, "changed the graph that was copied for it")
    changed = sorted(name for name, value in digest(graph).items() if numbers.get(name) != value)
    if changed:
        raise failure(
            item,
            "changed a tensor of the network in place: write `rewriter.expression` instead",
            where=", ".join(changed),
        )
    untrue = untrue_shapes(after)
    if untrue:
        raise failure(
            item,
            "left a shape or a type that is not what its node computes (`rewriter.infer` finds it)",
            found=untrue[0],
        )
    return Ran(graph, after, report)


def ran_somewhere(item: Pass, graph: Graph) -> Ran:
    """Run a pass that has to rewrite something: a check of nothing would always pass.

    Raises:
        AssertionError: it rewrote nothing.
    """
    found = ran(item, graph)
    if not found.report.rewrites:
        raise failure(item, "rewrote nothing here, so nothing was checked", found=found.outcome)
    return found


def digest(graph: Graph) -> dict[str, str]:
    """A hash of the numbers of every tensor of a graph, by its name."""
    return {name: _hash(value) for name, value in graph.module.state_dict().items()}


def _hash(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


class Bench:
    """Judges what a pass makes of one graph, as `normfold.run` does: certificate, float64, and its own types."""

    def __init__(self, item: Pass, graph: Graph, seed: int = 0) -> None:
        if item.exactness is Exactness.CHANGES_FUNCTION:
            raise failure(item, "changes the function: there is nothing to compare it with")
        drawn = random_note(graph)
        if drawn:
            raise failure(item, "cannot be judged on this network", found=drawn[0])
        self.item = item
        # what the passes in front of it made is the reference: only this pass is judged
        self.verifier = Verifier(replace(graph, original=None), seed)
        self.verifier.brief = True

    def flaws(self, result: Graph, report: PassReport) -> Iterator[str]:
        """What is wrong with a result, in words: before it is baked, and baked."""
        rules = Rules(self.verifier, budgets([self.item]))
        rules.ran(0, report)
        stages = [result] if result.baked else [result, run_pipeline(result, parse("bake"))[0]]
        for graph in stages:
            found = rules.judge(graph)
            if found.certificate is not None:
                yield from found.certificate.failures()
            yield from (f"{text} ({found.check.kind})" for text in found.check.failures())

    def error(self, result: Graph) -> float:
        """The largest error of a result in float64, relative to the outputs; NaN if there is one."""
        return self.verifier.algebra(result).max_rel
