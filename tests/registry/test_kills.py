"""A registry that is killed under load; for a longer run, use `python -m tests.registry.kills`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.registry.kills import play

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_kill_loses_nothing(tmp_path: Path) -> None:
    storm = await play(tmp_path, kills=2, seed=1)
    assert storm.complaints == []
    assert storm.n_pushes + storm.n_pulls >= 2
