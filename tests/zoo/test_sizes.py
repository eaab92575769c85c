"""The part of real sizes as tests: ``pytest -m family tests/zoo/test_sizes.py``."""

from __future__ import annotations

import pytest

from tests.zoo.models import Member
from tests.zoo.size_trial import size_members, size_trial


@pytest.mark.family
@pytest.mark.parametrize("member", size_members(), ids=lambda member: member.id)
def test_no_false_alarm(member: Member) -> None:
    row = size_trial(member)
    assert row.ok, (row.outcomes, row.error)
