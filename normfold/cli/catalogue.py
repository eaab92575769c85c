"""Passes, presets and codes as `normfold passes` and `normfold explain` show them, without importing torch.

Built-in passes are read from their sources; those of other packages are imported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import normfold
from normfold import passes
from normfold.errors import UsageError
from normfold.passes import BUILT_IN
from normfold.report.reasons import by_code, codes

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_DEFINITION = re.compile(r"^(?:@|(?:async )?def |class )", re.MULTILINE)
_METHOD = re.compile(r"^    (?:@|(?:async )?def )", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One pass: ``options`` are names, as in pipeline text, with their defaults.

    ``algebra`` is the docstring of its module, ``doc`` that of its class; ``error`` says why it cannot be used.
    """

    name: str
    exactness: str = ""
    options: tuple[tuple[str, str], ...] = ()
    algebra: str = ""
    doc: str = ""
    error: str = ""

    @property
    def summary(self) -> str:
        """First line of the docstring, or the error."""
        return f"cannot be used: {self.error}" if self.error else self.doc.partition("\n")[0]

    def row(self) -> dict[str, str]:
        """The cells of `normfold passes`."""
        options = " ".join(f"{name}={default}" for name, default in self.options)
        return {
            "name": self.name,
            "exactness": self.exactness,
            "options": options,
            "summary": self.summary,
        }


def list_passes() -> tuple[list[dict[str, str]], dict[str, str]]:
    """A row for every pass, and the presets. A plug-in that cannot be used is listed with its error."""
    from normfold.job.presets import PRESETS

    found = [*map(built_in, BUILT_IN), *map(plugin, passes.plugins().values())]
    return [entry.row() for entry in found], dict(PRESETS)


def explain(name: str) -> dict[str, str]:
    """What a code means and what helps, or the algebra, promise and options of a pass.

    Raises:
        UsageError: neither a code nor a pass, with a did-you-mean; or a plug-in that cannot be used.
    """
    code = by_code(name)
    if code is not None:
        return {
            "title": f"{code.code} {code.slug}",
            "meaning": code.summary,
            "remedy": f"hint: {code.remedy}",
        }
    entry = _entry(name)
    if entry.error:
        raise UsageError(f"the pass `{name}` cannot be used", found=entry.error)
    return {"algebra": entry.algebra, "pass": f"\n{entry.doc}"}


def _entry(name: str) -> Entry:
    if name in BUILT_IN:
        return built_in(name)
    offered = passes.plugins()
    if name in offered:
        return plugin(offered[name])
    known = [text for code in codes() for text in (code.code, code.slug)] + passes.names()
    close = difflib.get_close_matches(name, known, 1)
    raise UsageError(
        f"nothing is called `{name}`",
        hint=f"did you mean `{close[0]}`?"
        if close
        else "give a code (NF101 ...) or a pass (`normfold passes`)",
    )


# -- built-in passes, read ---------------------------------------------------------------------------


def built_in(name: str) -> Entry:
    """A built-in pass, read from its source."""
    module, _, attribute = BUILT_IN[name].partition(":")
    source = _source(module)
    tree = _head(source, _METHOD, source.index(f"\nclass {attribute}("))
    kind = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute
    )
    exactness, options = "exact", []
    for node in kind.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if not ast.unparse(node.annotation).startswith("ClassVar"):
            assert node.value is not None, f"option `{node.target.id}` of `{name}` has no default"
            options.append((node.target.id, _value(node.value, tree)))
        elif node.target.id == "exactness":
            assert isinstance(node.value, ast.Attribute)  # Exactness.CHANGES_FUNCTION
            exactness = node.value.attr.lower().replace("_", "-")
    return Entry(
        name,
        exactness,
        tuple(_option(option, default) for option, default in options),
        ast.get_docstring(tree) or "",
        ast.get_docstring(kind) or "",
    )


def _source(module: str) -> str:
    """The source of a module of ours, which may not be imported: its package brings torch."""
    root, _, rest = module.removeprefix("normfold.").partition(".")
    home = Path(passes.__path__[0]) if root == "passes" else Path(normfold.__path__[0], root)
    return home.joinpath(*rest.split(".")).with_suffix(".py").read_text("utf-8")


def _head(source: str, end: re.Pattern[str], start: int = 0) -> ast.Module:
    """A source up to where ``end`` matches: to parse all of it takes ten times as long."""
    found = end.search(source, start)
    return ast.parse(source[: found.start()] if found else source)


def _value(expression: ast.expr, tree: ast.Module) -> object:
    """The value of a literal, or of a constant at the head of this module or of one that it comes from."""
    if not isinstance(expression, ast.Name):
        return ast.literal_eval(expression)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (alias.asname or alias.name) == expression.id:
                    return _value(ast.Name(alias.name), _head(_source(node.module), _DEFINITION))
        elif isinstance(node, ast.Assign):
            for name, value in _assigned(node):
                if name == expression.id:
                    return _value(value, tree)
    raise LookupError(expression.id)


def _assigned(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of ``a = 1`` and of ``a, b = 1, 2``."""
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target.id, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, node.value.elts, strict=True):
                if isinstance(name, ast.Name):
                    yield name.id, value


def _option(name: str, default: object) -> tuple[str, str]:
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return name.replace("_", "-"), text


# -- passes of other packages, imported --------------------------------------------------------------


def plugin(point: EntryPoint) -> Entry:
    """A pass of another package, imported; its error where it cannot be used."""
    from normfold.inspection import pass_class

    if point.name in BUILT_IN:
        return Entry(point.name, error=f"{point.value} has the name of a built-in pass")
    try:
        kind = pass_class(point.name)
        fields = [(field.name, _default(field)) for field in dataclasses.fields(kind)]
        return Entry(
            point.name,
            kind.exactness.value,
            tuple(_option(name, default) for name, default in fields),
            inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""),
            inspect.getdoc(kind) or "",
        )
    except UsageError as error:
        return Entry(point.name, error=" ".join(f"{error.where}: {error.found}".split()))
    except Exception as error:  # in what is run of it: a repr, the factory of a default
        return Entry(point.name, error=f"{point.value}: {type(error).__name__}: {error}")


def _default(field: dataclasses.Field[Any]) -> object:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()
