"""Errors that a user can act on: what happened, where, what was found, and a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class NormfoldError(Exception):
    """Base of every error that normfold raises on purpose.

    Args:
        what: one lower-case sentence without a full stop, literals in backticks.
        where: the file, module path or source line concerned.
        found: what was there instead of what was expected.
        hint: what the user can do about it.

    ``exit_code`` is the process status that the command line ends with.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        what = printable(what)
        where, found, hint = (text and printable(text) for text in (where, found, hint))
        self.what, self.where, self.found, self.hint = what, where, found, hint
        lines = [what]
        if where:
            lines.append(f"  at {where}")
        if found:
            lines.append(f"  found: {found}")
        if hint:
            lines += ["", f"hint: {hint}"]
        super().__init__("\n".join(lines))


def printable(text: str) -> str:
    """The text without control characters: what a file brings may not steer a terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text
    )


class UsageError(NormfoldError):
    """A wrong option, unknown name or malformed pipeline text; ``option`` is the keyword that it is about."""

    exit_code = 2
    option: str | None = None


class EnvironmentMissing(NormfoldError):
    """Something that is not installed, or not on this machine, is needed."""

    exit_code = 3


class LoadError(NormfoldError):
    """The model file could not be loaded, or was refused as unsafe."""

    exit_code = 4


class CaptureError(NormfoldError):
    """The network could not be captured as a graph."""

    exit_code = 4


class PassError(NormfoldError):
    """A pass broke its contract or raised: a bug in the pass, not in the model."""

    exit_code = 70


class ExportError(NormfoldError):
    """The rewritten graph could not be written in the asked format."""


class InternalError(NormfoldError):
    """A bug in normfold: what nobody foresaw."""

    exit_code = 70


@contextmanager
def boundary(what: str, where: str, hint: str | None = None) -> Iterator[None]:
    """Whatever foreign code raises on a file that it was not made for is a `LoadError`; ours pass."""
    try:
        yield
    except NormfoldError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(what, where=where, found=last_line(error), hint=hint) from error


def last_line(error: BaseException) -> str:
    """The type and the first informative line of an exception, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{name}: {said[:300]}" if said else name
