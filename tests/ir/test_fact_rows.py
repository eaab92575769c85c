"""Every kind of fact can be written and read: what comes back is what was written."""

from __future__ import annotations

import dataclasses
import importlib
import json
import types
import typing
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from normfold.ir import facts
from normfold.ir.fact_rows import RowError, from_row, to_row
from normfold.ir.facts import Fact
from normfold.ir.intervals import Interval
from normfold.ir.sites import NormOf, Site
from normfold.ir.statistics import Statistics

ROOT = Path(__file__).parents[2]

for path in [*(ROOT / "normfold").rglob("*.py"), *(ROOT / "passes").glob("*.py")]:
    if "import Fact" in path.read_text():
        parts = path.relative_to(ROOT).with_suffix("").parts
        importlib.import_module(".".join(("normfold", *parts) if parts[0] == "passes" else parts))

KINDS = {n: kind for n, kind in facts.kinds().items() if kind.__module__.startswith("normfold.")}


def example(kind: Any, seed: int = 1) -> Any:
    """A value of a type, unlike those of other seeds."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return example(inner[seed % len(inner)], seed)
    if origin is tuple:
        inner = inner[:1] * 2 if inner[1:] == (...,) else inner
        return tuple(example(part, seed + at) for at, part in enumerate(inner))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = enumerate(dataclasses.fields(kind))
        return kind(**{f.name: example(hints[f.name], seed + at) for at, f in fields})  # type: ignore[operator]
    plain: dict[Any, Any] = {
        Tensor: torch.tensor([seed, float("nan")], dtype=torch.float64),
        float: (float("-inf"), seed + 0.1)[seed % 2],
        int: seed,
        bool: bool(seed % 2),
        str: f"text {seed}",
        types.NoneType: None,
    }
    return plain[kind]


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def there_and_back(fact: Fact) -> Fact | None:
    row, tensors = to_row(fact, "3")
    return from_row(json.loads(json.dumps(row)), "3", tensors.__getitem__, facts.kinds())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_kind_there_and_back(name: str, seed: int) -> None:
    fact = example(KINDS[name], seed)
    assert fact.kind_name == name
    found = there_and_back(fact)
    assert same(found, fact)


def test_a_comparison_that_sees_differences() -> None:
    for kind in KINDS.values():
        if dataclasses.fields(kind):
            assert not same(example(kind, 1), example(kind, 2)), kind


def test_names_in_files_are_for_ever() -> None:
    assert {name for name, kind in KINDS.items() if kind.kept} == {"placement", "statistics"}
    assert set(KINDS) == {
        "affine-of",
        "centred",
        "float-mean",
        "made",
        "mean-shift",
        "norm-of",
        "partial",
        "placement",
        "range",
        "read-mean",
        "seen",
        "statistics",
        "stays-float",
        "trainable",
        "written-for",
    }


def test_the_rows_are_plain() -> None:
    site = {"path": "bn", "kind": "batch-norm", "line": "", "module_type": ""}
    row, tensors = to_row(NormOf((Site("bn", "batch-norm"),)), "0")
    assert (row, tensors) == ({"kind": "norm-of", "fields": {"sites": [site]}}, {})
    row, tensors = to_row(Interval(float("-inf"), 2), "0")
    assert row == {"kind": "range", "fields": {"low": "-inf", "high": 2}}
    row, tensors = to_row(Statistics("bn", 1, torch.zeros(2), torch.ones(2)), "5")
    assert row["fields"] == {"site": "bn", "dim": 1, "mean": "5.mean", "std": "5.std"}
    assert set(tensors) == {"5.mean", "5.std"}


def test_an_unknown_kind_is_nothing() -> None:
    row = {"kind": "of-another-version", "fields": {"anything": [None]}}
    none: dict[str, Tensor] = {}
    assert from_row(row, "0", none.__getitem__, facts.kinds()) is None


GOOD = {"site": "bn", "dim": 1, "mean": "0.mean", "std": "0.std"}
SITE = {"path": "bn", "kind": "batch-norm", "line": "", "module_type": ""}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "`0.kind` is missing"),
        ([], "`0.kind` is missing"),
        ({"kind": 3, "fields": {}}, "`0.kind` is not a text"),
        ({"kind": ["range"], "fields": {}}, "`0.kind` is not a text"),
        ({"kind": "range"}, "`0.fields` is missing"),
        ({"kind": "range", "fields": [1, 2]}, "`0.low` is missing"),
        ({"kind": "range", "fields": {"low": 0.0}}, "`0.high` is missing"),
        ({"kind": "range", "fields": {"low": 0, "high": 1, "x": 1}}, "`0` has no field `x`"),
        ({"kind": "range", "fields": {"low": "a", "high": 1.0}}, "`0.low` is not float"),
        ({"kind": "range", "fields": {"low": True, "high": 1.0}}, "`0.low` is not float"),
        ({"kind": "range", "fields": {"low": 10**400, "high": 1.0}}, "`0.low` is not float"),
        ({"kind": "statistics", "fields": {**GOOD, "dim": True}}, "`0.dim` is not int"),
        ({"kind": "statistics", "fields": {**GOOD, "dim": 1.0}}, "`0.dim` is not int"),
        ({"kind": "statistics", "fields": {**GOOD, "site": None}}, "`0.site` is not str"),
        ({"kind": "statistics", "fields": {**GOOD, "mean": "0.std"}}, "`0.mean` is not Tensor"),
        ({"kind": "statistics", "fields": GOOD}, "there is no tensor `0.std`"),
        ({"kind": "norm-of", "fields": {"sites": "bn"}}, "`0.sites` is not a list"),
        ({"kind": "norm-of", "fields": {"sites": ["bn"]}}, "`0.sites.0.path` is missing"),
        (
            {"kind": "norm-of", "fields": {"sites": [SITE, {**SITE, "line": 3}]}},
            "`0.sites.1.line` is not str",
        ),
    ],
)
def test_rows_that_are_no_facts(row: Any, words: str) -> None:
    tensors = {"0.mean": torch.zeros(2)}
    with pytest.raises(RowError) as caught:
        from_row(row, "0", tensors.__getitem__, facts.kinds())
    assert str(caught.value) == words


@dataclasses.dataclass(frozen=True)
class Pair(Fact):
    """Types that none of normfold's own kinds has."""

    kind_name: ClassVar[str] = "test-pair"
    both: tuple[int, str]
    many: tuple[Tensor, ...]
    some: float | Interval | None
    none: Tensor | None


@pytest.mark.parametrize("some", [None, 0.5, Interval(0.0, 1.0)])
def test_kinds_of_other_packages(some: float | Interval | None) -> None:
    fact = Pair((1, "a"), (torch.ones(2), torch.arange(3)), some, None)
    found = there_and_back(fact)
    assert same(found, fact)
    row, tensors = to_row(fact, "3")
    row["fields"]["both"] = [1]
    with pytest.raises(RowError, match=r"`3.both` has 1 entries in place of 2"):
        from_row(row, "3", tensors.__getitem__, facts.kinds())


def test_what_no_file_holds_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`0.both`: a fact cannot hold <class 'dict'>"):
        to_row(Pair({}, (), None, None), "0")  # type: ignore[arg-type]


def test_kinds_have_names_of_their_own() -> None:
    with pytest.raises(TypeError, match=r"`.*Nameless` has no `kind_name`"):
        type("Nameless", (Fact,), {})
    with pytest.raises(TypeError, match="two kinds of facts are called `range`"):
        type("Other", (Fact,), {"kind_name": "range"})
    assert facts.kinds()["range"] is Interval
