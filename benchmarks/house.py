"""What the source is like, in numbers: read from the files alone, nothing of them is imported.

python -m benchmarks.house [--json] [--root FOLDER]

A line for each count: name, value, detail. Details are lists, cut after a few without `--json`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("normfold", "passes", "tests", "examples", "benchmarks")
PRODUCT = ("normfold", "passes")
OPS, TABLE = "normfold/ops/", "normfold/ops/table.py"
LONGEST = 400
SHORTEST_REPETITION = 6
_TAKES_NAMES = ("argument", "argument_index", "getattr", "hasattr")  # as their second argument
_STEPS = {  # what carries a layout or groups through one op, by the module in normfold/ops/
    "layout": ("push", "pull"),
    "groups": ("push", "pull", "pull_part"),
    "mixing": ("mixed", "through_mix"),
}
_SHOWN = 6  # details on the terminal


@dataclass(frozen=True)
class Count:
    """One line: ``value`` is None where there is nothing to count."""

    name: str
    value: float | None
    detail: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:g}"
        shown = ", ".join(self.detail[:_SHOWN])
        more = len(self.detail) - _SHOWN
        return (
            f"{self.name:34}{value:>7}  {shown}{f' and {more} more' if more > 0 else ''}".rstrip()
        )


@dataclass(frozen=True)
class File:
    """A source file: its path from the root, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def strings(self) -> Iterator[str]:
        """Every string literal."""
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def read(root: Path, *folders: str) -> list[File]:
    """The sources under ``folders``; the link normfold/passes is not followed."""
    paths = [path for folder in folders for path in (root / folder).rglob("*.py")]
    inside = sorted(path for path in paths if root / "normfold" / "passes" not in path.parents)
    return [File(path.relative_to(root).as_posix(), path.read_text()) for path in inside]


def loose_modules(files: Sequence[File]) -> Count:
    """Modules at the top of normfold/."""
    names = [
        file.path.split("/")[1] for file in files if re.fullmatch(r"normfold/\w+\.py", file.path)
    ]
    loose = [name.removesuffix(".py") for name in names if not name.startswith("__")]
    return Count("loose modules", len(loose), loose)


def execute(files: Sequence[File]) -> list[Count]:
    """Lines of the function `execute`, and of the module at the top of normfold/ that defines it."""
    for file in files:
        if re.fullmatch(r"normfold/\w+\.py", file.path):
            for node in file.tree.body:
                if isinstance(node, ast.FunctionDef) and node.name == "execute":
                    assert node.end_lineno is not None
                    length = node.end_lineno - node.lineno + 1
                    place = [f"{file.path}:{node.lineno}"]
                    return [
                        Count("lines of the module of `execute`", len(file.lines), [file.path]),
                        Count("lines of `execute`", length, place),
                    ]
    nowhere = ["no function `execute` in a module at the top of normfold/"]
    return [
        Count("lines of the module of `execute`", None),
        Count("lines of `execute`", None, nowhere),
    ]


def options(files: Sequence[File]) -> list[Count]:
    """Fields made by a call of `option` in normfold/job/, and those that are declared twice."""
    found = [
        (node.target.id, f"{file.path}:{node.lineno}")
        for file in files
        if file.path.startswith("normfold/job/")
        for node in file.nodes
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Call)
        and name_of(node.value.func) == "option"
    ]
    times = Counter(name for name, _ in found)
    twice = [f"{name} {place}" for name, place in found if times[name] > 1]
    by_file = Counter(place.split(":")[0] for _, place in found)
    detail = [f"{path} {count}" for path, count in by_file.most_common()]
    repeated = sum(count > 1 for count in times.values())
    return [
        Count("option declarations", len(found), detail),
        Count("declared twice", repeated, twice),
    ]


def lengths(files: Sequence[File]) -> list[Count]:
    """The longest file, those that are too long, and the median pass."""
    length = {file.path: len(file.lines) for file in files}
    longest = max(length, key=length.__getitem__)
    long = [f"{path} {size}" for path, size in length.items() if size > LONGEST]
    passes = [
        size for path, size in length.items() if re.fullmatch(r"passes/(?!__init__)\w+\.py", path)
    ]
    return [
        Count("longest file", length[longest], [longest]),
        Count(f"files over {LONGEST} lines", len(long), long),
        Count("median lines of a pass", statistics.median(passes) if passes else None),
    ]


