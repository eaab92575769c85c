"""Trainable norms that are affines at inference, their schedule, masks and moments."""

from normfold.nn.affine import Affine
from normfold.nn.base import OfflineNorm, offline_norms, recording, valid_tokens
from normfold.nn.batch import BatchNorm, PRepBN, RepBN
from normfold.nn.blend import Blended
from normfold.nn.kinds import KINDS
from normfold.nn.moments import Moments
from normfold.nn.power import GroupScaling, PowerNorm
from normfold.nn.schedule import Progressive
from normfold.nn.unified import UN

__all__ = [
    "KINDS",
    "UN",
    "Affine",
    "BatchNorm",
    "Blended",
    "GroupScaling",
    "Moments",
    "OfflineNorm",
    "PRepBN",
    "PowerNorm",
    "Progressive",
    "RepBN",
    "offline_norms",
    "recording",
    "valid_tokens",
]
