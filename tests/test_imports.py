"""Who may import whom (the layers), what may be imported early, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("normfold", "passes", "tests", "examples", "benchmarks")
LONGEST = 400

# layer -> layers that it may import besides itself. A layer is a folder of normfold/, `errors`, `facade`:
# normfold/__init__.py and the modules beside it, which know all but the command line, or `pass-names`:
# passes/__init__.py, the table of passes, which imports none of them.
MAY_IMPORT = {
    "errors": set[str](),
    "target": {"errors"},
    "progress": set[str](),
    "files": {"errors"},
    "job": {"errors", "target"},
    "ir": {"errors", "target"},
    "ops": {"errors", "ir", "target"},
    "spaces": {"errors", "ir", "ops"},
    "domains": {"errors", "ir", "ops"},
    "report": {"ops", "errors", "ir", "target"},
    "load": {"ops", "errors", "ir", "job", "progress"},
    "data": {"errors", "ir", "job", "load"},
    "nn": {"errors"},
    "train": {
        "ops",
        "domains",
        "files",
        "errors",
        "data",
        "ir",
        "job",
        "load",
        "nn",
        "progress",
        "report",
    },
    "pass-names": set[str](),
    "rewrite": {"ops", "domains", "errors", "ir", "nn", "pass-names", "report", "spaces", "target"},
    "passes": {"ops", "domains", "errors", "ir", "nn", "report", "rewrite", "spaces", "target"},
    "ranges": {"ops", "domains", "errors", "data", "ir", "job", "progress", "report", "target"},
    "targets": {
        "ops",
        "domains",
        "files",
        "errors",
        "ir",
        "job",
        "progress",
        "report",
        "target",
    },
    "judge": {
        "ops",
        "data",
        "domains",
        "errors",
        "ir",
        "job",
        "load",
        "progress",
        "report",
        "rewrite",
        "target",
        "targets",
    },
    "steps": {
        "spaces",
        "ops",
        "domains",
        "files",
        "errors",
        "data",
        "ir",
        "job",
        "judge",
        "load",
        "nn",
        "passes",
        "progress",
        "ranges",
        "report",
        "rewrite",
        "target",
        "targets",
        "train",
    },
    # beside the facade: for tests of passes, and imported by nothing
    "testing": {"domains", "errors", "ir", "judge", "report", "rewrite"},
    "cli": {"errors", "facade", "files", "job", "pass-names", "progress", "report", "target"},
    "__main__": {"cli"},
}
MAY_IMPORT["facade"] = MAY_IMPORT["steps"] | {"steps"}
ROOT_COPIES = {"passes", "cli"}  # importable from the root of a clone, never meant to be
HEAVY = {
    "matplotlib",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "timm",
    "torchvision",
    "transformers",
}
SLOW = HEAVY | {"torch", "numpy", "onnx", "onnx_ir", "scipy", "sklearn"}  # not for the command line


@dataclass(frozen=True)
class Import:
    """One imported module: ``early`` means that it runs when the importing module is imported."""

    module: str
    line: int
    early: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports(source: str, is_module: frozenset[str] = frozenset()) -> Iterator[Import]:
    """Every import in ``source``; ``from a import b`` is one of ``a.b`` where that is a module."""

    def visit(node: ast.AST, early: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, early)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"relative import, line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in is_module else node.module, node.lineno, early)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            early = False
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for guarded in node.body:
                yield from visit(guarded, False)
            for other in node.orelse:
                yield from visit(other, early)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, early)

    return visit(ast.parse(source), True)


def module_name(path: Path) -> str:
    """``normfold.passes.bake`` for passes/bake.py, ``normfold.cli`` for its ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "passes":
        parts = ("normfold", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders: str) -> list[Path]:
    """The sources under ``folders``; the link normfold/passes is not followed."""
    found = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    return sorted(p for p in found if (ROOT / "normfold" / "passes") not in p.parents)


PRODUCT = {module_name(path): path for path in python_files("normfold", "passes")}


def layer(module: str) -> str:
    """The layer of a module of normfold."""
    if module == "normfold.passes":
        return "pass-names"
    second = module.removeprefix("normfold").removeprefix(".").split(".")[0]
    is_folder = second != "" and (ROOT / "normfold" / second).is_dir()
    return second if is_folder or second in MAY_IMPORT else "facade"


