"""What a run says of the engine that it built; the sidecar beside the engine says the rest."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineReport:
    """A TensorRT engine.

    Attributes:
        name: of the file.
        builder, version: ``tensorrt`` or ``tensorrt-rtx``, and its version.
        targets: compute capabilities that it is for.
        profile: least, usual and largest shape of each input with a dynamic axis.
        layers: how many layers give which type: those of the engine if it was opened, else of the typed network.
        size: in bytes.
        seconds: that the build took.
        opened: was it deserialised, and compared with what was asked for?
        ran: did it run the verdict's inputs?
    """

    name: str
    builder: str
    version: str
    targets: tuple[str, ...]
    profile: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    size: int = 0
    seconds: float = 0.0
    opened: bool = False
    ran: bool = False
