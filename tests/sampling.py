"""Which parameters of a long test run in every suite, and which in the zoo alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def every_other(values: Iterable[Any]) -> list[Any]:
    """The first, the third, ...; the zoo has all of them."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.slow] * (at % 2)
        )
        for at, value in enumerate(values)
    ]
