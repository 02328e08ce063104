"""The items of a case, and the counts of all cases."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Item:
    """A bento or a model that a case pushes and pulls."""

    kind: str
    name: str
    version: str

    def path(self, home: Path) -> Path:
        """Return the path of the item in a home."""
        return home / f"{self.kind}s" / self.name / self.version

    @property
    def left_out(self) -> str | None:
        """The directory of the item that a push excludes."""
        return "models" if self.kind == "bento" else None

    def __str__(self) -> str:
        return f"the {self.kind} {self.name}:{self.version}"


@dataclass
class Counts:
    """The counts of all cases.

    Attributes:
        calls: Pushes, pulls and copies, by direction and outcome.
        errors: Errors, by direction and type.
        faults: Faults, by kind.
        others: Other events, by name.
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