def violation(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target``, or None."""
    if target.split(".")[0] in ROOT_COPIES:
        return f"{module} imports the top-level {target}"
    if target.split(".")[0] != "normfold":
        return None
    here, there = layer(module), layer(target)
    if here == "passes" == there and target != module:
        return f"{module} imports another pass, {target}"
    if here != there and there not in MAY_IMPORT[here]:
        return f"{module} ({here}) imports {target} ({there})"
    return None


def test_every_folder_has_a_row() -> None:
    assert {layer(module) for module in PRODUCT} <= MAY_IMPORT.keys()


def test_layers() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {why}"
        for module, path in PRODUCT.items()
        for item in imports(path.read_text(), frozenset(PRODUCT))
        if (why := violation(module, item.module))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("normfold.ir.graph", "normfold.rewrite"),
        ("normfold.ir.graph", "normfold"),
        ("normfold.report.text", "normfold.passes.bake"),
        ("normfold.rewrite.pipeline", "normfold.judge"),
        ("normfold.passes.bake", "normfold.passes.restore"),
        ("normfold.passes.bake", "normfold.passes"),
        ("normfold.passes", "normfold.passes.bake"),
        ("normfold.rewrite.registry", "normfold.passes.bake"),
        ("normfold.cli.catalogue", "normfold.passes.bake"),
        ("normfold.passes.bake", "passes"),
        ("normfold.ir.graph", "normfold.load"),
        ("normfold.nn.batch", "normfold.ir"),
        ("normfold.train.replace", "normfold.rewrite"),
        ("normfold.ir.graph", "normfold.nn"),
        ("normfold.cli.app", "normfold.ir"),
        ("normfold.api", "normfold.cli"),
        ("normfold.api", "normfold.testing"),
        ("normfold.testing.checks", "normfold.passes.bake"),
    ],
)
def test_the_rule_can_fail(module: str, target: str) -> None:
    assert violation(module, target)


def test_nothing_uses_the_root_copies() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for path in python_files(*SOURCE_FOLDERS)
        for item in imports(path.read_text())
        if item.top in ROOT_COPIES
    ]
    assert not found, "\n" + "\n".join(found)


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [extras[name] for name in ("hub", "openvino", "plots", "trt", "trt-rtx")]
    declared = [item for group in (project["dependencies"], *optional) for item in group]
    names = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in declared}
    used = {item.top for path in PRODUCT.values() for item in imports(path.read_text())}
    assert used - names - set(sys.stdlib_module_names) - {"normfold"} == set()


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for path in PRODUCT.values()
        for item in imports(path.read_text())
        if item.early and item.top in HEAVY
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_command_line_starts_without_torch() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{item.line}: {item.module}"
        for module, path in PRODUCT.items()
        if module in ("normfold", "normfold.__main__") or layer(module) == "cli"
        for item in imports(path.read_text())
        if item.early and item.top in SLOW
    ]
    assert not found, "\n" + "\n".join(found)


def test_early_and_late_imports_are_told_apart() -> None:
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\nclass C:\n    from e import x\n"
        "try:\n    import g\nexcept E:\n    pass\n"
    )
    assert {i.module: i.early for i in imports(source)} == {
        "a": True,
        "b": False,
        "c": True,
        "d": False,
        "e": True,
        "g": True,
    }
    assert [i.module for i in imports("from n import m, f", frozenset({"n.m"}))] == ["n.m", "n"]


@pytest.mark.parametrize(
    "module",
    [
        "normfold",
        "normfold.cli",
        "normfold.cli.catalogue",
        "normfold.errors",
        "normfold.job.presets",
        "normfold.passes",
        "normfold.report.reasons",
    ],
)
def test_import_brings_in_nothing_slow(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not SLOW & set(ran.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["convert", "--help"],
        ["no-such-command"],
        ["passes"],
        ["explain", "NF105"],
        ["explain", "center-stream"],
    ],
)
def test_help_brings_in_nothing_slow(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "normfold", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.rsplit("|", 1) for line in ran.stderr.splitlines() if "import time:" in line]
    assert ran.returncode == (2 if arguments == ["no-such-command"] else 0), ran.stderr[-2000:]
    assert "normfold.cli" in {name.strip() for _, name in lines}
    assert not SLOW & {name.strip().split(".")[0] for _, name in lines}


def test_no_file_is_too_long() -> None:
    files = python_files(*SOURCE_FOLDERS)
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_every_pass_has_its_test_file() -> None:
    passes = {p.stem for p in (ROOT / "passes").glob("*.py")} - {"__init__"}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests/passes").glob("test_*.py")}
    assert passes, "no pass at all"
    assert passes - tests == set()
