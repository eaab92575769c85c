"""Passes and codes as the command line tells them: read without torch, and equal to what is imported."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from normfold.cli import catalogue
from normfold.errors import UsageError
from normfold.job.presets import PRESETS
from normfold.passes import BUILT_IN
from normfold.report.reasons import codes
from normfold.rewrite.registry import find
from tests.cli.conftest import ROOT, Cli, start

CODE = re.compile(r"\bNF\d{3}\b")


# -- built-in passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_read_is_what_is_imported(name: str) -> None:
    entry, kind = catalogue.built_in(name), find(name)
    fields = dataclasses.fields(kind)
    assert entry.exactness == kind.exactness.value
    assert [option for option, _ in entry.options] == [f.name.replace("_", "-") for f in fields]
    for (_, default), field in zip(entry.options, fields, strict=True):
        is_bool = isinstance(field.default, bool)
        assert default == (str(field.default).lower() if is_bool else str(field.default))
    assert entry.doc == inspect.getdoc(kind)
    module = inspect.getmodule(kind)
    assert module is not None
    assert entry.algebra == inspect.getdoc(module)
    assert (entry.name, entry.error) == (name, "")
    assert entry.summary == (kind.__doc__ or "").strip().splitlines()[0]


def test_no_pass_inherits_options() -> None:
    """The reader of sources sees the fields of one class only."""
    own = {name: set(vars(find(name)).get("__annotations__", ())) for name in BUILT_IN}
    for name, annotated in own.items():
        assert {field.name for field in dataclasses.fields(find(name))} <= annotated, name


def test_slugs_in_docstrings_exist() -> None:
    known = {item.slug for item in codes()}
    for name in BUILT_IN:
        declines = catalogue.built_in(name).doc.partition("Declines:")[2]
        named = set(re.findall(r"\b[a-z]+(?:-[a-z]+)+\b", declines))
        assert named <= known, name
        assert set(CODE.findall(declines)) <= {item.code for item in codes()}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x: int = -3", -3),
        ("A = 2.5\nx: float = A", 2.5),
        ("A, B = 1, ('a', 'b')\nx: tuple = B", ("a", "b")),
        ("from normfold.rewrite.centering import BIAS_COST as B\nx: float = B", 0.65),
    ],
)
def test_defaults(source: str, value: object) -> None:
    tree = ast.parse(source)
    field = tree.body[-1]
    assert isinstance(field, ast.AnnAssign)
    assert field.value is not None
    assert catalogue._value(field.value, tree) == value


def test_the_rows() -> None:
    rows, presets = catalogue.list_passes()
    assert [row["name"] for row in rows] == list(BUILT_IN)
    assert presets == PRESETS
    assert all(row["summary"] and row["exactness"] for row in rows)


# -- codes -------------------------------------------------------------------------------------------


def emitted() -> set[str]:
    """Every code that is written in a source of ours."""
    files = [path for folder in ("normfold", "passes") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    return {code for path in files for code in CODE.findall(path.read_text())}


def test_every_code_is_explained() -> None:
    known = {item.code for item in codes()}
    for code in sorted(emitted() | known):
        told = catalogue.explain(code)
        assert told["title"].startswith(f"{code} ")
        assert told["meaning"]
        assert told["remedy"].startswith("hint: ")


def test_no_pass_writes_a_code_as_text() -> None:
    """Codes come from the tables, so that `explain` cannot miss one."""
    folders = (ROOT / "passes", ROOT / "normfold" / "rewrite")
    written = [
        f"{path.name}: {line.strip()}"
        for folder in folders
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"""["']NF\d{3}["']""", line)
    ]
    assert written == []


@pytest.mark.parametrize("item", codes(), ids=lambda item: str(item.code))
def test_options_in_remedies_exist(item: Any) -> None:
    """``pass{option=...}`` in a text is an option of that pass."""
    for name, text in re.findall(r"([a-z]+(?:-[a-z]+)+|equalize)\{([^}]*)\}", item.remedy):
        known = {option for option, _ in catalogue.built_in(name).options}
        assert set(re.findall(r"([a-z-]+)=", text)) <= known


def test_explain_a_caution(cli: Cli) -> None:
    ran = cli("explain", "nf202")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("NF202 unaligned-width\n")
    assert "multiple of 8" in ran.out
    assert cli("explain", "large-gain").out.startswith("NF201 ")


# -- plug-ins ----------------------------------------------------------------------------------------


def install(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    points = [EntryPoint(name, value, "normfold.passes") for name, value in targets.items()]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)


def test_a_plug_in_is_listed_and_explained(cli: Cli, broken: str) -> None:
    row = catalogue.list_passes()[0][-1]
    assert (row["name"], row["exactness"], row["options"]) == ("scale-linears", "exact", "wrong=()")
    told = cli("explain", "scale-linears")
    assert told.status == 0
    assert row["summary"] in told.out


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:Pass", "ModuleNotFoundError"),
        ("fractions:Fraction", "not a subclass"),
        ("json:loads", "not a subclass"),
        ("json:nothing", "AttributeError"),
    ],
)
def test_a_broken_plug_in_is_listed_with_its_error(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, value: str, words: str
) -> None:
    install(monkeypatch, odd=value)
    ran = cli("passes", "--json")
    assert ran.status == 0
    row = ran.json["passes"][-1]
    assert (row["name"], row["exactness"]) == ("odd", "")
    assert row["summary"].startswith("cannot be used: ")
    assert words in row["summary"]
    assert value in row["summary"]
    assert cli("explain", "bake").status == 0
    for command in (("explain", "odd"), ("plan", "tests.cli.nets:tiny", "--passes", "odd")):
        refused = cli(*command)
        assert refused.status == 2
        refused.one_error("`odd` cannot be used", words)


def test_a_plug_in_with_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, bake="json:loads")
    rows, _ = catalogue.list_passes()
    own, other = (row for row in rows if row["name"] == "bake")
    assert own["exactness"] == "exact"
    assert "the name of a built-in pass" in other["summary"]
    assert catalogue.explain("bake")["algebra"].startswith("bake: ")


def test_a_module_that_ends_the_process_at_import(tmp_path: Path) -> None:
    """In a process of its own, installed like any package."""
    folder = tmp_path / "bad-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text("[normfold.passes]\nodd = badmod:Pass\n")
    (tmp_path / "badmod.py").write_text("import sys\nsys.exit('no licence')\n")
    ran = start("passes", "--json", cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    out, err = ran.communicate(timeout=120)
    assert (ran.returncode, err) == (0, "")
    row = json.loads(out)["passes"][-1]
    assert row["name"] == "odd"
    assert "SystemExit: no licence" in row["summary"]
    assert "of the package `bad`" in row["summary"]


def test_unknown_names() -> None:
    for text, close in (("fold-afine", "fold-affine"), ("NF1291", "NF129"), ("gatd", "gated")):
        with pytest.raises(UsageError, match=f"did you mean `{close}`"):
            catalogue.explain(text)
    with pytest.raises(UsageError, match="normfold passes"):
        catalogue.explain("xyzzy")


# -- cost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["passes"], ["explain", "NF105"], ["explain", "bake"]])
def test_quick(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-m", "normfold", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert used < 1.0  # of computing; importing torch takes more than twice that
