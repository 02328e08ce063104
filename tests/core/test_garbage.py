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


def test_deferred_collection_ends_with_an_error() -> None:
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


def test_resumed_collection_leaves_older_objects_out() -> None:
    with deferred_collection():
        resume_collection()
        assert gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_deferred_collection_keeps_a_disabled_collector_disabled() -> None:
    frozen = gc.get_freeze_count()
    gc.disable()
    with deferred_collection():
        resume_collection()
    assert not gc.isenabled()
    assert gc.get_freeze_count() <= frozen


def test_resumed_collection_without_deferral_changes_nothing() -> None:
    frozen = gc.get_freeze_count()
    gc.disable()
    resume_collection()
    assert not gc.isenabled()
    assert gc.get_freeze_count() <= frozen