def op_names(table: ast.Module) -> set[str]:
    """The op names in the table at the top of a module: the first item of each of its rows."""
    found: set[str] = set()
    for statement in table.body:
        if isinstance(statement, ast.AnnAssign) and name_of(statement.target) == "_ROWS":
            assert isinstance(statement.value, ast.Tuple)
            for row in statement.value.elts:
                assert isinstance(row, ast.Tuple)
                names = row.elts[0]
                assert isinstance(names, ast.Constant)
                found.update(str(names.value).split())
    return found


def op_literals(files: Sequence[File]) -> list[Count]:
    """Names of ops that stand outside normfold/ops/: in passes, and elsewhere.

    A file is read if it can ask what op a node is: it has `op_name` or `row_of`, imports from normfold.ops, or has
    `torch.ops` and reads a ``.target``. In such a file these count, where they are in the op table:

    * string literals, and each word of one that is split (``"relu gelu".split()``);
    * ops that something is compared with: ``node.target is torch.ops.aten.relu.default``.

    These do not: docstrings, names of arguments and attributes (``argument(node, "dim")``, ``getattr(x, "dim")``),
    literals that a dictionary is asked for. Its own keys count: a dictionary by op is a table of ops. A word with
    two meanings counts as well.
    """
    tables = [file for file in files if file.path == TABLE]
    if not tables:
        return [Count("op names outside ops", None, [f"there is no {TABLE}"])]
    names = op_names(tables[0].tree)
    found = Counter(
        file.path
        for file in files
        if not file.path.startswith(OPS) and _asks_ops(file)
        for text in _op_words(file)
        if text in names
    )
    passes = Counter({path: n for path, n in found.items() if path.startswith("passes/")})
    return [
        _by_file("op names outside ops and passes", found - passes),
        _by_file("op names in passes", passes),
    ]


def _asks_ops(file: File) -> bool:
    """True if a module can ask what op a node is."""
    targets = False
    for node in file.nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normfold.ops"):
            return True
        if name_of(node) in ("op_name", "row_of"):
            return True
        targets = targets or (isinstance(node, ast.Attribute) and node.attr == "target")
    return targets and "torch.ops" in file.text


def _op_words(file: File) -> Iterator[str]:
    """What may be the name of an op in a module."""
    ignored: set[ast.AST] = set()
    for node in file.nodes:
        if isinstance(node, ast.Expr):
            ignored.add(node.value)  # a docstring
        elif isinstance(node, ast.Subscript):
            ignored.add(node.slice)
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in _TAKES_NAMES:
                ignored.update(node.args[1:2])
            if called in ("get", "pop") and isinstance(node.func, ast.Attribute):
                ignored.update(node.args[:1])
            if called == "split" and isinstance(node.func, ast.Attribute):
                text = node.func.value
                ignored.add(text)
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield from text.value.split()
        elif isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            for part in parts:
                if isinstance(part, ast.Attribute) and name_of(part.value).endswith("aten"):
                    yield part.attr
    for node in file.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in ignored:
            yield node.value


def _by_file(name: str, found: Counter[str]) -> Count:
    detail = [f"{len(found)} files", *(f"{path} {count}" for path, count in found.most_common())]
    return Count(name, found.total(), detail)


def interpreters(files: Sequence[File]) -> Count:
    """Classes that derive from `fx.Interpreter`, directly or not."""
    classes = [
        (node, f"{node.name} {file.path}")
        for file in files
        for node in file.nodes
        if isinstance(node, ast.ClassDef)
    ]
    derived, size = {"Interpreter"}, 0
    while len(derived) > size:  # until nothing is added
        size = len(derived)
        derived |= {node.name for node, _ in classes if derived & set(map(name_of, node.bases))}
    found = [place for node, place in classes if derived & set(map(name_of, node.bases))]
    return Count("interpreters", len(found), found)


