"""The Typer application and its exit codes: 0 equivalent, 1 verdict failed, 2 usage, 3 environment, 4 model."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer

from normfold.cli import commands
from normfold.cli.bench import bench
from normfold.cli.quantize import quantize
from normfold.cli.settings import Option, settings
from normfold.cli.training import distill
from normfold.errors import NormfoldError

# typer carries its own copy of click from 0.24 on: take the classes from there, whichever it is
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130

app = typer.Typer(
    name="normfold",
    help="Fold, convert and prove the normalisation layers of trained PyTorch networks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NORMFOLD"},
)


def _version(value: bool) -> None:
    if value:
        import normfold

        typer.echo(f"normfold {normfold.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    commands: dict[str, Any] = vars(ctx.command)["commands"]
    table: dict[str, dict[str, Option]] = {}
    for name, command in commands.items():
        table[name] = {}
        for param in command.params:
            if param.param_type_name != "option":
                continue
            long = max(param.opts, key=len).removeprefix("--")
            table[name][long] = Option(param.name, param.multiple)
            # as the option is spelled, not as its parameter is called
            param.envvar = f"NORMFOLD_{name}_{long}".upper().replace("-", "_")
    ctx.default_map = settings(table)


for command in (
    commands.convert,
    distill,
    quantize,
    commands.inspect,
    commands.plan,
    commands.verify,
    commands.bisect,
    commands.passes,
    commands.explain,
    commands.doctor,
    bench,
):
    app.command()(command)


def main() -> None:
    """Run the command line and exit with its status."""
    # before torch is loaded: threads that wait must not spin where cores are shared (CI runners)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except NormfoldError as error:
        _fail(str(error), error.exit_code)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(_message(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        _reader_left()
    except SystemExit as error:
        # typer ends so at a broken pipe, with the status of a failed verdict
        if isinstance(error.__context__, BrokenPipeError):
            _reader_left()
        raise
    if status == _INTERRUPTED:  # typer turns Ctrl-C into a return value
        _fail("interrupted", _INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _message(error: BaseException) -> str:
    text = str(error.format_message())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if isinstance(error, _UsageError) and context is not None:
        text += f"\n\nhint: `{context.command_path} --help` lists the options"
    return text


def _reader_left() -> NoReturn:
    """End quietly when nobody reads stdout any more, as behind `| head`; never as a success."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes there
    sys.exit(141)  # 128 + SIGPIPE, as other programs end


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
