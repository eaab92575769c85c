"""Requirements that a run must meet beside its verdict: ``center-stream>=25``, for a step of CI."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from normfold.errors import UsageError
from normfold.report.objects import PassReport

_COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(?P<name>[a-z][a-z0-9-]*)\s*(?P<sign>>=|<=|==|>|<)\s*(?P<number>\d+)\s*")


@dataclass(frozen=True)
class Requirement:
    """How many sites a pass must have rewritten (or must not): ``NAME``, a comparison, a number."""

    name: str
    sign: str
    number: int

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> Requirement:
        """Read ``PASS>=N`` (or ``<=``, ``==``, ``>``, ``<``), for one of the passes ``names``.

        Raises:
            UsageError: the text has another form, or the pass is not in the pipeline.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise UsageError(
                "a requirement cannot be read",
                found=f"`{text}`",
                hint="write PASS>=N, as in `center-stream>=1`",
            )
        if found["name"] not in names:
            raise UsageError(
                f"`{found['name']}` is required and is not in the pipeline",
                found=", ".join(names),
            )
        return cls(found["name"], found["sign"], int(found["number"]))

    def check(self, passes: Sequence[PassReport]) -> str:
        """Empty if it is met, else what was found."""
        count = sum(len(item.applied) for item in passes if item.name == self.name)
        return "" if _COMPARISONS[self.sign](count, self.number) else f"{self}, found {count}"

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.number}"