def traversals(files: Sequence[File]) -> Count:
    """Modules outside normfold/ops/ that carry layouts or groups through ops themselves."""
    found = [file.path for file in files if not file.path.startswith(OPS) and _carries(file)]
    return Count("traversals", len(found), found)


def _carries(file: File) -> bool:
    """True if a module uses one of `_STEPS`, by its name or through the module of it, whatever it calls these."""
    modules: dict[str, str] = {}  # in this file, to the name in normfold.ops
    for node in file.nodes:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if module == "normfold.ops":
                    modules[alias.asname or alias.name] = alias.name
                elif alias.name in _STEPS.get(module.removeprefix("normfold.ops."), ()):
                    return True
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in _STEPS.get(modules.get(name_of(node.value), ""), ())
        for node in file.nodes
    )


def meta_keys(files: Sequence[File]) -> list[Count]:
    """Distinct keys `normfold_*`, and the files that spell them."""
    used: dict[str, set[str]] = {}
    for file in files:
        for text in file.strings:
            if re.fullmatch(r"normfold_\w+", text):
                used.setdefault(text, set()).add(file.path)
    keys = sorted(used, key=lambda key: (-len(used[key]), key))
    paths = sorted(set().union(*used.values()))
    return [
        Count("keys `normfold_*`", len(keys), [f"{key} in {len(used[key])}" for key in keys]),
        Count("files that use them", len(paths), paths),
    ]


def progress_aliases(files: Sequence[File]) -> Count:
    """Places that declare a type alias called Progress."""
    found = []
    for file in files:
        for node in file.nodes:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            found += [f"{file.path}:{t.lineno}" for t in targets if name_of(t) == "Progress"]
    return Count("aliases called Progress", len(found), found)


def repetition(files: Sequence[File]) -> Count:
    """The longest run of lines that stands in two places; blank lines, comments and imports do not count."""
    lines: list[str] = []
    places: list[str] = []
    for number, file in enumerate(files):
        for at, line in _code(file):
            lines.append(line)
            places.append(f"{file.path}:{at}")
        lines.append(f"\0 end of file {number}")  # equal to nothing else
        places.append("")

    def repeated(length: int) -> list[int]:
        """Where the most frequent of the runs of this length that stand apart begins."""
        starts: dict[tuple[str, ...], list[int]] = {}
        for at in range(len(lines) - length + 1):
            known = starts.setdefault(tuple(lines[at : at + length]), [])
            if not known or at - known[-1] >= length:
                known.append(at)
        most = max(starts.values(), key=len, default=[])
        return most if len(most) > 1 else []

    if not repeated(SHORTEST_REPETITION):
        return Count("lines of the largest repetition", 0)
    low = SHORTEST_REPETITION  # of this length there is one, above `high` none
    while repeated(2 * low):
        low *= 2
    high = 2 * low - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if repeated(middle) else (low, middle - 1)
    return Count("lines of the largest repetition", low, [places[at] for at in repeated(low)])


def _code(file: File) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of code, without indentation."""
    left_out: set[int] = set()
    for node in file.nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(file.lines, 1):
        text = line.strip()
        if text and not text.startswith("#") and number not in left_out:
            yield number, text


def name_of(node: ast.AST) -> str:
    """`option` for ``option`` and for ``job.option``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def counts(root: Path = ROOT) -> list[Count]:
    """All counts of the tree at ``root``."""
    files = read(root, *FOLDERS)
    product = [file for file in files if file.path.split("/")[0] in PRODUCT]
    return [
        loose_modules(product),
        *execute(product),
        *options(product),
        *lengths(files),
        *op_literals(product),
        interpreters(product),
        traversals(product),
        *meta_keys(product),
        progress_aliases(product),
        repetition(product),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT, help="of another clone")
    options = parser.parse_args(arguments)
    found = counts(options.root)
    print(
        json.dumps([asdict(c) for c in found], indent=1)
        if options.json
        else "\n".join(map(str, found))
    )


if __name__ == "__main__":
    main()
