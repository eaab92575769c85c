"""Pipeline text, options, presets, plug-ins and the adapter for plain fx passes."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from normfold import passes as passes_by_name
from normfold.errors import PassError, UsageError
from normfold.ir import Graph, capture
from normfold.ir.text import graph_text
from normfold.job.presets import PRESETS, preset, trained
from normfold.passes import BUILT_IN
from normfold.report import PassReport
from normfold.rewrite import Exactness, Pass, parse, registry, run_pipeline, text_of
from normfold.rewrite.base import Between
from normfold.target import GRIDDED
from tests.nets import Residual, perturb

NAMES = passes_by_name.names()
WORDS = {"target": GRIDDED, "to": trained(), "input": ["image"]}  # what options of text take


def graph() -> Graph:
    return capture(perturb(Residual()), (torch.randn(2, 4, 5, 6),))


# -- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_pass_reads_back(name: str) -> None:
    [item] = parse(name)
    assert type(item) is registry.find(name)
    assert str(item) == name, "defaults are left out"
    assert parse(text_of([item, item])) == [item, item]


@st.composite
def options(draw: st.DrawFn) -> Pass:
    """A pass with random values for its options."""
    kind = registry.find(draw(st.sampled_from(NAMES)))
    hints = typing.get_type_hints(kind)
    bounded = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        (bound,) = getattr(bounded[field.name], "__metadata__", (Between(0),))
        if field.name == "block":  # those that kernels have
            values[field.name] = draw(st.sampled_from([0, 16, 32, 1024]))
        elif hint is bool:
            values[field.name] = draw(st.booleans())
        elif hint is float:
            values[field.name] = draw(st.floats(bound.low, min(bound.high, 1e30)))
        elif hint is int:
            values[field.name] = draw(st.integers(int(bound.low), int(min(bound.high, 10**6))))
        elif hint is str:
            values[field.name] = draw(st.sampled_from(WORDS[field.name]))
        elif hint == tuple[float, ...]:
            numbers = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=3)
            values[field.name] = tuple(draw(numbers))
        elif hint == tuple[str, ...]:
            patterns = st.lists(st.sampled_from(["blocks.*.norm1", "norm"]), max_size=2)
            values[field.name] = tuple(draw(patterns))
        else:
            values[field.name] = draw(st.sampled_from(hint.__args__))
    try:
        return kind(**values)
    except UsageError:  # options that contradict each other
        reject()


@given(st.lists(options(), min_size=1, max_size=4))
def test_text_round_trips(passes: list[Pass]) -> None:
    text = text_of(passes)
    assert parse(text) == passes
    assert text_of(parse(text)) == text


def test_spaces_and_case_do_not_matter() -> None:
    text = " canonicalize , fold-affine { direction=forward   max-gain=100 } ,bake"
    assert text_of(parse(text)) == "canonicalize,fold-affine{direction=forward max-gain=100},bake"


def test_passes_are_values() -> None:
    assert parse("fold-affine{direction=both}") == parse("fold-affine")
    assert len({*parse("fold-affine"), *parse("fold-affine{max-gain=10000}")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("fold-affine")[0].direction = "forward"  # type: ignore[attr-defined]


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("canonicalize,,bake", 13),
        ("canonicalize,fold-affine{direction=both", 13),
        ("canonicalize bake", 0),
        ("bake,", 0),
        ("bake,}", 5),
    ],
)
def test_a_malformed_text_gets_a_caret(text: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    lines = str(caught.value.found).splitlines()
    assert lines[-2].strip() == text
    assert lines[-1].index("^") - lines[-2].index(text) == column
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("fold-afine", ["unknown pass `fold-afine`", "did you mean `fold-affine`?"]),
        ("xyz", ["unknown pass `xyz`", "canonicalize, fold-input, fold-affine"]),
        ("fold-affine{color=red}", ["has no option `color=red`", "direction, max-gain"]),
        ("fold-affine{direction}", ["has no option `direction`"]),
        ("fold-affine{direction=up}", ["`direction`", "`up`", "both | backward | forward"]),
        ("fold-affine{max-gain=big}", ["`max-gain`", "`big`", "float"]),
        ("fold-affine{copy-shared=maybe}", ["`copy-shared`", "`maybe`", "bool"]),
        ("bake{x=1}", ["has no option", "none"]),
    ],
)
def test_errors_say_what_and_what_else(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


# -- presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_exact_passes_only(name: str) -> None:
    passes = parse(preset(name))
    assert [item.name for item in passes if item.exactness is not Exactness.EXACT] == []
    assert text_of(passes) == PRESETS[name]


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="did you mean `folded`"):
        preset("foldd")


# -- running ----------------------------------------------------------------------------------------


def test_the_given_graph_is_untouched() -> None:
    before = graph()
    text, state = graph_text(before), {k: v.clone() for k, v in before.module.state_dict().items()}
    after, reports = run_pipeline(before, parse(PRESETS["folded"]))
    assert graph_text(before) == text
    assert before.module.state_dict().keys() == state.keys()
    assert all(
        torch.equal(value, state[name]) for name, value in before.module.state_dict().items()
    )
    assert not before.sites
    assert after.sites
    assert [report.spec for report in reports] == PRESETS["folded"].split(",")
    assert all(report.exactness == "exact" for report in reports)


def test_after_is_called_behind_each_pass() -> None:
    seen: list[tuple[str, bool]] = []

    def after(item: Pass, result: Graph, report: PassReport) -> None:
        seen.append((item.name, result.baked))
        assert report.seconds >= 0

    run_pipeline(graph(), parse(PRESETS["folded"]), after)
    assert seen == [
        ("canonicalize", False),
        ("fold-affine", False),
        ("restore", False),
        ("bake", True),
    ]


def test_a_failing_rewrite_is_named() -> None:
    @dataclass(frozen=True)
    class Broken(type(parse("restore")[0])):  # type: ignore[misc]
        name: ClassVar[str] = "broken"

        def rewrite(self, match: Any, rewriter: Any) -> None:
            raise ValueError("seven")

    with pytest.raises(PassError) as caught:
        run_pipeline(graph(), [*parse("canonicalize"), Broken()])
    text = str(caught.value)
    assert "`broken`" in text
    assert "norm1" in text
    assert "ValueError: seven" in text


def test_a_check_that_returns_neither_is_named() -> None:
    """Until 0.1 a check returned None for a site that it accepted."""

    @dataclass(frozen=True)
    class Old(type(parse("restore")[0])):  # type: ignore[misc]
        name: ClassVar[str] = "old"

        def check(self, graph: Graph, match: Any) -> Any:
            return None

    with pytest.raises(PassError, match="`old` returned None from its check"):
        run_pipeline(graph(), [*parse("canonicalize"), Old()])


# -- plug-ins ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Polish(Pass):
    """Do nothing.

    Exact:    yes.
    Declines: nothing.
    """

    name: ClassVar[str] = "polish"
    strength: Literal["soft", "hard"] = "soft"

    def match(self, graph: Graph) -> tuple[()]:
        return ()


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = types.ModuleType("normfold_test_plugin")
    module.Polish = Polish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint(name, f"{module.__name__}:Polish", "normfold.passes")
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [point] if group == "normfold.passes" else [],
    )


def test_a_plug_in_is_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "polish")
    assert passes_by_name.names() == [*BUILT_IN, "polish"]
    passes = parse("canonicalize,polish{strength=hard}")
    assert passes[1] == Polish("hard")
    assert text_of(passes) == "canonicalize,polish{strength=hard}"
    _, reports = run_pipeline(graph(), passes)
    assert not reports[1].modified
    with pytest.raises(UsageError, match="did you mean `polish`"):
        parse("polsh")


def test_a_plug_in_does_not_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "bake")
    assert passes_by_name.names() == list(BUILT_IN)
    assert [type(item).__name__ for item in parse("bake")] == ["Bake"]


@dataclass(frozen=True)
class Greedy(Pass):
    """Wants a value."""

    name: ClassVar[str] = "greedy"
    strength: int


@dataclass(frozen=True)
class Vague(Pass):
    """Promises something in words."""

    name: ClassVar[str] = "vague"
    exactness: ClassVar[Exactness] = "exact"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module:Pass", "ModuleNotFoundError"),
        ("tests.rewrite.test_pipeline:nothing", "AttributeError"),
        ("tests.rewrite.test_pipeline:install", "not a subclass of `normfold.Pass`"),
        ("fractions:Fraction", "not a subclass of `normfold.Pass`"),
        ("tests.rewrite.test_pipeline:Greedy", "`strength` has no default"),
        ("tests.rewrite.test_pipeline:Vague", "an `Exactness`"),
    ],
)
def test_a_plug_in_that_is_not_a_pass(
    monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    point = EntryPoint("odd", target, "normfold.passes")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    monkeypatch.setitem(sys.modules, "tests.rewrite.test_pipeline", sys.modules[__name__])
    with pytest.raises(UsageError, match="the plug-in pass `odd` cannot be used") as caught:
        parse("canonicalize,odd")
    assert target in str(caught.value.where)
    assert words in str(caught.value.found)
    assert parse("canonicalize,bake"), "it breaks nothing else"
