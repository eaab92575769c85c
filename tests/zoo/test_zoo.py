"""The zoo as tests, one for each member: ``pytest -m family tests/zoo``."""

from __future__ import annotations

import pytest

from tests.zoo.ln_models import ln_members
from tests.zoo.ln_trial import ln_trial
from tests.zoo.models import Member, members
from tests.zoo.trial import trial
from tests.zoo.trt_trial import engine_members, engine_trial


@pytest.mark.family
@pytest.mark.parametrize("member", members(), ids=lambda member: member.id)
def test_captured_folded_and_verified(member: Member) -> None:
    row = trial(member)
    assert row.ok, row.error
    assert row.gone + sum(row.left.values()) == row.norms


@pytest.mark.family
@pytest.mark.parametrize("member", ln_members(), ids=lambda member: member.id)
def test_captured_centred_and_verified(member: Member) -> None:
    row = ln_trial(member)
    assert row.ok, row.error
    assert row.converted + sum(row.declined.values()) == row.norms


@pytest.mark.family
@pytest.mark.parametrize("member", engine_members(), ids=lambda member: member.id)
def test_built(member: Member) -> None:
    row = engine_trial(member)
    assert row.ok, row.error
