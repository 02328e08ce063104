"""Garbage collection, deferred for a block."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from async_bento._core.garbage import deferred_collection, resume_collection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_gc_deferral_ends_on_error() -> None:
    enabled = True

    def fail() -> None:
        nonlocal enabled
        with deferred_collection():
            enabled = gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not enabled
    assert gc.isenabled()


def test_gc_resume_freezes_objects() -> None:
    with deferred_collection():
        resume_collection()
        assert gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_disabled_gc_stays_disabled() -> None:
    frozen = gc.get_freeze_count()
    gc.disable()
    with deferred_collection():
        resume_collection()
    assert not gc.isenabled()
    assert gc.get_freeze_count() <= frozen


def test_gc_resume_without_deferral() -> None:
    frozen = gc.get_freeze_count()
    gc.disable()
    resume_collection()
    assert not gc.isenabled()
    assert gc.get_freeze_count() <= frozen
