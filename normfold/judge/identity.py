"""Two graphs on the same elements of prime fields: which outputs are equal, which differ, and what excuses that.

Both are evaluated on the same random elements in place of parameters and inputs. What is an identity agrees to the
bit; what is none differs but for a rare chance, however small the fault is in floats: a writer that was left
uncentred under a LayerScale of 1e-6 is as plain as any other.

An op that has no meaning there stands for an unknown function of its operands. A difference behind one is not
called a fault unless its operands are the same in both networks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.field import Elements, Field, Readings, Uninterpreted, Unknown
from normfold.domains.numbers import Surd, recognised
from normfold.domains.residues import PrimeField, suitable_primes
from normfold.domains.resized import Resized
from normfold.ir import Graph
from normfold.ir.evaluation import Evaluator
from normfold.ir.expressions import fetch, late, made_of
from normfold.ir.graph import Entry, op_name
from normfold.ir.provenance import module_path, source_line
from normfold.judge.inputs import Case, cases, smallest
from normfold.judge.kept import Kept
from normfold.judge.smaller import smaller
from normfold.load.specs import is_mask
from normfold.ops.table import row_of
from normfold.report.certificate import Certificate, OutputIdentity, Uncovered

DRAWS = 3  # of elements, where some happened to be zero in a denominator
State = Literal["equal", "differs", "unknown"]
_NEAR = 1e-9  # of real numbers that depend on no element


@dataclass(frozen=True)
class Draw:
    """What one field says."""

    outputs: tuple[OutputIdentity, ...]
    uncovered: tuple[Uncovered, ...]

    @property
    def unknown(self) -> int:
        return sum(output.state == "unknown" for output in self.outputs)


@dataclass(frozen=True)
class Run:
    """One network in one field."""

    outputs: list[Any]
    uninterpreted: dict[fx.Node, Uninterpreted]
    opaque: set[float]


def run_of(field: Field, outputs: Sequence[Any]) -> Run:
    """What a field knows after an evaluation that gave these outputs."""
    left = [y for y in outputs if isinstance(y, Elements | Unknown | Tensor)]
    return Run(left, field.uninterpreted, field.arithmetic.opaque)


class Trial:
    """Two networks, to be compared in several fields.

    Attributes:
        steps: for each network its nodes in the order of evaluation.
    """

    def __init__(self, original: Graph, result: Graph, seed: int) -> None:
        self.original, self.result, self.seed = original, result, seed
        self.radicands, self.rationals = _numbers((original, result))
        names = original.output_names
        self.kept = Kept(names, result.output_sources or names)
        self.steps = {id(graph): late(graph.module.graph) for graph in (original, result)}
        self.images = _counts(original) & _counts(result)
        self.readings = Readings(frozenset(_storages(original)))
        self.evaluations = 0

    def certificate(self, primes: int, small: bool) -> Certificate:
        """What so many fields say."""
        start = time.perf_counter()
        orders = suitable_primes(primes, self.radicands, self.rationals)
        of, found = self.smallest(orders, small)
        outputs = tuple(map(_worst, zip(*(draw.outputs for draw in found), strict=True)))
        covered, left = sites_of(self.original, self.result, outputs)
        return Certificate(
            state=state_of(outputs),
            primes=orders,
            outputs=outputs,
            uncovered=found[0].uncovered,
            covered=covered,
            left=left,
            sizes=" and ".join(dict.fromkeys(_shapes(self.original, case) for case in of)),
            seconds=time.perf_counter() - start,
            seed=self.seed,
            evaluations=self.evaluations,
            note=self.kept.note,
        )

    def smallest(self, orders: Sequence[int], small: bool) -> tuple[list[Case], list[Draw]]:
        """The smallest case for which there is an answer and what it says, for each field."""
        two, one = (smallest(self.original, self.seed, batch) for batch in (2, 1))
        others = [smaller(self.original, case) if small else None for case in (two, one)]
        if others[0] is not None and others[1] is not None:
            of = [others[0], *[others[1]] * (len(orders) - 1)]
            found = []
            for prime, case in zip(orders, of, strict=True):
                found.append(self.draw(prime, case, Resized))
                if any(output.state != "equal" for output in found[-1].outputs):
                    break
            else:
                return of, found
        of, found = [two], [self.draw(orders[0], two)]
        if found[0].unknown and (whole := cases(self.original, self.seed, kinds=("random",))):
            again = self.draw(orders[0], whole[0])  # perhaps it takes no such batch
            if again.unknown < found[0].unknown:
                of, found = [whole[0]], [again]
        for prime in orders[1:]:
            if found[0].unknown == len(found[0].outputs):
                break  # other fields know no more
            drawn = self.draw(prime, one)
            if drawn.unknown > found[0].unknown:
                one = of[0]
                drawn = self.draw(prime, one)
            of, found = [*of, one], [*found, drawn]
        return of, found

    def draw(self, prime: int, case: Case, kind: type[Field] = Field) -> Draw:
        """Random elements, drawn again where a difference may come from one that happened to be zero."""
        for attempt in range(DRAWS):
            arithmetic = PrimeField(prime, self.seed + 1000003 * attempt, self.radicands)
            found = self.compared(kind(arithmetic, self.readings), case)
            if not arithmetic.singular or all(y.state != "differs" for y in found.outputs):
                break
        return found

    def compared(self, field: Field, case: Case) -> Draw:
        """Both networks on the same elements."""
        leaves = self.inputs(field, case)
        before = self._run(field, self.original, self.entered(field, leaves))
        after = self._run(field, self.result, leaves)
        return self.said(field, before, after)

    def said(self, field: Field, before: Run, after: Run) -> Draw:
        """What two runs say of the outputs that are in both."""
        expected = list(
            zip(self.kept.left(before.outputs), self.places(self.original), strict=True)
        )
        (results,) = self.kept.known([after.outputs])
        (places,) = self.kept.known([self.places(self.result)])
        if len(expected) != len(results):
            why = f"{len(results)} outputs instead of {len(expected)}"
            return Draw((OutputIdentity("*", "differs", why),), ())
        found = []
        for index, ((mine, source), yours, place) in enumerate(
            zip(expected, results, places, strict=True)
        ):
            state, why = equal(field, mine, yours)
            state, why = self.excused(state, why, before, source, after, place)
            found.append(OutputIdentity(self.kept.name(index), state, why))
        return Draw(tuple(found), uncovered_of(bad(before), bad(after)))

    def excused(
        self, state: State, why: str, before: Run, source: fx.Node, after: Run, place: fx.Node
    ) -> tuple[State, str]:
        """What is said of an output that two nodes give, where it may come from an op without a meaning."""
        reason = {"differs": excuse, "equal": chance}.get(state)
        found = reason(before, source, after, place) if reason is not None else ""
        return ("unknown", found) if found else (state, why)

    def _run(self, field: Field, graph: Graph, leaves: Sequence[Any]) -> Run:
        self.evaluations += 1
        field.uninterpreted, field.arithmetic.opaque = {}, set()
        outputs = Evaluator(graph.module, field, graph=self.steps[id(graph)])(*leaves)
        return run_of(field, outputs)

    def inputs(self, field: Field, case: Case) -> list[Any]:
        names = self.original.input_names
        return [
            field.random_input(leaf, str(index))
            if isinstance(leaf, Tensor)
            and (leaf.is_floating_point() or index in self.images)
            and not is_mask(names[index], torch.bool)
            else leaf
            for index, leaf in enumerate(case.leaves)
        ]

    def entered(self, field: Field, leaves: Sequence[Any]) -> list[Any]:
        """What the original reads, where the result's inputs are others."""
        entries = self.result.entries
        names = self.original.input_names
        return [
            _read(field, entries[name], leaf) if name in entries else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ]

    def places(self, graph: Graph) -> list[fx.Node]:
        """The nodes that give the outputs that are tensors, in order; the original's as the result has them."""
        (end,) = [node for node in self.steps[id(graph)].nodes if node.op == "output"]
        nodes = [leaf for leaf in pytree.tree_leaves(end.args) if isinstance(leaf, fx.Node)]
        nodes = [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]
        if graph is self.original and len(nodes) == len(self.kept.names):
            return self.kept.left(nodes)
        return nodes


