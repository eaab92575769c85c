"""What every pass promises, checked over the registry; every reason code, by a network that gets it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from normfold.errors import UsageError
from normfold.ir import Graph, capture, facts
from normfold.ir.text import graph_text
from normfold.passes import BUILT_IN
from normfold.report.reasons import by_code, codes
from normfold.rewrite import (
    Caution,
    Decline,
    Exactness,
    Match,
    Pass,
    Reason,
    parse,
    registry,
    run_pipeline,
)
from tests.nets import Encoder, Norms, RepBlock, Residual
from tests.passes.declined import REFUSALS
from tests.passes.orders import Build, captured, prepared_for

ROOT = Path(__file__).parents[2]
NAMES = list(BUILT_IN)


def digest(module: nn.Module) -> str:
    """Hash of names and values of parameters and buffers."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().double().numpy().tobytes())
    return total.hexdigest()


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


@pytest.mark.parametrize("name", NAMES)
def test_names_agree(name: str) -> None:
    kind = registry.find(name)
    stem = name.replace("-", "_")
    assert kind.name == name
    assert kind.__name__ == camel(name)
    assert kind.__module__ == f"normfold.passes.{stem}"
    assert (ROOT / "passes" / f"{stem}.py").is_file()
    assert (ROOT / "tests" / "passes" / f"test_{stem}.py").is_file()
    assert list((ROOT / "tests" / "goldens" / name).glob("*.after.txt")), "no golden"


def test_every_file_is_registered() -> None:
    files = {path.stem.replace("_", "-") for path in (ROOT / "passes").glob("*.py")} - {"--init--"}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shape_of_a_pass(name: str) -> None:
    kind = registry.find(name)
    assert issubclass(kind, Pass)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(kind.exactness, Exactness)
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))


@pytest.mark.parametrize("name", NAMES)
def test_documentation(name: str) -> None:
    kind = registry.find(name)
    doc, module = inspect.getdoc(kind) or "", inspect.getmodule(kind)
    assert module is not None
    text = module.__doc__ or ""
    assert text.startswith(f"{name}: "), "the module says its name first"
    assert re.search(r"(=|->)", text.partition("\n\n")[2]), "and then its algebra"
    assert re.search(r"^Exact: {4}\S", doc, re.MULTILINE)
    assert re.search(r"^Declines: \S", doc, re.MULTILINE)
    for field in dataclasses.fields(kind):
        assert re.search(rf"^ {{4}}{field.name}: \S", doc, re.MULTILINE), f"option {field.name}"


NETS = [
    (Residual, (2, 4, 5, 6)),
    pytest.param(RepBlock, (2, 4, 5, 6), marks=pytest.mark.slow),
    pytest.param(Norms, (2, 4, 5, 6), marks=pytest.mark.slow),
    (Encoder, (2, 5, 8)),
]


@functools.cache
def behind(count: int, build: Build, shape: tuple[int, ...]) -> Graph:
    """What the first ``count`` passes make of a canonical network: each needs the one in front of it only once."""
    if count == 0:
        return run_pipeline(captured(build, shape)[1], parse("canonicalize"))[0]
    return run_pipeline(behind(count - 1, build, shape), parse(NAMES[count - 1]))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("build", "shape"), NETS)
def test_the_input_is_untouched(name: str, build: Build, shape: tuple[int, ...]) -> None:
    """Neither the module, nor its parameters, nor the given graph, nor its sites."""
    module, _ = captured(build, shape)
    prepared = behind(NAMES.index(name), build, shape).copy()
    before = [digest(module), digest(prepared.module), graph_text(prepared), dict(prepared.sites)]
    modes = [part.training for part in module.modules()]
    after, reports = run_pipeline(prepared, parse(name))
    assert [digest(module), digest(prepared.module), graph_text(prepared), prepared.sites] == before
    assert [part.training for part in module.modules()] == modes
    assert reports[0].modified == (graph_text(after) != graph_text(prepared))
    after.module.graph.lint()


