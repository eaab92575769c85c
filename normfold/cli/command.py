"""Commands from declarations: parameters, groups of the help and examples come from the options themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from normfold.errors import UsageError
from normfold.job import Option

_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool}
Given = dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """A positional argument."""

    name: str
    metavar: str
    help: str
    optional: bool = False


def _never(given: Given) -> None:
    return None


@dataclass(frozen=True)
class Command:
    """One command: ``run`` gets the arguments and the options that were given, and returns the exit status.

    Attributes:
        opens: it opens files that may be untrusted, and so works in a confined process.
        why_not: why this call of it cannot be confined; None where it can.
    """

    name: str
    help: str
    run: Callable[[Given], int]
    arguments: Sequence[Argument]
    options: Sequence[Option]
    examples: Sequence[str]
    opens: bool = True
    why_not: Callable[[Given], str | None] = _never

    def _writable(self, given: Given) -> list[Path]:
        """The folders that the options name: all that are paths are written to."""
        found = []
        for item in self.options:
            value = given.get(item.keyword, item.default)
            if item.kind == "path" and value is not None:
                found.append(Path(value) if item.folder else Path(value).parent)
        return found

    def add_to(self, app: typer.Typer) -> None:
        """Make a typer command of it."""

        def call(ctx: typer.Context, **values: Any) -> int:
            given = {name: value for name, value in values.items() if value is not None}
            given.pop("config", None)  # read before: see `normfold.cli.app`
            if self.opens:
                from normfold.cli.supervise import supervise

                supervise(self._writable(given), self.why_not(given))
            try:
                return self.run(given)
            except UsageError as error:
                where = origin(ctx, error.option)
                if where is None or error.where is not None:
                    raise
                raise UsageError(
                    error.what, where=where, found=error.found, hint=error.hint
                ) from error

        context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [context, *map(_argument, self.arguments), *map(_option, self.options)]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {item.name: item.annotation for item in parameters}
        app.command(
            self.name,
            cls=_Grouped,
            help=self.help,
            epilog="\n".join(self.examples),
            context_settings={"max_content_width": 120},
        )(call)


def origin(context: Any, name: str | None) -> str | None:
    """Where the value of a parameter is from, unless it is the command line."""
    if name is None or context is None:
        return None
    source = context.get_parameter_source(name)
    if source is not None and source.name == "ENVIRONMENT":
        param = next(item for item in context.command.params if item.name == name)
        return f"the environment: {' or '.join(param.envvar)}"
    if source is not None and source.name == "DEFAULT_MAP":
        return "normfold.toml or pyproject.toml"
    return None


class _Grouped(TyperCommand):
    """A command whose help lists options under the headings of their groups, and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                title = getattr(parameter, "rich_help_panel", None) or "Other options"
                groups.setdefault("Arguments" if is_argument else title, []).append(record)
        other = groups.pop("Other options", [])
        for title, records in [*groups.items(), ("Other options", other)]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _argument(item: Argument) -> inspect.Parameter:
    kind: Any = str | None if item.optional else str
    said = typer.Argument(metavar=item.metavar, help=item.help, show_default=False)
    default = None if item.optional else inspect.Parameter.empty
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, said],
    )


def _option(item: Option) -> inspect.Parameter:
    kind: Any = Path if item.kind == "path" else _TYPES.get(item.kind, str)
    if item.count > 1:
        kind = tuple[(kind,) * item.count]  # type: ignore[misc]
    elif item.many:
        kind = list[kind]
    flags = list(item.flags)
    if item.kind == "bool":
        flags[0] = f"{flags[0]}/--no-{item.key}" if item.default or item.optional else flags[0]
    said = typer.Option(
        *flags,
        metavar=item.declared.metavar or ("|".join(item.choices) or None),
        help=_help(item),
        show_default=False,
        show_envvar=False,
        rich_help_panel=item.group or None,
    )
    return inspect.Parameter(
        item.keyword,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, said],
    )


def _help(item: Option) -> str:
    text, default = item.declared.help, item.declared.default_text
    if not default and item.kind != "bool" and item.default not in (None, (), ""):
        value = item.default[0] if isinstance(item.default, tuple) else item.default
        default = str(value)
    return f"{text} [default: {default}]" if default else text
