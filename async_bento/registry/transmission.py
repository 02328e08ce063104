"""The transmission strategies: presigned parts, through the registry, or the client's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_bento.rest.schemas import TransmissionStrategy

Transmission = Literal["presigned_url", "proxy", "auto"] | None
"""See `LocalRegistry`; `"auto"` and None are the same."""


class TransmissionPolicy:
    """The transmission strategy of each repository, and whether the registry presigns URLs of whole objects."""

    def __init__(
        self,
        default: Transmission = None,
        by_repository: Mapping[str, Transmission] | None = None,
        *,
        presign: bool = True,
    ) -> None:
        self.presign = presign
        self._default: TransmissionStrategy | None = _strategy(default)
        self._by_repository: dict[str, TransmissionStrategy | None] = {
            name: _strategy(value) for name, value in (by_repository or {}).items()
        }
        if not presign and "presigned_url" in {self._default, *self._by_repository.values()}:
            raise ConfigError('presign=False contradicts transmission="presigned_url". Use "proxy" or "auto".')

    def strategy(self, repository: str) -> TransmissionStrategy | None:
        """Return a repository's strategy; None lets the client choose."""
        return self._by_repository.get(repository, self._default)


def _strategy(transmission: Transmission) -> TransmissionStrategy | None:
    if transmission is None or transmission == "auto":
        return None
    if transmission in ("presigned_url", "proxy"):
        return transmission
    raise ConfigError(f'invalid transmission {transmission!r}. Use "presigned_url", "proxy", "auto" or None.')
