"""Requirements that a run must meet beside its verdict: ``center-stream>=25``, for a step of CI."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from normfold.errors import UsageError
from normfold.report.objects import Report

About = Literal["pass", "kind", "site", "op", "measure"]

_COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(
    r"\s*(?P<name>[\w*][\w.*#-]*)\s*(?P<sign>>=|<=|==|>|<)\s*(?P<number>\d+(\.\d+)?)\s*"
)
_KINDS = (
    "batch-norm",
    "layer-norm",
    "group-norm",
    "instance-norm",
    "rms-norm",
    "weight-standardisation",
)
_MEASURES = ("size", "opset", "integers", "time")
_LEFT = ("left", "kept")


def _known_ops() -> set[str]:
    """Names of ONNX's own ops; runtimes have others."""
    from onnx import defs

    return {schema.name for schema in defs.get_all_schemas()}


@dataclass(frozen=True)
class Requirement:
    """A name, a comparison and a number.

    Attributes:
        about: what the name is: a ``pass`` (sites that it rewrote), a ``kind`` of norms or a ``site``, ``*`` for
            any part of its path (those that are left), an ``op`` of the ONNX file (how many), or a ``measure``:
            ``size`` of the first file in MB, its ``opset``, the share of its ops that run in ``integers``, its
            ``time`` relative to the original's (by the end of the 95 % interval that is nearest to being met).
    """

    name: str
    sign: str
    number: float
    about: About = "pass"

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> Requirement:
        """Read ``NAME>=N`` (or ``<=``, ``==``, ``>``, ``<``); ``names`` are the passes that run.

        Raises:
            UsageError: the text has another form, or a name is not known.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise UsageError(
                "a requirement cannot be read",
                found=f"`{text}`",
                hint="write NAME>=N, as in `center-stream>=1`, `batch-norm==0`, `LayerNormalization==0`, "
                "`encoder.*==0`, `size<=5.2`",
            )
        return cls(
            found["name"], found["sign"], float(found["number"]), _about(found["name"], names)
        )

    @property
    def of_file(self) -> bool:
        """True where it is known only when a file is there."""
        return self.about in ("op", "measure")

    @property
    def times(self) -> bool:
        """True where the file must be timed for it."""
        return self.name == "time" and self.about == "measure"

    def check(self, report: Report) -> str:
        """Empty if it is met, else what was found."""
        found = self._found(report)
        if isinstance(found, str):
            return f"{self}, {found}"
        if any(_COMPARISONS[self.sign](value, self.number) for value in found):
            return ""
        return (
            f"{self}, found {' to '.join(f'{value:.6g}' for value in found)}{self._where(report)}"
        )

    def _found(self, report: Report) -> tuple[float, ...] | str:
        """The number, or both ends of where it lies; or why there is none."""
        if self.about == "pass":
            return (sum(len(item.applied) for item in report.passes if item.name == self.name),)
        if self.about in ("kind", "site"):
            if self.about == "site" and not any(self._matches(item.site) for item in report.sites):
                close = difflib.get_close_matches(self.name, [x.site for x in report.sites], 1)
                return "no such site" + (f" (did you mean `{close[0]}`?)" if close else "")
            return (len(self._left(report)),)
        if self.about == "op":
            count = report.census.get(self.name, 0)
            close = difflib.get_close_matches(self.name, report.census, 1, 0.8)
            if not count and close:  # of another case, or a letter off
                return f"no such op in the file (did you mean `{close[0]}`?)"
            known = _known_ops()
            close = difflib.get_close_matches(self.name, known, 1, 0.85)
            if not count and close and self.name not in known:
                return f"there is no such op (did you mean `{close[0]}`?)"
            return (count,)
        return self._measured(report)

    def _measured(self, report: Report) -> tuple[float, ...] | str:
        made = [item for item in report.artefacts if item.format == "onnx"] or report.artefacts
        if self.name == "size":
            return (made[0].size / 1e6,) if made else "no file was written"
        if self.name == "opset":
            return (report.opset,) if report.opset else "no ONNX file was written"
        if self.name == "integers":
            share = report.integer_share
            return "nothing was counted in integers" if share is None else (share,)
        return report.speed or "nothing was timed on this machine"

    def _matches(self, site: str) -> bool:
        return fnmatchcase(site, self.name)

    def _left(self, report: Report) -> list[str]:
        mine = (
            item.kind == self.name if self.about == "kind" else self._matches(item.site)
            for item in report.sites
        )
        pairs = zip(mine, report.sites, strict=True)
        return [item.site for counts, item in pairs if counts and item.state in _LEFT]

    def _where(self, report: Report) -> str:
        left = self._left(report) if self.about in ("kind", "site") else []
        return f": {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}" if left else ""

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.number:.10g}"


def _about(name: str, passes: Sequence[str]) -> About:
    if name in passes:
        return "pass"
    if name in _KINDS:
        return "kind"
    if name in _MEASURES:
        return "measure"
    if "." in name or "*" in name or "#" in name or name[0].isdigit():
        return "site"
    if name[0].isupper():
        return "op"
    known = [*passes, *_KINDS, *_MEASURES]
    close = difflib.get_close_matches(name, known, 1)
    raise UsageError(
        f"`{name}` is required, and is neither a pass that runs nor anything else that is counted",
        found=f"passes: {', '.join(passes)}",
        hint=(f"did you mean `{close[0]}`? " if close else "")
        + f"kinds: {', '.join(_KINDS)}; measures: {', '.join(_MEASURES)}; a site has a dot, a `*` or a digit "
        "in front, an op of the file a capital letter",
    )
