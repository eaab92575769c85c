"""The certificate in parts: both networks are cut at tensors that a rewrite left as they are.

Names say which tensors those may be: a pass keeps the nodes that it does not touch. That is a claim, and it is
tested: both networks are evaluated side by side, and where the two tensors of a pair hold the same elements, both
go on from the same fresh ones, of the same signs and zeros. Each part is so compared alone, on inputs that are
more general than what the part in front gives; as the original has no cycles, parts that are the same functions
make networks that are the same function. A pair that does not agree is no cut, and its neighbours are one part.
Where an output differs in the end, a rewrite may have used what a cut forgets; then nothing is cut.

A cut knows two relations. ``same``; and ``centred``, for a stream that the result keeps without its mean.

What is gained: a difference is located, the tensors and weights of a part are freed behind it, and what a network
chooses by value (`normfold.domains.decided`) is the same in both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normfold.domains.decided import Decided, Decisions, ResizedDecided
from normfold.domains.field import Elements, Field, Unknown
from normfold.domains.residues import PrimeField
from normfold.domains.resized import Resized
from normfold.ir import Graph
from normfold.ir.expressions import fetch, is_static, made_of, order
from normfold.ir.graph import op_name
from normfold.ir.provenance import place_of
from normfold.judge.identity import Draw, Run, State, Trial, run_of
from normfold.judge.inputs import Case
from normfold.ops.arithmetic import HIDDEN
from normfold.report.certificate import Certificate


def certify_parts(
    original: Graph, result: Graph, seed: int = 0, primes: int = 3, small: bool = True
) -> Certificate:
    """Test part by part that an un-baked result is the captured original, in so many prime fields.

    Of the parameters no more is in memory than one op reads, for weights that lie in a mapped file
    (safetensors, ``torch.load(..., mmap=True)``).

    Args:
        small: see `normfold.judge.certificate.certify`.

    Raises:
        ValueError: the result is baked.
    """
    if result.baked:
        raise ValueError("a certificate is about un-baked algebra: the weights are rounded")
    parts = Parts(original, result, seed)
    found = parts.certificate(primes, small)
    return replace(found, parts=parts.count, largest=parts.largest)


class Parts(Trial):
    """Two networks, to be compared part by part.

    Attributes:
        count: of the parts in the first field in which all of them are equal, and ``largest`` the number of ops of
            the original in one; 0 where there is no such field.
    """

    def __init__(self, original: Graph, result: Graph, seed: int) -> None:
        super().__init__(original, result, seed)
        split = [_separate(graph.module.graph) for graph in (original, result)]
        self.steps = {
            id(graph): steps for graph, (steps, _) in zip((original, result), split, strict=True)
        }
        self.names, self.others = (names for _, names in split)
        self.pairs = _pairs(self.names, self.others)
        self.count = self.largest = 0

    def draw(self, prime: int, case: Case, kind: type[Field] = Field) -> Draw:
        return super().draw(prime, case, ResizedDecided if kind is Resized else Decided)

    def compared(self, field: Field, case: Case) -> Draw:
        """In parts; and as a whole where an output is not equal in parts."""
        assert isinstance(field, Decided)
        found = self._side_by_side(field, case, True)
        if all(output.state == "equal" for output in found.outputs):
            if not self.count:
                self.count, self.largest = self._sizes()
            return found
        if self._stuck:
            return found
        again = type(field)(
            PrimeField(field.arithmetic.prime, field.arithmetic.seed, self.radicands),
            self.readings,
        )
        whole = self._side_by_side(again, case, False)
        field.arithmetic.singular = again.arithmetic.singular
        outputs = zip(found.outputs, whole.outputs, strict=True)
        return Draw(
            tuple(part if part.state == "equal" else last for part, last in outputs),
            whole.uncovered,
        )

    def excused(
        self, state: State, why: str, before: Run, source: fx.Node, after: Run, place: fx.Node
    ) -> tuple[State, str]:
        """Behind a decision that was made on other elements an equal output is not known to be equal, and a
        difference is one all the same: in floats the decisions are alike, or the outputs differ for that."""
        behind = {self.names.get(node) for node in made_of(source)} & self._doubtful
        behind |= {self.others.get(node) for node in made_of(place)} & self._doubtful
        if state == "equal" and behind:
            first = next(node for node, name in self.names.items() if name in behind)
            why = f"`{op_name(first)}` decides on other numbers"
            return "unknown", f"{why}; {self._origin(first)}"
        state, why = super().excused(
            state, why, _without(before, self.names, behind), source,
            _without(after, self.others, behind), place,
        )  # fmt: skip
        return state, why if state == "equal" else f"{why}; {self._origin(source)}"

    def _side_by_side(self, field: Decided, case: Case, cut: bool) -> Draw:
        other = type(field)(
            PrimeField(field.arithmetic.prime, field.arithmetic.seed, self.radicands),
            self.readings,
        )
        field.decisions, other.decisions = Decisions(self.names), Decisions(self.others)
        other.leader = field.decisions
        leaves = self.inputs(field, case)
        mine = _Walk(
            self.original, self.steps[id(self.original)], field, self.entered(field, leaves)
        )
        yours = _Walk(self.result, self.steps[id(self.result)], other, leaves)
        self.evaluations += 2
        self._same = set[fx.Node]()
        with torch.no_grad(), field.active(), other.active():
            for one, another in self.pairs:
                x, y = mine.until(one), yours.until(another)
                relation = _relation(field, x, y)
                if relation is None:
                    continue
                self._same.add(one)
                if cut:
                    fresh = _fresh(field, x, self.names[one])
                    mine.values[one], yours.values[another] = fresh, relation(fresh)
            before, after = (run_of(walk.field, walk.rest()) for walk in (mine, yours))
        self._doubtful = other.decisions.doubtful
        self._stuck = all(isinstance(y, Unknown) for y in (*before.outputs, *after.outputs))
        field.arithmetic.singular |= other.arithmetic.singular
        return self.said(field, before, after)

    def _origin(self, end: fx.Node) -> str:
        """Where the part begins that gives a tensor that is not the same, in words."""
        seen, stack = {end}, [end]
        while stack:
            for node in stack.pop().all_input_nodes:
                known = node in seen or node in self._same
                if node in self.names and node.op == "call_function" and not known:
                    seen.add(node)
                    stack.append(node)
        first = next(node for node in self.names if node in seen)
        return f"it begins at `{op_name(first)}`, {place_of(first)}"

    def _sizes(self) -> tuple[int, int]:
        """How many parts there are, and how many ops of the original are in the largest one."""
        root: dict[fx.Node, fx.Node] = {}

        def find(node: fx.Node) -> fx.Node:
            while root[node] is not node:
                root[node] = root[root[node]]
                node = root[node]
            return node

        for node in self.names:
            if node.op == "call_function":
                root[node] = node
                for operand in node.all_input_nodes:
                    if operand in root and operand not in self._same:
                        root[find(operand)] = find(node)
        count = Counter(find(node) for node in root)
        return len(count), max(count.values(), default=0)


class _Walk:
    """An evaluation of one network that stops where it is asked to; values are freed behind their last use."""

    def __init__(
        self, graph: Graph, steps: fx.Graph, field: Decided, leaves: Sequence[Any]
    ) -> None:
        self.module, self.field = graph.module, field
        self.values: dict[fx.Node, Any] = {}
        self._leaves, self._steps = iter(leaves), iter(steps.nodes)
        self._unused: dict[fx.Node, list[fx.Node]] = {}
        last = {operand: node for node in steps.nodes for operand in node.all_input_nodes}
        for operand, node in last.items():
            self._unused.setdefault(node, []).append(operand)

    def until(self, end: fx.Node) -> Any:
        """The value of a node that was not passed yet."""
        for node in self._steps:
            value = self._value(node)
            if node is end:
                return value
        raise AssertionError(f"`{end}` was passed")

    def rest(self) -> list[Any]:
        """The flat outputs."""
        for node in self._steps:
            value = self._value(node)
        return pytree.tree_leaves(value)

    def _value(self, node: fx.Node) -> Any:
        match node.op:
            case "placeholder":
                value = self.field.input(node, next(self._leaves))
            case "get_attr":
                target = str(node.target)
                value = self.field.parameter(target, fetch(self.module, target))
            case "output":
                value = fx.map_arg(node.args, self.values.__getitem__)
            case _:
                value = self.field.call(node, self.values)
        self.values[node] = value
        for operand in self._unused.get(node, ()):
            del self.values[operand]
        return value


def _separate(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The same graph, each parameter expression just before each use of it, and the names of the other nodes."""
    found, copies, names = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, str]()
    for node in graph.nodes:
        if is_static(node):
            continue
        steps = order(node, copies)
        for step in steps:
            copies[step] = found.node_copy(step, copies.__getitem__)
        names[copies[node]] = node.name
        for step in steps:
            if is_static(step):  # a tied table is not kept from the first layer to the last one
                del copies[step]
    return found, names


