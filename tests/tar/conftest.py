"""A directory to extract into, with a canary next to it that must not change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from async_bento.errors import UnsafeArchiveError
from tests.tar.property import Surroundings
from tests.tar.tars import END

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    AssertRefused = Callable[..., None]

STEPS = (None, 509, 1)


@pytest.fixture
def surroundings(tmp_path: Path) -> Surroundings:
    base = tmp_path / "surroundings"
    base.mkdir()
    return Surroundings(base)


@pytest.fixture
def assert_refused(surroundings: Surroundings) -> AssertRefused:
    """Feed a tar in pieces of several sizes; each extraction must fail, name the member, and change nothing else."""

    def check(data: bytes, why: str, member: str | None, *, end: bytes = END, **limits) -> None:
        for step in STEPS:
            error = surroundings.feed(data + end, step, **limits)
            assert isinstance(error, UnsafeArchiveError), f"in pieces of {step}: {error!r}"
            assert re.search(why, str(error)), str(error)
            assert error.member in {member, f"{member}/"}  # tars have directories with a slash

    return check
