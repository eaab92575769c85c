"""Would a wrong pass be noticed on this network? Faults in what the pass made, and which the checks miss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from normfold.ir import Graph
from normfold.rewrite import Exactness, Pass
from normfold.testing.faults import faults
from normfold.testing.running import Bench, failure, prepared, ran_somewhere

# A fault is plain where its error on other inputs is above so many times that of the pass itself.
_TIMES = {Exactness.EXACT: 100.0, Exactness.APPROXIMATE: 4.0}
_FLOOR = 1e-9


@dataclass(frozen=True)
class Mutants:
    """Faults, in words, by what became of them.

    Attributes:
        caught: the checks of `equivalent` fail.
        missed: they pass, though other inputs give plainly other outputs.
        same: they pass, and nothing is to be seen on other inputs: the same function, or a network that hides it.
    """

    caught: tuple[str, ...]
    missed: tuple[str, ...]
    same: tuple[str, ...]


def mutants(
    item: Pass,
    network: nn.Module | Graph,
    inputs: tuple[Any, ...] = (),
    *,
    before: str | None = None,
    count: int = 16,
    seed: int = 0,
) -> Mutants:
    """Put faults into the rewritten graph, and see that `equivalent` catches them on this network.

    A factor or a bias that is left out, another sign, a number that is off by a thousandth, another parameter,
    the opposite op: in the nodes that the pass wrote. What is missed is a hole in the test, such as a budget that
    is too large. Where nothing is caught, the network does not show what the pass does.

    Args:
        count: so many faults are drawn by ``seed``. Other arguments are those of `normfold.testing.check`.

    Returns:
        The faults, by what became of them. An assertion that ``same`` is empty is stricter than this function.

    Raises:
        AssertionError: a fault is missed, or none is caught, or none can be made.
    """
    __tracebackhide__ = True
    graph = prepared(item, network, inputs, before)
    found = ran_somewhere(item, graph)
    bench, other = Bench(item, graph), Bench(item, graph, seed + 1)
    flaws = list(bench.flaws(found.after, found.report))
    if flaws:
        raise failure(item, "is wrong without any fault put into it", found="; ".join(flaws))
    plain = max(_FLOOR, _TIMES[item.exactness] * other.error(found.after))
    states: dict[str, list[str]] = {"caught": [], "missed": [], "same": []}
    for fault in faults(graph, found.after, seed)[:count]:
        wrong = fault.put_into(found.after)
        if next(bench.flaws(wrong, found.report), None) is not None:
            states["caught"].append(str(fault))
        else:
            error = other.error(wrong)
            states["same" if error <= plain else "missed"].append(str(fault))
    made = Mutants(*(tuple(states[name]) for name in ("caught", "missed", "same")))
    if made.missed:
        told = f"{'; '.join(made.missed)} ({len(made.caught)} others are caught)"
        raise failure(item, "could have faults that the checks miss", found=told)
    if not made.caught:
        told = "; ".join(made.same) or "no fault could be put into it"
        raise failure(item, "could have any fault: this network shows none", found=told)
    return made