def _pairs(
    mine: Mapping[fx.Node, str], yours: Mapping[fx.Node, str]
) -> list[tuple[fx.Node, fx.Node]]:
    """Calls of one name, as many as are in the same order in both networks."""
    places = {name: index for index, name in enumerate(yours.values())}
    nodes = list(yours)
    calls = [node for node, name in mine.items() if node.op == "call_function" and name in places]
    ends: list[int] = []  # of the best increasing rows of each length, as patience sorting has them
    chains: list[tuple[fx.Node, Any]] = []
    for node in calls:
        place = places[mine[node]]
        at = bisect_left(ends, place)
        chain = (node, chains[at - 1] if at else None)
        ends[at : at + 1], chains[at : at + 1] = [place], [chain]
    found = []
    row: Any = chains[-1] if chains else None
    while row is not None:
        node, row = row
        found.append((node, nodes[places[mine[node]]]))
    return found[::-1]


def _relation(field: Field, x: Any, y: Any) -> Callable[[Elements], Elements] | None:
    """What makes the result's tensor of the original's, if it is one of the two that a cut knows."""
    if not isinstance(x, Elements) or not isinstance(y, Elements) or x.value.shape != y.value.shape:
        return None
    f = field.arithmetic
    wanted = f.counted(y.value)
    if torch.equal(f.counted(x.value), wanted):
        return lambda fresh: fresh
    if bool((x.value == HIDDEN).any()) or bool((y.value == HIDDEN).any()):
        return None
    for axis in {-1, 1} if x.value.dim() > 2 else {-1} if x.value.dim() else ():  # channels
        if torch.equal(f.counted(_centred(f, x.value, axis)), wanted):
            return lambda fresh: Elements(_centred(f, fresh.value, axis))
    return None


def _centred(f: PrimeField, x: Tensor, axis: int) -> Tensor:
    total = f.reduce(x.sum(axis, keepdim=True), x.shape[axis])
    return f.sub(x, f.mul(total, f.tally(x.shape[axis])))


def _fresh(field: Field, x: Elements, name: str) -> Elements:
    """Other elements of the same signs: a ReLU's result stays one, and what a mask hides stays hidden."""
    f = field.arithmetic
    hidden = x.value == HIDDEN
    signs = f.sign(torch.where(hidden, 0.0, x.value))
    drawn = torch.randint(1, f.prime, x.value.shape, generator=f.generator(f"cut {name}")).double()
    return Elements(torch.where(hidden, HIDDEN, f.mul(f.mul(drawn, drawn), signs.double())))


def _without(run: Run, names: Mapping[fx.Node, str], dropped: Collection[str | None]) -> Run:
    left = {
        node: mark for node, mark in run.uninterpreted.items() if names.get(node) not in dropped
    }
    return replace(run, uninterpreted=left)
