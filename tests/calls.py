"""Record the calls of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple[Any, ...]]:
    """Record the arguments of each further call of a method; the method still runs."""
    calls: list[tuple[Any, ...]] = []
    method = getattr(owner, name)

    def record(self: object, *arguments: Any) -> Any:
        calls.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, record)
    return calls
