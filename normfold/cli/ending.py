"""How a command ends that worked in a child process."""

from __future__ import annotations


class Ended(SystemExit):
    """The status that the child ended with."""
