"""Mounts, other users, and filesystems that refuse a call, simulated where the package calls the system."""

from __future__ import annotations

import os
import pathlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.platforms import IS_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALICE, BOB, TEAM = 12001, 12002, 12100

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root acts as several users")


def mount(monkeypatch: pytest.MonkeyPatch, directory: Path, errno: int) -> None:
    """Let no rename cross the border of a directory."""

    def guarded(rename: Callable[..., Any]) -> Callable[..., Any]:
        def checked(source: Path, target: Path, **options: Any) -> Any:
            if len({Path(path).is_relative_to(directory) and Path(path) != directory for path in (source, target)}) > 1:
                raise OSError(errno, os.strerror(errno), str(source), None, str(target))
            return rename(source, target, **options)

        return checked

    for owner in (os, Path):
        for name in ("rename", "replace"):
            monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, *functions: str) -> None:
    """Let functions of `os` fail with an errno."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in functions:
        monkeypatch.setattr(os, name, fail)
        accessor = getattr(pathlib, "_NormalAccessor", None)  # by which paths of Python 3.10 call the system
        if hasattr(accessor, name):
            monkeypatch.setattr(accessor, name, staticmethod(fail))


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let flock(2) fail with an errno."""
    import fcntl

    def refuse(_: int, operation: int) -> None:
        if operation != fcntl.LOCK_UN:  # the registry releases locks of its own when it ends
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@contextmanager
def acting_as(user: int, group: int, umask: int) -> Iterator[None]:
    """Act as another user whose umask differs."""
    groups, before = os.getgroups(), os.umask(umask)
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(before)


def outcome(function: Callable[[], Any]) -> object:
    """Return the result of a call, or its error as text, so that a test compares either."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - compared by the test
        return f"{type(error).__name__}: {error}"
