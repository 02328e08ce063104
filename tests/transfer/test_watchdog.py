"""The watchdog of a request counts its checks while no byte moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from async_bento.transfer.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("watchdogs")


class Request:
    """A request with a watchdog, whose stall timeout of 10 s has ten checks."""

    def __init__(self) -> None:
        self.patience: float | None = 3
        self.moved = 0
        self.is_cancelled = False
        scope: Any = SimpleNamespace(cancel=self._cancel)
        self.watchdog = Watchdog(scope, 10, lambda: self.patience, lambda: self.moved)

    def _cancel(self) -> None:
        self.is_cancelled = True

    def checks(self) -> int:
        """Check until the request is cancelled, at most ten times; return the number of checks."""
        for count in range(1, 11):
            self.watchdog._check()
            if self.is_cancelled:
                return count
        return 0


def test_watchdog_cancels_after_patience() -> None:
    request = Request()
    assert request.checks() == 3
    assert request.watchdog.exceeded == 3
    assert request.watchdog.reached == 0


@pytest.mark.parametrize("is_moving", [True, False])
def test_watchdog_restarts_count(is_moving: bool) -> None:
    """After a byte, and after the peer was not waited for."""
    request = Request()
    request.watchdog._check()
    request.watchdog._check()
    if is_moving:
        request.moved += 1
    else:
        request.patience = None
    request.watchdog._check()
    request.patience = 3

    assert request.checks() == 3
    assert request.watchdog.reached == request.moved


def test_watchdog_rests_between_reads() -> None:
    request = Request()
    request.watchdog._check()
    with request.watchdog.waiting():
        request.watchdog._check()
        request.watchdog._check()
    assert request.checks() == 0
    request.watchdog.rest()
    assert request.checks() == 0
    with request.watchdog.waiting():
        assert request.checks() == 3
