"""Where in a file the first wrong number stands."""

from __future__ import annotations

import math

import pytest
import torch

from normfold.data.samples import load_data
from normfold.errors import LoadError


def test_the_position_is_that_in_the_file() -> None:
    rows = torch.zeros(300, 2)
    rows[299, 1] = math.nan
    rows[::2, 0] = math.inf
    with pytest.raises(LoadError) as caught:
        load_data(rows, ["x"], limit=64)
    first = int(str(caught.value.where).partition("[")[2].partition(",")[0])
    assert bool(rows[first].isinf().any() or rows[first].isnan().any())


@pytest.mark.parametrize("wrong", [-1, 7])
def test_ids_that_no_table_has(wrong: int) -> None:
    ids = torch.arange(6).repeat(40, 1)
    ids[39, 2] = wrong
    with pytest.raises(LoadError, match="ids that the network does not know") as caught:
        load_data(ids, ["ids"], dtypes=[torch.int64], tables=[7])
    assert "`ids`[39, 2]" in str(caught.value)
    assert "from 0 to 6" in str(caught.value)
    load_data(ids, ["ids"], dtypes=[torch.int64], tables=[0])
