"""What a case pushes and pulls, and the figures of all cases."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Item:
    """Something that is pushed and pulled."""

    kind: str
    name: str
    version: str

    def path(self, home: Path) -> Path:
        """Where it lies in a home."""
        return home / f"{self.kind}s" / self.name / self.version

    @property
    def left_out(self) -> str | None:
        """What of it stays at home."""
        return "models" if self.kind == "bento" else None

    def __str__(self) -> str:
        return f"the {self.kind} {self.name}:{self.version}"


@dataclass
class Counts:
    """What has happened in all cases.

    Attributes:
        calls: Pushes and pulls, by direction and their word.
        errors: By direction and type.
        faults: By kind.
        others: What else is worth counting.
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
