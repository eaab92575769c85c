"""What to store centred: every tensor that a LayerNorm's mean can be traced to, and one minimum cut over all.

LayerNorm(x) = RMSNorm(P x) with P x = x - mean(x), and LayerNorm(P x) = LayerNorm(x). For a tensor and the
groups that a norm takes its means over there are two choices: *stored* (P x flows in place of x) and
*copied* (P x is there for whoever wants it: stored, or made by one explicit op at a price).

* A norm over the same groups gains where x is copied.
* stored(x) implies stored(y) for every y that is made of x by an op that commutes with P, and is forbidden by
  any other reader; readers that do not see P (norms over these groups or parts of them) do not mind.
* stored(y) implies copied(x) for every x that y is made of, needs nothing where a linear op, a parameter or
  another norm's core writes y, and is forbidden otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from normfold.ir.expressions import is_static, sharers
from normfold.ir.graph import Graph, argument, op_name, shape_of
from normfold.ops import groups as grouping
from normfold.ops import layout
from normfold.ops.layout import LayoutError
from normfold.ops.reads import operands
from normfold.ops.table import Kind, is_norm, kind_of, norm_of
from normfold.report.reasons import Reason
from normfold.rewrite.base import Decline
from normfold.rewrite.closure import Closure
from normfold.spaces.carriers import GROUPS
from normfold.spaces.traversal import Member, Traversal
from normfold.spaces.writers import Writer, reads_as_head, writer_of

# in units of what a LayerNorm of equal size saves; measured by benchmarks/norm_costs.py in onnxruntime on x86
OP_COST, BIAS_COST = 1.0, 0.65


@dataclass(frozen=True)
class Obstacle:
    """Why a tensor cannot be stored centred: the reason, the node, and a detail in words."""

    reason: Reason
    node: fx.Node
    detail: str = ""


@dataclass(eq=False)
class CentredMember(Member):
    """A tensor with the groups it would be centred over.

    ``writer`` absorbs the centring. Else it is made of ``sources`` and ``constants``; or ``obstacle`` says why it
    cannot be made centred. ``foreign`` lists the readers that would see its mean missing.
    """

    writer: Writer | None = None
    heads: list[fx.Node] = field(default_factory=list)  # read the writer's table, and are corrected
    free: bool = False  # a norm's core: its mean is zero already
    obstacle: Obstacle | None = None
    foreign: list[Obstacle] = field(default_factory=list)

    @property
    def groups(self) -> Tensor:
        return self.ids

    @property
    def elements(self) -> int:
        return torch.Size(shape_of(self.node)).numel()


class Centering(Traversal[CentredMember]):
    """The members of a graph, and the best choice among them.

    Args:
        graph: canonicalised, so that norms are cores without weight and bias.
        op_cost: price of one explicit centring op, in units of what a norm of equal size gains.
        bias_cost: price of the addition that stays where a norm's bias could not be folded.
        untie: a weight with other uses may be copied.
        correct_heads: a table that is also a head's weight may be centred, and the head's result corrected.
    """

    def __init__(
        self,
        graph: Graph,
        op_cost: float = OP_COST,
        bias_cost: float = BIAS_COST,
        untie: bool = False,
        correct_heads: bool = False,
    ) -> None:
        self.graph, self.untie, self.correct_heads = graph, untie, correct_heads
        self.op_cost, self.bias_cost = op_cost, bias_cost
        super().__init__(GROUPS, CentredMember)
        self.norms: dict[fx.Node, CentredMember] = {}
        for node in graph.nodes:
            if is_core(node):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                self.norms[node] = self.member(source, norm_groups(node))
        self.follow()
        self._require_agreement()
        self.stored, self.copied = self._solve()

    def member(self, node: fx.Node, ids: Tensor) -> CentredMember:
        return super().member(node, grouping.canonical(ids))

    def gain(self, norm: fx.Node) -> float:
        """What a conversion of ``norm`` saves, in elements touched."""
        elements = torch.Size(shape_of(norm)).numel()
        return elements * (1 - self.bias_cost * (_bias_of(norm) is not None))

    def price(self, member: CentredMember) -> float:
        """What one explicit centring op costs, in elements touched."""
        return self.op_cost * member.elements

    # -- members ------------------------------------------------------------------------------------

    def find_sources(self, member: CentredMember) -> None:
        node, groups = member.node, member.groups
        if (writer := writer_of(node)) is not None:
            self._find_writer(member, writer)
            return
        if node in self.norms:
            member.free = grouping.key(norm_groups(node)) == grouping.key(groups)
        if member.free:
            return
        super().find_sources(member)
        if not member.sources and not member.constants:
            member.obstacle = _no_writer(node)
        for part, inner in member.constants:
            if not part.meta["val"].is_floating_point():
                text = "it takes a constant of integers, which has no mean of its dtype"
                member.obstacle = Obstacle(Reason.WRITER_FIXED, node, text)
            elif not grouping.is_simple(inner) and len(grouping.axes(inner)) != 1:
                raise LayoutError("a parameter has groups along several axes")

    def not_made(self, member: CentredMember, error: LayoutError) -> None:
        moved = kind_of(member.node) is Kind.MOVE
        reason = Reason.SPANS_TOKENS if moved else Reason.WRITER_FIXED
        member.obstacle = Obstacle(reason, member.node, str(error))

    def is_read(self, member: CentredMember) -> bool:
        return not member.free  # stored centred is what it is: no reader sees a difference

    def _find_writer(self, member: CentredMember, writer: Writer) -> None:
        node = member.node
        if not writer.absorbs(member.groups):
            if grouping.axes(member.groups) == [writer.out_dim]:
                text = (
                    f"each of its {writer.blocks} convolution groups writes a part of the features"
                )
                member.obstacle = Obstacle(Reason.WRITER_FIXED, node, text)
            else:
                text = "the mean runs over more than the features that this op writes"
                member.obstacle = Obstacle(Reason.SPANS_TOKENS, node, text)
            return
        others = sharers(writer.weight) - {node}
        if self.correct_heads and all(reads_as_head(other, writer) for other in others):
            member.heads = sorted(others)
        elif others and not self.untie:
            twins = [self._twin(other, writer, member.groups) for other in others]
            if any(twin is None for twin in twins):
                text = f"also read by {', '.join(sorted(other.name for other in others))}"
                member.obstacle = Obstacle(Reason.PARAMETER_SHARED, node, text)
                return
            # one table, edited once: all of its writers are centred, or none
            member.readers += [twin for twin in twins if twin is not None]
        member.writer = writer

    def _twin(self, other: fx.Node, writer: Writer, groups: Tensor) -> CentredMember | None:
        """The member of another op that writes with the same weight in the same way."""
        theirs = writer_of(other)
        if theirs is None or theirs.weight is not writer.weight or theirs.axis != writer.axis:
            return None
        rank = len(shape_of(other))
        lined = layout.align(groups, max(rank, groups.dim()))
        return self.member(other, lined) if lined.dim() == rank else None

    def find_reader(self, member: CentredMember, user: fx.Node, position: int) -> None:
        if user.op == "output":
            member.foreign.append(Obstacle(Reason.STREAM_EXPOSED, user))
        elif user in self.norms and position == 0:
            if self.norms[user] is not member and not _inside(norm_groups(user), member.groups):
                raise LayoutError("it takes its mean over other features together with these")
        else:
            super().find_reader(member, user, position)

    def not_read(self, member: CentredMember, user: fx.Node, error: LayoutError) -> None:
        member.foreign.append(Obstacle(Reason.SEES_MEAN, user, str(error)))

    def _require_agreement(self) -> None:
        """What is pushed into a reader must be what the reader pulls: else it would be centred otherwise."""
        for member in self.members:
            for reader in member.readers:
                settled = reader.writer is not None or reader.obstacle is not None
                if not settled and member not in reader.sources:
                    member.foreign.append(Obstacle(Reason.SEES_MEAN, reader.node))

    # -- the choice ---------------------------------------------------------------------------------

    def _solve(self) -> tuple[set[CentredMember], set[CentredMember]]:
        closure = Closure()
        for member in self.members:
            stored, copied = (member, "stored"), (member, "copied")
            closure.imply(stored, copied)
            if grouping.is_simple(member.groups):
                closure.price(copied, stored, self.price(member))
            else:  # one op could not centre it
                closure.imply(copied, stored)
            if member.foreign or member.obstacle is not None:
                closure.forbid(stored)
            for reader in member.readers:
                closure.imply(stored, (reader, "stored"))
            for source in member.sources:
                closure.imply(stored, (source, "copied"))
        for norm, member in self.norms.items():
            if convertible(norm):
                closure.gain((member, "copied"), self.gain(norm))
        chosen = closure.solve()
        return (
            {member for member, what in chosen if what == "stored"},
            {member for member, what in chosen if what == "copied"},
        )


def is_core(node: fx.Node) -> bool:
    """True for a layer norm on activations, of a width that is known."""
    if not is_norm(node, "layer-norm") or is_static(node):
        return False
    return all(isinstance(size, int) for size in argument(node, "normalized_shape"))


def convertible(norm: fx.Node) -> bool:
    """True for a layer norm whose affine was split off and whose output is not constant."""
    bare = argument(norm, "weight") is None and argument(norm, "bias") is None
    return bare and norm_groups(norm).numel() > 1


def holds_affine(norm: fx.Node) -> Decline:
    """Why a norm whose gain or bias was not split off cannot be converted."""
    if len(argument(norm, "normalized_shape")) != 1:
        text = "its gain or bias runs over several axes"
        return Decline(Reason.NOT_PER_CHANNEL, norm, text)
    return Decline(Reason.NOT_PER_CHANNEL, norm, "its gain or bias is computed at run time")


def norm_groups(norm: fx.Node) -> Tensor:
    """The groups that a layer norm takes its means over."""
    sizes = [int(size) for size in argument(norm, "normalized_shape")]
    return grouping.over_last(len(shape_of(norm)), sizes)


def affine_of(norm: fx.Node) -> fx.Node | None:
    """The affine that was split off a norm and could not be folded, or None."""
    users = list(norm.users)
    return users[0] if len(users) == 1 and kind_of(users[0]) is Kind.AFFINE else None


def _bias_of(norm: fx.Node) -> fx.Node | None:
    affine = affine_of(norm)
    shift = affine.args[2] if affine is not None else None
    return shift if isinstance(shift, fx.Node) else None


def _inside(inner: Tensor, outer: Tensor) -> bool:
    """True if every group of ``inner`` lies in one group of ``outer``, so that its norm does not see P."""
    try:
        shape = torch.broadcast_shapes(inner.shape, outer.shape)
    except RuntimeError:
        return False
    if shape != outer.shape or bool((outer < 0).any()):
        return False
    return all(
        outer.shape[dim] == 1 or bool((outer == outer.narrow(dim, 0, 1)).all())
        for dim in grouping.axes(inner)
    )


def _no_writer(node: fx.Node) -> Obstacle:
    """What to say of an op that centring can neither enter nor pass."""
    if node.op == "placeholder":
        return Obstacle(Reason.WRITER_FIXED, node, "it is an input of the network")
    if kind_of(node) is Kind.AFFINE:
        (source,) = operands(node)
        residual = next((user for user in node.users if kind_of(user) is Kind.ADD), None)
        if not norm_of(source, "shape", "channels"):
            return Obstacle(
                Reason.WRITER_FIXED, node, "a gain per channel that could not be folded"
            )
        if residual is None:
            return Obstacle(Reason.WRITER_FIXED, node, "the gain and bias of another norm")
        text = f"what `{source.name}` returns is added there"
        return Obstacle(Reason.RESIDUAL_AFTER_NORM, residual, text)
    return Obstacle(
        Reason.WRITER_FIXED, node, f"`{op_name(node)}` is not a linear op over the features"
    )
