"""The zoo as tests, one for each member: ``pytest -m zoo tests/zoo``."""

from __future__ import annotations

import pytest

from tests.zoo.models import Member, members
from tests.zoo.trial import trial


@pytest.mark.zoo
@pytest.mark.parametrize("member", members(), ids=lambda member: member.id)
def test_captured_folded_and_verified(member: Member) -> None:
    row = trial(member)
    assert row.ok, row.error
    assert row.gone + sum(row.left.values()) == row.norms