ALONE = [pytest.param(Residual, (2, 4, 5, 6), marks=pytest.mark.slow), (Encoder, (2, 5, 8))]


def everything_about(graph: Graph) -> list[object]:
    """What a pass may change: calls, parameters, facts and metadata of every node, sites and states."""
    nodes = [
        (node.name, facts.facts_of(node), {key: id(value) for key, value in node.meta.items()})
        for node in graph.nodes
    ]
    return [graph_text(graph), digest(graph.module), nodes, dict(graph.sites), graph.states]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("build", "shape"), ALONE)
def test_match_and_check_read_only(name: str, build: Build, shape: tuple[int, ...]) -> None:
    graph = prepared_for(name, build, shape)
    item = registry.find(name)()
    before = everything_about(graph)
    found = [
        item.check(graph, replace(match, stage=stage))
        for match in item.match(graph)
        for stage in range(item.stages + 1)
    ]
    assert all(isinstance(one, (Match, Decline)) for one in found)
    after = everything_about(graph)
    assert after[0] == before[0]
    assert after[1:] == before[1:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("build", "shape"), ALONE)
def test_a_limit_counts_rewrites(name: str, build: Build, shape: tuple[int, ...]) -> None:
    graph = prepared_for(name, build, shape)
    item = registry.find(name)()
    most = item.run(graph.copy()).rewrites
    for limit in {0, 1, max(most - 1, 0), most + 1}:
        report = item.run(graph.copy(), limit)
        assert report.rewrites == min(limit, most)
        assert report.modified == bool(report.edits)
        assert report.modified or not limit or not most


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "center-stream",
            "`center-stream` wants a graph that is canonical, which `canonicalize` makes it",
        ),
        ("fold-affine,canonicalize", "no `canonicalize` in front of it"),
        ("canonicalize,restore,fold-affine", "`restore` in front of it undoes that"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_runs(text: str, words: str) -> None:
    _, graph = captured(Encoder, (2, 5, 8))
    seen: list[object] = []
    with pytest.raises(UsageError, match=re.escape(words)):
        run_pipeline(graph, parse(text), lambda *step: seen.append(step))
    assert not seen


def run(code: str) -> tuple[Graph, set[str]]:
    refusal = REFUSALS[code]
    module, x = refusal.build()
    graph = capture(module, (x, *refusal.others()), dynamic=refusal.dynamic)
    after, reports = run_pipeline(graph, parse(refusal.pipeline))
    ends = [reports[0], reports[-1]]  # what lies between only prepares for the last one
    return after, {declined.code for report in ends for declined in report.declined}


def test_every_reason_has_a_network() -> None:
    assert {reason.code for reason in Reason} == set(REFUSALS)


@pytest.mark.parametrize("code", REFUSALS)
def test_every_reason_is_reachable(code: str) -> None:
    assert run(code)[1] == {code}


def test_codes_are_unique_and_stable() -> None:
    everything = codes()
    assert len({item.slug for item in everything}) == len(everything)
    for kind, first in ((Reason, 101), (Caution, 201)):
        numbers = [item.code for item in kind]
        assert numbers == [f"NF{number}" for number in range(first, first + len(numbers))]
    for item in everything:
        assert by_code(item.code.lower()) is by_code(item.slug.upper()) is item
        assert item.summary[0].islower() or item.summary[0].isdigit()
        assert item.remedy
    assert by_code("NF999") is None


def test_declared_reasons_are_those_in_the_source() -> None:
    """Every reason is raised somewhere, and by nothing but the passes and the code that they call."""
    sources = [*(ROOT / "passes").glob("*.py"), *(ROOT / "normfold" / "rewrite").glob("*.py")]
    for kind in (Reason, Caution):
        pattern = rf"\b{kind.__name__}\.([A-Z_]+)"
        used = {name for path in sources for name in re.findall(pattern, path.read_text())}
        assert used == {item.name for item in kind}
