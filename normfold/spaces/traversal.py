"""From tensor to tensor, both ways, through every op that lets a carrier through."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from torch import Tensor, fx

from normfold.ir.expressions import is_static
from normfold.ops.layout import LayoutError
from normfold.ops.reads import reads_shape_only, uses
from normfold.spaces.carriers import Carrier, Part, made_into, made_of


@dataclass(eq=False)
class Member:
    """A tensor with what its carrier is.

    ``sources`` are the members that it is made of, ``constants`` the parameters; both are empty where it is made
    otherwise. ``readers`` are made of it.
    """

    node: fx.Node
    ids: Tensor
    sources: list[Self] = field(default_factory=list)
    constants: list[Part] = field(default_factory=list)
    readers: list[Self] = field(default_factory=list)


M = TypeVar("M", bound=Member)


class Traversal(Generic[M]):
    """The members that hang together with those asked for; subclasses say what ends there.

    Args:
        carrier: of what is followed.
        kind: of its members.
    """

    def __init__(self, carrier: Carrier, kind: type[M]) -> None:
        self.carrier, self.kind = carrier, kind
        self._members: dict[tuple[fx.Node, Hashable], M] = {}
        self._queue: deque[M] = deque()

    @property
    def members(self) -> list[M]:
        return list(self._members.values())

    def member(self, node: fx.Node, ids: Tensor) -> M:
        """The member of a tensor and what its carrier is, made (and put in line) when it is new."""
        key = (node, self.carrier.key(ids))
        if key not in self._members:
            self._members[key] = self.kind(node, ids)
            self._queue.append(self._members[key])
        return self._members[key]

    def follow(self) -> None:
        """Look at every member in line, and at those that this brings."""
        while self._queue:
            member = self._queue.popleft()
            try:
                self.find_sources(member)
            except LayoutError as error:
                member.sources, member.constants = [], []
                self.not_made(member, error)
            for use in uses(member.node) if self.is_read(member) else ():
                if not reads_shape_only(use.user, use.position):
                    try:
                        self.find_reader(member, use.user, use.position)
                    except LayoutError as error:
                        self.not_read(member, use.user, error)

    def find_sources(self, member: M) -> None:
        """Set what a member is made of.

        Raises:
            LayoutError: an operand does not hold the features as a whole.
        """
        for part, ids in made_of(member.node, member.ids, self.carrier):
            if is_static(part):
                member.constants.append((part, ids))
            else:
                member.sources.append(self.member(part, ids))

    def find_reader(self, member: M, user: fx.Node, position: int) -> None:
        """Add what ``user`` makes of a member to its readers.

        Raises:
            LayoutError: it reads the features in another way.
        """
        ids = made_into(user, member.node, member.ids, self.carrier)
        if ids is not None:
            member.readers.append(self.member(user, ids))

    def is_read(self, member: M) -> bool:
        """False where nobody cares who reads a member."""
        return True

    def not_made(self, member: M, error: LayoutError) -> None:
        """A member is made of others, which do not hold the features as a whole."""

    def not_read(self, member: M, user: fx.Node, error: LayoutError) -> None:
        """An op reads a member in another way."""