def _read(field: Field, entry: Entry, leaf: Elements) -> Elements:
    """(x - mean) / std."""
    f, rank = field.arithmetic, leaf.value.dim() - 2
    mean, std = (f.exact(part).reshape(-1, *[1] * rank) for part in (entry.mean, entry.std))
    return Elements(f.mul(f.sub(leaf.value, mean), f.inverse(std)))


def _shapes(graph: Graph, case: Case) -> str:
    return " ".join(
        f"{name}:{'x'.join(map(str, leaf.shape))}"
        for name, leaf in zip(graph.input_names, case.leaves, strict=False)
        if isinstance(leaf, Tensor)
    )


def _storages(graph: Graph) -> Iterable[int]:
    for node in graph.nodes:
        if node.op == "get_attr":
            value = fetch(graph.module, str(node.target))
            if isinstance(value, Tensor):
                yield value.untyped_storage().data_ptr()


def _counts(graph: Graph) -> set[int]:
    """Inputs in bytes of which floats are made and nothing else: those of images are numbers all the same."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return {
        place
        for place, node in enumerate(inputs)
        if getattr(node.meta.get("val"), "dtype", None) == torch.uint8
        and all(_is_float(user) and row_of(user).move.casts for user in node.users)
    }


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _numbers(graphs: Sequence[Graph]) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """What the numbers in graphs are roots of, and the rationals among them and in front of the roots."""
    written = {
        leaf
        for graph in graphs
        for node in graph.nodes
        for leaf in pytree.tree_leaves((node.args, node.kwargs))
        if isinstance(leaf, float) and 0 < abs(leaf) < 1e30
    }
    written.update(x for graph in graphs for e in graph.entries.values() for x in e.std.tolist())
    surds = [read for read in map(recognised, written) if isinstance(read, Surd)]
    radicands = tuple(sorted({read.radicand for read in surds}))
    found = [recognised(leaf, radicands) for leaf in written]
    rationals = {abs(read.factor if isinstance(read, Surd) else read) for read in found if read}
    return radicands, tuple(sorted(rationals))


# -- comparison -------------------------------------------------------------------------------------


def equal(field: Field, mine: Any, yours: Any) -> tuple[State, str]:
    for value in (mine, yours):
        if isinstance(value, Unknown):
            return "unknown", f"`{op_name(value.node)}`: {value.why}{_at(value.node)}"
    if isinstance(mine, Tensor) and isinstance(yours, Tensor):
        same = mine.shape == yours.shape and torch.allclose(
            mine.double(), yours.double(), rtol=_NEAR, atol=_NEAR, equal_nan=True
        )
        return (
            ("equal", "")
            if same
            else ("differs", "it depends on no element, and is another number")
        )
    f = field.arithmetic
    mine, yours = (
        f.counted(x.value) if isinstance(x, Elements) else f.exact(x) for x in (mine, yours)
    )
    if mine.shape != yours.shape:
        return "differs", f"shape {tuple(yours.shape)}, not {tuple(mine.shape)}"
    other = int((mine != yours).sum())
    return ("differs", f"{other} of {mine.numel()} elements") if other else ("equal", "")


def excuse(before: Run, source: fx.Node, after: Run, place: fx.Node) -> str:
    """What may be between a difference and the op that made it; nothing where all that is known is the same."""
    for node, mark, of in _unmatched(before, source, after, place):
        why = f"`{op_name(node)}` ({mark.why})"
        text = f"it differs behind {why}" if of is after else f"it differs, and {why} is gone"
        return text + _at(node)
    only = before.opaque ^ after.opaque
    return f"it differs, and {min(only)!r} stands for nothing simple" if only else ""


def chance(before: Run, source: fx.Node, after: Run, place: fx.Node) -> str:
    """A decision by value behind which equal outputs may be equal by chance: it reads other elements, whose order
    says nothing."""
    for node, _, _ in _unmatched(before, source, after, place):
        made = [y for y in pytree.tree_leaves(node.meta.get("val")) if isinstance(y, Tensor)]
        if any(not (y.is_floating_point() or y.is_complex()) for y in made):
            return f"`{op_name(node)}` decides on other numbers{_at(node)}"
    return ""


def _at(node: fx.Node) -> str:
    line = source_line(node)
    return f" at {line}" if line else ""


def _unmatched(
    before: Run, source: fx.Node, after: Run, place: fx.Node
) -> Iterator[tuple[fx.Node, Uninterpreted, Run]]:
    """Ops without a meaning in front of a result that read what no such op of the other network reads."""
    mine, yours = _behind(before, source), _behind(after, place)
    left = Counter(mark.fingerprint for _, mark in mine)
    for node, mark in yours:
        if not left[mark.fingerprint]:
            yield node, mark, after
        left[mark.fingerprint] -= 1
    left = Counter(mark.fingerprint for _, mark in mine)
    left.subtract(mark.fingerprint for _, mark in yours)
    for node, mark in mine:
        if left[mark.fingerprint] > 0:
            left[mark.fingerprint] -= 1
            yield node, mark, before


def _behind(run: Run, end: fx.Node) -> list[tuple[fx.Node, Uninterpreted]]:
    seen = made_of(end)
    return [(node, mark) for node, mark in run.uninterpreted.items() if node in seen]


def state_of(outputs: Iterable[OutputIdentity]) -> Literal["certified", "failed", "partly"]:
    """Of a certificate that says this of the outputs."""
    states = {output.state for output in outputs}
    return "failed" if "differs" in states else "partly" if "unknown" in states else "certified"


def _worst(same: Sequence[OutputIdentity]) -> OutputIdentity:
    return max(same, key=lambda output: ("equal", "unknown", "differs").index(output.state))


# -- what was not covered ---------------------------------------------------------------------------


def bad(run: Run) -> list[tuple[fx.Node, str]]:
    found = [(node, mark.why) for node, mark in run.uninterpreted.items()]
    return found + [(y.node, y.why) for y in run.outputs if isinstance(y, Unknown)]


def uncovered_of(*networks: Sequence[tuple[fx.Node, str]]) -> tuple[Uncovered, ...]:
    """Each op once, with the number of calls in the network that has more of them."""
    count: Counter[tuple[str, str]] = Counter()
    lines: dict[tuple[str, str], dict[str, None]] = {}
    for found in networks:
        count |= Counter((op_name(node), why) for node, why in found)
        for node, why in found:
            lines.setdefault((op_name(node), why), {})[source_line(node)] = None
    return tuple(
        Uncovered(op, why, times, tuple(filter(None, lines[op, why])))
        for (op, why), times in count.items()
    )


def sites_of(
    original: Graph, result: Graph, outputs: Sequence[OutputIdentity]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites whose every output is equal, and the others."""
    (end,) = [node for node in original.nodes if node.op == "output"]
    ends = [leaf for leaf in pytree.tree_leaves(end.args) if isinstance(leaf, fx.Node)]
    names = original.output_names
    state = {output.output: output.state for output in outputs}
    placeholders = [node for node in original.nodes if node.op == "placeholder"]
    inputs = dict(zip(placeholders, original.input_names, strict=False))
    behind: dict[str, set[str]] = {}
    for name, node in zip(names, ends, strict=False):
        for source in made_of(node):
            for path in {module_path(source), inputs.get(source, source.name)}:
                behind.setdefault(path, set()).add(state.get(name, "unknown"))
    covered = [path for path in result.sites if behind.get(path.split("#")[0]) == {"equal"}]
    return tuple(covered), tuple(path for path in result.sites if path not in covered)
