"""The typer application, and how it ends: the exit codes of design.md, no traceback on the terminal."""

from __future__ import annotations

import difflib
import errno
import gc
import json
import os
import signal
import sys
import threading
from typing import Any, NoReturn

import typer

from normfold.cli import reads
from normfold.cli.command import origin
from normfold.cli.ending import Ended
from normfold.cli.settings import Option, configuration, settings
from normfold.cli.table import TABLE
from normfold.errors import NormfoldError, UsageError

# typer carries its own copy of click from 0.24 on: take the classes from there, whichever it is
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130
_AGAIN = 0.05  # seconds
_stopped = _INTERRUPTED  # or by another signal
_json_by_file = False  # a configuration asks for JSON
_OTHER = {"NORMFOLD_CONFIG", "NORMFOLD_CONFINE"}

app = typer.Typer(
    name="normfold",
    help="Fold, convert and prove the normalisation layers of trained PyTorch networks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
    },
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
    global _json_by_file
    commands: dict[str, Any] = vars(ctx.command)["commands"]
    named = {
        command.name: {item.key for item in command.options if item.named} for command in TABLE
    }
    paths = {command.name: {item.key: item.path for item in command.options} for command in TABLE}
    known: dict[str, set[str]] = {}
    table: dict[str, dict[str, Option]] = {}
    for name, command in commands.items():
        table[name] = {}
        for param in command.params:
            if param.param_type_name != "option":
                continue
            long = [flag.removeprefix("--") for flag in param.opts if flag.startswith("--")]
            for key in long:
                many = param.multiple or param.nargs > 1
                path = paths[name].get(key, "")
                table[name][key] = Option(param.name, many, key in named[name], path)
            # as the option is spelled, not as its parameter is called
            param.envvar = [f"NORMFOLD_{name}_{key}".upper().replace("-", "_") for key in long]
            known.setdefault(name, set()).update(param.envvar)
    command = ctx.invoked_subcommand or ""
    _require_known_variables(command, known)
    found = settings(table, command, configuration())
    _json_by_file = bool(found.get("as_json"))
    ctx.default_map = {command: found}


def _require_known_variables(command: str, known: dict[str, set[str]]) -> None:
    """A variable of the command that is not one of its options is refused, as an unknown key of a file is."""
    every = {*_OTHER, *(name for names in known.values() for name in names)}
    prefix = f"NORMFOLD_{command}_".upper()
    for name in os.environ:
        if not name.startswith("NORMFOLD_") or name in every:
            continue
        mine = name.startswith(prefix)
        # others may use the prefix too (NORMFOLD_VERSION), but nobody is that near by chance
        names, cutoff = (known.get(command, set()), 0.6) if mine else (every, 0.93)
        close = difflib.get_close_matches(name, names, 1, cutoff)
        if mine or close:
            raise UsageError(
                f"the environment has an unknown variable `{name}`",
                hint=f"did you mean `{close[0]}`?" if close else f"`normfold {command} --help`",
            )


for _command in TABLE:
    _command.add_to(app)


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        _run()
    finally:
        gc.freeze()  # captured networks are cycles: to take them apart at the end is seconds for nothing


def _run() -> NoReturn:
    # before torch is loaded: threads that wait must not spin where cores are shared (CI runners)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # a captured network is some 100,000 objects that stay: the defaults walk through all of them time and again
    gc.set_threshold(200_000, 50, 1_000)
    global _json_by_file
    _json_by_file = False
    _require_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, _terminated)
    sys.unraisablehook = _lost
    try:
        _require_folder()
        status = app(standalone_mode=False, prog_name="normfold")
        sys.stdout.flush()
    except NormfoldError as error:
        _fail(error.what, error.exit_code, error.where, error.found, error.hint)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            sys.exit(2)
        text = str(error.format_message())  # type: ignore[attr-defined]
        _fail(text, 2, where=_origin_of(error), hint=_help_of(error))
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", _stopped)
    except BrokenPipeError:
        _reader_left()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            _crashed(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail("the output cannot be printed", 1, found="no space left where stdout goes")
    except SystemExit as error:
        # typer ends so at a broken pipe, with the status of a failed verdict
        if isinstance(error.__context__, BrokenPipeError):
            _reader_left()
        if isinstance(error, Ended):
            raise
        _fail(
            "code that was loaded ended the process",
            4,
            found=f"SystemExit({error.code!r})",
            hint="the network's code, a loader or a plug-in calls `sys.exit`",
        )
    except Exception as error:
        _crashed(error)
    if status == _INTERRUPTED:  # typer turns Ctrl-C into a return value
        _fail("interrupted", _stopped)
    sys.exit(status if isinstance(status, int) else 0)


def _crashed(error: Exception) -> NoReturn:
    if _stopped != _INTERRUPTED:
        _fail("interrupted", _stopped)  # a stop within an import leaves a module half made
    from normfold.cli.crash import crash

    found = crash(error)
    _fail(found.what, found.exit_code, found.where, found.found, found.hint)


def _require_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            "the current folder is gone", found=str(error), hint="`cd` to a folder that is there"
        ) from error


def _require_streams() -> None:
    """A stream that the caller closed would be the next file that is opened: give it to the null device."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _terminated(number: int, frame: object) -> NoReturn:
    """Clear up like after Ctrl-C."""
    global _stopped
    _stopped = 128 + number
    raise KeyboardInterrupt


def _lost(found: Any) -> None:
    """`sys.unraisablehook`: a stop in a callback, where exceptions are lost, comes again."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        number = signal.SIGINT if _stopped == _INTERRUPTED else signal.Signals(_stopped - 128)
        main = threading.main_thread().ident
        again = threading.Timer(_AGAIN, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(found)


def _origin_of(error: Any) -> str | None:
    param = getattr(error, "param", None)
    return origin(getattr(error, "ctx", None), getattr(param, "name", None))


def _help_of(error: Any) -> str | None:
    context = getattr(error, "ctx", None)
    if not isinstance(error, _UsageError) or context is None:
        return None
    return f"`{context.command_path} --help` lists the options"


def _reader_left() -> NoReturn:
    """End quietly when nobody reads stdout any more, as behind `| head`; never as a success."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes there
    sys.exit(141)  # 128 + SIGPIPE, as other programs end


def _wants_json() -> bool:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    asked = os.environ.get(f"NORMFOLD_{command}_JSON".upper(), "")
    return _json_by_file or "--json" in sys.argv[1:] or asked.lower() in ("1", "true", "yes", "on")


def _fail(
    what: str,
    status: int,
    where: str | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> NoReturn:
    """Print an error, as JSON where JSON was asked for, and exit."""
    if _wants_json():
        error = {"what": what, "where": where, "found": found, "hint": hint}
        data: dict[str, Any] = {"ok": False, "exit_code": status, "error": error}
        if (read := reads.listed()) is not None:
            data |= {"read": read, "variables": reads.variables()}
        try:
            print(json.dumps(data, indent=2), flush=True)
        except BrokenPipeError:
            _reader_left()
    else:
        text = str(NormfoldError(what, where=where, found=found, hint=hint))
        print(f"error: {text}", file=sys.stderr)
    sys.exit(status)
