"""The same registry behind the same door as for the transfers."""

from __future__ import annotations

from tests.transfer.conftest import client, elsewhere, forever, open_door

__all__ = ["client", "elsewhere", "forever", "open_door"]
