"""Streams: the parts of a centring that hang together, what each one saves, and why a norm is in none."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import fx

from normfold.graph.graph import shape_of
from normfold.rewrite.base import Decline
from normfold.rewrite.centering import (
    Centering,
    Member,
    Obstacle,
    affine_of,
    convertible,
    norm_groups,
)
from normfold.rewrite.reasons import Reason


@dataclass
class Stream:
    """Norms that are converted together. ``stored`` are the members that flow centred."""

    norms: list[fx.Node] = field(default_factory=list)
    input_of: dict[fx.Node, Member] = field(default_factory=dict)
    stored: list[Member] = field(default_factory=list)


def streams(centering: Centering) -> list[Stream]:
    """The streams that remove more than they add, in graph order.

    Members hang together if one is made of the other; a norm hangs together with what it reads, and with
    what its left-over affine writes.
    """
    part_of = _parts(centering)
    worth: dict[int, float] = {}
    for norm, member in centering.norms.items():
        if member in centering.copied and convertible(norm):
            worth[part_of[member]] = worth.get(part_of[member], 0.0) + centering.gain(norm)
    for member in centering.copied - centering.stored:
        worth[part_of[member]] = worth.get(part_of[member], 0.0) - centering.price(member)
    found: dict[int, Stream] = {}
    for norm, member in centering.norms.items():
        if member in centering.copied and convertible(norm) and worth[part_of[member]] > 0:
            stream = found.setdefault(part_of[member], Stream())
            stream.norms.append(norm)
            stream.input_of[norm] = member
    for member in centering.members:
        if member in centering.stored and part_of[member] in found:
            found[part_of[member]].stored.append(member)
    return list(found.values())


def _parts(centering: Centering) -> dict[Member, int]:
    """A number for each member, the same for those that hang together."""
    neighbours: dict[Member, list[Member]] = {member: [] for member in centering.members}
    by_node: dict[fx.Node, list[Member]] = {}
    for member in centering.members:
        by_node.setdefault(member.node, []).append(member)
        for other in (*member.sources, *member.readers):
            neighbours[member].append(other)
            neighbours[other].append(member)
    for norm, member in centering.norms.items():
        for other in by_node.get(affine_of(norm) or norm, ()):
            neighbours[member].append(other)
            neighbours[other].append(member)
    part_of: dict[Member, int] = {}
    for number, member in enumerate(centering.members):
        stack = [] if member in part_of else [member]
        while stack:
            current = stack.pop()
            if current not in part_of:
                part_of[current] = number
                stack += neighbours[current]
    return part_of


def why_not(centering: Centering, norm: fx.Node) -> Decline:
    """The nearest obstacle between a norm and being converted."""
    member = centering.norms[norm]
    if norm_groups(norm).numel() == 1:
        return Decline(Reason.CONSTANT_NORM, norm)
    if not convertible(norm):
        return Decline(Reason.NOT_PER_CHANNEL, norm, "its gain runs over several axes")
    obstacle = _seen_by(member) or _written_by(centering, member)
    if obstacle is not None:
        return Decline(obstacle.reason, obstacle.node, obstacle.detail)
    affine = affine_of(norm)
    if affine is not None and affine.args[2] is not None:
        readers = ", ".join(f"`{user.name}`" for user in affine.users)
        text = f"an RMSNorm has no bias, and this one cannot be folded: it is read by {readers}"
        residual = next((user for user in affine.users if _adds(user)), None)
        if residual is not None:
            return Decline(Reason.RESIDUAL_AFTER_NORM, residual, text)
        return Decline(Reason.NO_GAIN, affine, text)
    return Decline(Reason.NO_GAIN, member.node)


def _seen_by(member: Member) -> Obstacle | None:
    """The nearest reader that must see the mean, downstream of the member."""
    seen, queue = {member}, deque([member])
    while queue:
        current = queue.popleft()
        if current.foreign:
            return current.foreign[0]
        if current is not member and current.obstacle is not None:
            return current.obstacle
        for reader in current.readers:
            if reader not in seen:
                seen.add(reader)
                queue.append(reader)
    return None


def _written_by(centering: Centering, member: Member) -> Obstacle | None:
    """The nearest tensor upstream of the member that cannot be stored centred."""
    seen, queue = {member}, deque([member])
    while queue:
        current = queue.popleft()
        if current.obstacle is not None:
            return current.obstacle
        if current is not member and (blocked := _seen_by(current)) is not None:
            return blocked
        for source in current.sources:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return None


def _adds(node: fx.Node) -> bool:
    return node.op == "call_function" and "add" in str(node.target) and bool(shape_of(node))
