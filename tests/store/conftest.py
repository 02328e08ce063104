from __future__ import annotations

import pytest

from async_bento.store.store import BentoStore


@pytest.fixture
def store():
    return BentoStore()
