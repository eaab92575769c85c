"""Streams: the parts of a centring that hang together, what each one saves, and why a norm is in none."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import fx

from normfold.ops.table import Kind, kind_of
from normfold.report.reasons import Reason
from normfold.rewrite.base import Decline
from normfold.rewrite.centering import (
    Centering,
    CentredMember,
    Obstacle,
    affine_of,
    convertible,
    holds_affine,
    norm_groups,
)


@dataclass(eq=False)
class Stream:
    """Norms that are converted together. ``stored`` are the members that flow centred."""

    norms: list[fx.Node] = field(default_factory=list)
    input_of: dict[fx.Node, CentredMember] = field(default_factory=dict)
    stored: list[CentredMember] = field(default_factory=list)


def streams(centering: Centering) -> list[Stream]:
    """The streams that the cut chose, in graph order. Members hang together if one is made of the other."""
    found: dict[CentredMember, Stream] = {}  # by any member
    for member in centering.members:
        stack, stream = ([] if member in found else [member]), Stream()
        while stack:
            current = stack.pop()
            if current in centering.copied and current not in found:
                found[current] = stream
                if current in centering.stored:
                    stream.stored.append(current)
                stack += [*current.sources, *current.readers]
    for norm, member in centering.norms.items():
        if member in centering.copied and convertible(norm):
            found[member].norms.append(norm)
            found[member].input_of[norm] = member
    return [stream for stream in dict.fromkeys(found.values()) if stream.norms]


def why_not(centering: Centering, norm: fx.Node) -> Decline:
    """The nearest obstacle between a norm and being converted."""
    member = centering.norms[norm]
    if norm_groups(norm).numel() == 1:
        return Decline(Reason.CONSTANT_NORM, norm)
    if not convertible(norm):
        return holds_affine(norm)
    obstacle = _seen_by(member) or _written_by(member)
    if obstacle is None:
        return Decline(Reason.NO_GAIN, member.node)
    residual = _residual_behind(norm)
    if residual is not None and obstacle.reason is Reason.PARAMETER_SHARED:
        text = f"{Reason.PARAMETER_SHARED.slug} at `{obstacle.node.name}`, and the bias would stay as an addition"
        return Decline(Reason.RESIDUAL_AFTER_NORM, residual, text)
    return Decline(obstacle.reason, obstacle.node, obstacle.detail)


def _seen_by(member: CentredMember) -> Obstacle | None:
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


def _written_by(member: CentredMember) -> Obstacle | None:
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


def _residual_behind(norm: fx.Node) -> fx.Node | None:
    """The sum that takes a norm's result, bias and all, as its residual."""
    affine = affine_of(norm)
    if affine is None or affine.args[2] is None:
        return None
    return next((user for user in affine.users if kind_of(user) is Kind.ADD), None)
