"""Names of the norms that take the place of a LayerNorm."""

from __future__ import annotations

from normfold.nn.affine import Affine
from normfold.nn.base import OfflineNorm
from normfold.nn.batch import BatchNorm, PRepBN, RepBN
from normfold.nn.power import PowerNorm
from normfold.nn.unified import UN

KINDS: dict[str, type[OfflineNorm]] = {
    "affine": Affine,
    "bn": BatchNorm,
    "powernorm": PowerNorm,
    "prepbn": PRepBN,
    "repbn": RepBN,
    "un": UN,
}
