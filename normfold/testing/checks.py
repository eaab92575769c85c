"""The checks of a pass, one promise each."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from torch import nn

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.text import graph_text
from normfold.report import PassReport
from normfold.report.reasons import Reason, by_code
from normfold.rewrite import Decline, Exactness, Pass
from normfold.testing.mutants import mutants
from normfold.testing.running import Bench, Ran, digest, failure, prepared, ran, ran_somewhere

UPDATE = "NORMFOLD_UPDATE_GOLDEN"
Network = nn.Module | Graph


def check(
    item: Pass,
    network: Network,
    inputs: tuple[Any, ...] = (),
    *,
    before: str | None = None,
    file: str | Path | None = None,
) -> tuple[str, ...]:
    """Every check that applies to a network of which the pass rewrites something.

    `reads_only`, `idempotent`, `equivalent`, `limit` where two sites or more are rewritten, `mutants`, and
    `golden` where a ``file`` is given. A pass that changes the function is not compared with the original.

    Args:
        item: the pass, with its options.
        network: a module, which is copied and `perturbed`; or a captured graph, which is taken as it is.
        inputs: example inputs of a module, as `normfold.capture` takes them: batch in front, at least 2 of it.
        before: pipeline text of what runs in front of the pass; by default what it ``requires``.
        file: of `golden`.

    Returns:
        The names of the checks that were made.

    Raises:
        AssertionError: one fails, or the pass rewrites nothing here. UsageError: an approximate pass without a
            ``budget``. PassError: the pass broke.
    """
    __tracebackhide__ = True
    graph = prepared(item, network, inputs, before)
    count = ran_somewhere(item, graph).report.rewrites
    reads_only(item, graph, before="")
    idempotent(item, graph, before="")
    made = ["reads_only", "idempotent"]
    if item.exactness is not Exactness.CHANGES_FUNCTION:
        equivalent(item, graph, before="")
        made.append("equivalent")
    if count > 1:
        limit(item, graph, before="")
        made.append("limit")
    if item.exactness is not Exactness.CHANGES_FUNCTION:
        mutants(item, graph, before="")
        made.append("mutants")
    if file is not None:
        golden(item, graph, file=file, before="")
        made.append("golden")
    return tuple(made)


def equivalent(
    item: Pass, network: Network, inputs: tuple[Any, ...] = (), *, before: str | None = None
) -> PassReport:
    """The pass rewrites something, and what it makes computes what was there.

    As an identity in prime fields where the ops have a meaning there, in float64, and baked in the types of the
    network; an approximate pass within its ``budget``. Arguments are those of `check`.

    Returns:
        What the pass did.

    Raises:
        AssertionError: it computes something else, or nothing was rewritten.
    """
    __tracebackhide__ = True
    graph = prepared(item, network, inputs, before)
    found = ran_somewhere(item, graph)
    _require_right(item, Bench(item, graph), found)
    return found.report


def _require_right(item: Pass, bench: Bench, found: Ran, where: str = "") -> None:
    __tracebackhide__ = True
    flaws = list(bench.flaws(found.after, found.report))
    if flaws:
        sites = where or ", ".join(dict.fromkeys(done.site for done in found.report.applied))
        raise failure(item, "does not keep what the network computes", sites, "; ".join(flaws))


def declines(
    item: Pass,
    network: Network,
    inputs: tuple[Any, ...] = (),
    *,
    code: str | Reason,
    site: str | None = None,
    before: str | None = None,
) -> PassReport:
    """The pass declines with this code, and changes nothing where it rewrites nothing.

    Args:
        code: a `Reason`, its code (``NF103``) or its name (``output-reused``).
        site: the site that is declined, as reports name it. Without one, every site that is declined must have
            this code.

    Returns:
        What the pass did. Other arguments are those of `check`.

    Raises:
        AssertionError: it declines nothing, with another code, or changes the graph all the same.
        UsageError: there is no such code.
    """
    __tracebackhide__ = True
    reason = by_code(code) if isinstance(code, str) else code
    if reason is None:
        raise UsageError(
            "there is no such code", found=f"`{code}`", hint="`normfold explain` lists"
        )
    found = ran(item, prepared(item, network, inputs, before))
    asked = [one for one in found.report.declined if site in (None, one.site)]
    if not asked or any(one.code != reason.code for one in asked):
        raise failure(
            item, f"does not decline with {reason.code} ({reason.slug})", site or "", found.outcome
        )
    if not found.report.rewrites:
        _require_untouched(item, found, "changed the graph, though it declined everything")
    return found.report


def idempotent(
    item: Pass, network: Network, inputs: tuple[Any, ...] = (), *, before: str | None = None
) -> None:
    """A second run changes nothing. Arguments are those of `check`.

    Raises:
        AssertionError: it does, or the first rewrote nothing.
    """
    __tracebackhide__ = True
    first = ran_somewhere(item, prepared(item, network, inputs, before))
    second = ran(item, first.after)
    _require_untouched(item, second, "changed the graph again when it ran a second time")


def no_op(
    item: Pass, network: Network, inputs: tuple[Any, ...] = (), *, before: str | None = None
) -> None:
    """A network that the pass does not concern stays as it is: no site is matched. Arguments are those of `check`.

    Raises:
        AssertionError: something was rewritten, declined, or changed.
    """
    __tracebackhide__ = True
    found = ran(item, prepared(item, network, inputs, before))
    if found.report.declined:
        raise failure(
            item, "matched a site of a network that does not concern it", "", found.outcome
        )
    _require_untouched(item, found, "changed a network that does not concern it")


def _require_untouched(item: Pass, found: Ran, what: str) -> None:
    __tracebackhide__ = True
    report = found.report
    before, after = graph_text(found.before), graph_text(found.after)
    if before != after:
        edits = report.edits or ["no edit was recorded"]
        raise failure(item, what, edits[0], _difference(before, after, "before", "after"))
    if report.modified or report.rewrites:
        raise failure(
            item, what, found="the same text, and " + "; ".join([found.outcome, *report.edits])
        )


def reads_only(
    item: Pass, network: Network, inputs: tuple[Any, ...] = (), *, before: str | None = None
) -> None:
    """`match` and `check` leave the graph as it is. Arguments are those of `check` of this module.

    Raises:
        AssertionError: one changes a node or a tensor, or gives something else than a `Match` or a `Decline`.
    """
    __tracebackhide__ = True
    given = prepared(item, network, inputs, before)
    graph = given.copy()
    text, numbers, states = graph_text(graph), digest(graph), (dict(graph.sites), graph.states)
    matches = list(item.match(graph))
    if graph_text(graph) != text or digest(graph) != numbers:
        difference = _difference(text, graph_text(graph), "before", "after")
        raise failure(item, "changed the graph in `match`", found=difference)
    for match in matches:
        found = item.check(graph, match)
        if graph_text(graph) != text or digest(graph) != numbers:
            difference = _difference(text, graph_text(graph), "before", "after")
            raise failure(item, "changed the graph in `check`", match.path, difference)
        if isinstance(found, Decline) and not isinstance(found.reason, Reason):
            raise failure(item, "declined without a `Reason`", match.path, repr(found.reason))
    if (dict(graph.sites), graph.states) != states:
        raise failure(item, "changed what the graph says of its sites or states")


def limit(
    item: Pass,
    network: Network,
    inputs: tuple[Any, ...] = (),
    *,
    before: str | None = None,
    most: int = 4,
) -> None:
    """``limit=k`` rewrites the first k sites of a whole run, each of them changes the graph, and what is left half
    done computes what was there: `normfold bisect` needs that.

    Args:
        most: tried up to this k. Other arguments are those of `check`.

    Raises:
        AssertionError: it does not, or a whole run rewrites fewer than two sites.
    """
    __tracebackhide__ = True
    graph = prepared(item, network, inputs, before)
    whole = ran_somewhere(item, graph)
    if whole.report.rewrites < 2:
        count = len(list(item.match(graph)))
        raise failure(
            item,
            "rewrote one site, and `limit` needs two: one match is one rewrite",
            found=f"{count} matches, {whole.outcome}",
        )
    compares = item.exactness is not Exactness.CHANGES_FUNCTION
    bench = Bench(item, graph) if compares else None
    last = ""
    for count in range(min(whole.report.rewrites, most) + 1):
        found = ran(item, graph, count)
        sites, text = _sites(found), graph_text(found.after)
        first = _sites(whole)[: len(sites)]
        if found.report.rewrites != count:
            raise failure(item, "ignores its limit", f"limit={count}", found.outcome)
        if count == 0:
            _require_untouched(item, found, "changed the graph at limit=0")
        elif sites != first:
            told = f"{', '.join(sites)}; a whole run begins with {', '.join(first)}"
            raise failure(item, "does not rewrite the first sites", f"limit={count}", told)
        elif text == last:
            raise failure(item, "changed nothing in one rewrite", f"limit={count}", sites[-1])
        elif bench is not None:
            _require_right(item, bench, found, f"limit={count}: {', '.join(sites)}")
        last = text


def _sites(found: Ran) -> list[str]:
    return [done.site for done in found.report.applied]


def golden(
    item: Pass,
    network: Network,
    inputs: tuple[Any, ...] = (),
    *,
    file: str | Path,
    before: str | None = None,
    update: bool = False,
) -> None:
    """The text of the graph before and after the pass, and what was declined, is what a committed file says.

    Args:
        file: a text file. ``NORMFOLD_UPDATE_GOLDEN=1`` in the environment, or ``update``, writes it: read the
            difference before it is committed. Other arguments are those of `check`.

    Raises:
        AssertionError: the file says something else, or is not there.
    """
    __tracebackhide__ = True
    found, path = ran(item, prepared(item, network, inputs, before)), Path(file)
    lines = [f"applied: {done.site}" for done in found.report.applied]
    lines += [f"declined: {one.site} {one.code}" for one in found.report.declined]
    parts = ["before", graph_text(found.before), f"after {item}", graph_text(found.after), *lines]
    text = "\n".join(parts) + "\n"
    if update or os.environ.get(UPDATE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    if not path.is_file():
        raise failure(item, f"has no golden file: {UPDATE}=1 writes it", str(path))
    if path.read_text() != text:
        difference = _difference(path.read_text(), text, str(path), "now")
        raise failure(item, f"gives another graph ({UPDATE}=1 accepts it)", str(path), difference)


def _difference(before: str, after: str, one: str, other: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), one, other, "", "", 1, "")
    return "\n" + "\n".join(lines)
