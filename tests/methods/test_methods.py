"""Every method of normalisation: what folds of it, what stays and why, exactly."""

from __future__ import annotations

import pytest

from tests.methods.page import row, written
from tests.methods.table import EXPECTED, found, methods

METHODS = {method.name: method for method in methods()}


@pytest.mark.parametrize("name", METHODS)
def test_what_becomes_of_it(name: str) -> None:
    result = found(METHODS[name])
    assert (result.gone, result.left, " ".join(result.codes)) == EXPECTED[name]
    assert result.certificate == "certified"
    assert result.error <= 1e-10
    cells = row(name, result).strip("| ").split(" | ")
    assert written()[name] == cells[1:-1]


def test_the_page_has_them_all() -> None:
    assert list(written()) == list(METHODS) == list(EXPECTED)
