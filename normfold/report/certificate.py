"""What a certificate says: which outputs of a rewritten graph are the original's, as identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OutputIdentity:
    """One output: ``equal`` in every prime field, ``differs`` (a fault), or ``unknown``, with the reason."""

    output: str
    state: Literal["equal", "differs", "unknown"]
    why: str = ""


@dataclass(frozen=True)
class Uncovered:
    """An op that has no meaning in a prime field, why, how often it was met, and the user's lines.

    Where its operands are the same in both networks, what is behind it is compared all the same.
    """

    op: str
    why: str
    count: int
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """An identity test of the un-baked algebra, without a tolerance and without a proved error bound.

    ``certified``: every output is equal; ``failed``: one differs; ``partly``: neither.

    Attributes:
        primes: of the fields that it was made in.
        sizes: of the inputs, as text.
        covered: sites whose every output is equal.
        left: the other sites; another line of the verdict has to stand in.
        evaluations: of one network in one field; more than two for a prime where elements happened to be zero.
        parts: that were compared one by one, between tensors that are the same in both; 0 for networks as a whole.
        largest: the number of the original's ops in the largest of them.
    """

    state: Literal["certified", "failed", "partly"]
    primes: tuple[int, ...]
    outputs: tuple[OutputIdentity, ...]
    uncovered: tuple[Uncovered, ...] = ()
    covered: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    sizes: str = ""
    seconds: float = 0.0
    seed: int = 0
    evaluations: int = 0
    note: str = ""
    parts: int = 0
    largest: int = 0

    def __bool__(self) -> bool:
        return self.state == "certified"

    @property
    def ok(self) -> bool:
        """False where an output is known to be another one."""
        return self.state != "failed"

    def failures(self) -> list[str]:
        """What is another expression than the original's, in words."""
        wrong = [output for output in self.outputs if output.state == "differs"]
        return [
            f"{output.output} is not the original's: {output.why or 'another number'}"
            for output in wrong[:1]
        ]

    @property
    def words(self) -> str:
        """What was tested and found, for people."""
        how = (
            f"over {len(self.primes)} primes: random weights of the same signs and zeros, random inputs, "
            f"these shapes ({self.sizes})"
        )
        if self.parts:
            how += f", in {self.parts} parts of at most {self.largest} ops"
        if self.state == "failed":
            return f"NOT the original's expression {how}"
        if self.state == "certified":
            return f"certified {how}"
        equal = sum(output.state == "equal" for output in self.outputs)
        ops = ", ".join(f"{item.op} ({item.why})" for item in self.uncovered[:3])
        return (
            f"{equal} of {len(self.outputs)} outputs certified {how}; not behind {ops or 'unknown ops'}: "
            "float64 stands in"
        )
