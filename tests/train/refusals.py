"""What `load_data` says when it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from normfold.data.samples import load_data
from normfold.errors import NormfoldError, UsageError


def refused(*args: Any, kind: type[NormfoldError] = UsageError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_data(*args, **options)
    return str(caught.value)
