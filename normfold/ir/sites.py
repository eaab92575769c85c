"""Sites: the places that passes and reports talk about, and the nodes that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from normfold.ir import facts
from normfold.ir.facts import Fact


@dataclass(frozen=True)
class Site:
    """One place that passes talk about: a norm, or a constant that acts per channel.

    ``path`` is the module path ("blocks.3.norm1"), made unique with ``#2`` for later calls of one module;
    ``kind`` is ``batch-norm``, ``layer-norm``, ``group-norm``, ``instance-norm``, ``rms-norm``,
    ``weight-standardisation`` or ``constant``; ``line`` is the user's source line.
    """

    path: str
    kind: str
    line: str = ""
    module_type: str = ""


@dataclass(frozen=True)
class NormOf(Fact):
    """The node computes the norms of these sites, without their affines."""

    kind_name: ClassVar[str] = "norm-of"
    of_numbers: ClassVar[bool] = False
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class AffineOf(Fact):
    """The node computes the affines of these sites."""

    kind_name: ClassVar[str] = "affine-of"
    of_numbers: ClassVar[bool] = False
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Trainable(Fact):
    """The node is a norm of ``Graph.trainable`` in eval mode."""

    kind_name: ClassVar[str] = "trainable"
    of_numbers: ClassVar[bool] = False
    path: str


def norm_sites(node: fx.Node) -> tuple[Site, ...]:
    """Sites whose norm the node computes."""
    found = facts.get(node, NormOf)
    return found.sites if found is not None else ()


def affine_sites(node: fx.Node) -> tuple[Site, ...]:
    """Sites whose affine the node computes."""
    found = facts.get(node, AffineOf)
    return found.sites if found is not None else ()


def trainable_path(node: fx.Node) -> str | None:
    """Path of the trainable norm that the node stands for."""
    found = facts.get(node, Trainable)
    return found.path if found is not None else None
