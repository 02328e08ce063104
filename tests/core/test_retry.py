"""The errors that are retried, the number of attempts, and the waits."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from async_bento import RetryPolicy, errors
from async_bento._core import retry
from async_bento._core.retry import HostThrottle, Retries, backoff, is_transient, seconds_to_wait, wait_before_retry
from async_bento.errors import APIStatusError, PartError

if TYPE_CHECKING:
    from collections.abc import Iterator


async def with_retries(policy, operation, *, progress=lambda: 0, retrying=lambda _: None):
    """The loop of every caller of `Retries`."""
    retries = Retries(policy, progress=progress, on_retry=retrying)
    while True:
        try:
            return await operation()
        except Exception as error:
            if not await retries.wait_after(error):
                raise


AT_ONCE = RetryPolicy(attempts=3, wait_initial=0, wait_max=0)

AGAIN = [
    errors.APIConnectionError("reset"),
    errors.APITimeoutError("silent"),
    errors.StalledError("no byte"),
    errors.IntegrityError("another MD5"),
    errors.PartError("no answer"),
    errors.PartError("expired", status=403),
    *(errors.PartError("storage", status=status) for status in (408, 425, 429, 500, 502, 503, 504)),
    *(errors.APIStatusError("registry", status=status) for status in (408, 425, 429, 500, 502, 503, 504, 520)),
    errors.RateLimitError("too fast", status=429),
    errors.ServerError("down", status=500),
    errors.ServerError("the database is away", status=403),
]
NEVER = [
    *(errors.APIStatusError("registry", status=status) for status in (301, 302, 400, 401, 403, 404, 409, 413, 422)),
    *(errors.PartError("storage", status=status) for status in (206, 301, 400, 401, 404, 405, 411, 412, 413, 416)),
    errors.PartError("full disk", status=507),
    errors.ServerError("full disk", status=507),
    errors.AuthenticationError("no", status=401),
    errors.AuthenticationError("no", status=403),
    errors.APIResponseError("no JSON"),
    errors.APIError("what it is nobody knows"),
    errors.TransferError("what it is nobody knows"),
    errors.SourceChangedError("changed", path="a"),
    errors.ArchiveError("too long"),
    errors.UnsafeArchiveError("outside"),
    errors.StoreError("no space"),
    errors.NotFoundError("no such bento"),
    errors.ConfigError("no token"),
    errors.InvalidTagError("!"),
    OSError(28, "No space left on device"),
    ConnectionResetError("not translated, so a bug of ours"),
    TimeoutError(),
    asyncio.TimeoutError(),
    KeyError("a bug"),
]


def name(error: Exception) -> str:
    return f"{type(error).__name__}-{getattr(error, 'status', '')}"


@pytest.mark.parametrize("error", AGAIN, ids=name)
def test_transient_error_is_retried(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", NEVER, ids=name)
def test_permanent_error_not_retried(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", float("inf")),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None),
    ],
)
def test_retry_after_seconds_parsed(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header) == seconds


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave UTC, which would hide a time in the zone of the process."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.posix("a change of the zone")
@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_retry_after_date_is_parsed(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_445_412_480.0 - 90)  # 90 seconds earlier
    assert seconds_to_wait(f"Wed, 21 Oct 2015 07:28:00 {zone}") == 90.0


class Operation:
    """Raises the given errors, one per attempt, then succeeds."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults = list(faults)
        self.tries = 0

    async def __call__(self) -> str:
        self.tries += 1
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        return "done"


async def test_success_is_called_once() -> None:
    operation = Operation()
    assert await with_retries(AT_ONCE, operation) == "done"
    assert operation.tries == 1


async def test_retry_until_success_returns() -> None:
    operation = Operation(errors.StalledError("1"), errors.APIConnectionError("2"))
    assert await with_retries(AT_ONCE, operation) == "done"
    assert operation.tries == 3


async def test_exhausted_raises_last_error() -> None:
    operation = Operation(*(errors.StalledError(str(number)) for number in range(1, 9)))
    with pytest.raises(errors.StalledError, match=r"^3$"):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 3


async def test_permanent_error_ends_retry() -> None:
    operation = Operation(errors.StalledError("1"), errors.StoreError("no space"))
    with pytest.raises(errors.StoreError, match="no space"):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 2


async def test_retry_waits_decided_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento._core.retry.wait_before_retry", lambda *_, **__: 0.02)
    began = asyncio.get_running_loop().time()

    await with_retries(AT_ONCE, Operation(errors.StalledError("1")))

    assert asyncio.get_running_loop().time() - began >= 0.019


async def test_retry_wait_is_cancellable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento._core.retry.wait_before_retry", lambda *_, **__: 3600.0)
    operation = Operation(errors.StalledError("1"))
    retried = asyncio.Event()
    task = asyncio.create_task(with_retries(AT_ONCE, operation, retrying=lambda _: retried.set()))
    await retried.wait()
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert operation.tries == 1


async def test_retry_errors_do_not_chain() -> None:
    operation = Operation(errors.StalledError("1"), errors.StoreError("no space"))
    with pytest.raises(errors.StoreError) as caught:
        await with_retries(AT_ONCE, operation)
    assert caught.value.__context__ is None


async def test_retry_logs_wait_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="async_bento")
    await with_retries(AT_ONCE, Operation(errors.StalledError("no byte for 60 s. Try again.")))
    assert caplog.messages == ["retrying (2 of 3) in 0.0 s: no byte for 60 s"]


def test_retry_prints_nothing() -> None:
    script = """
import asyncio
from async_bento import RetryPolicy, StalledError
from async_bento._core.retry import Retries

faults = [StalledError("1"), StalledError("2")]

async def main():
    retries = Retries(RetryPolicy(wait_initial=0))
    while faults:
        await retries.wait_after(faults.pop())
    print("done")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


async def test_cancellation_propagates() -> None:
    operation = Operation(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 1


async def test_one_attempt_means_no_retry() -> None:
    operation = Operation(errors.StalledError("1"))
    with pytest.raises(errors.StalledError):
        await with_retries(RetryPolicy(attempts=1), operation)
    assert operation.tries == 1


async def test_wait_doubles_with_jitter(waits: list[float]) -> None:
    policy = RetryPolicy(attempts=6, wait_initial=0.001, wait_max=0.004)
    for _ in range(20):
        await with_retries(policy, Operation(*(errors.StalledError("x") for _ in range(5))))

    by_number = [waits[number::5] for number in range(5)]
    for longest, those in zip([0.001, 0.002, 0.004, 0.004, 0.004], by_number, strict=True):
        assert all(longest / 2 <= wait <= longest for wait in those)
        assert len(set(those)) > 1
        assert max(those) > longest * 3 / 4  # false once in a million
        assert min(those) < longest * 3 / 4


def test_default_policy_outlasts_20_s() -> None:
    policy = RetryPolicy()
    totals = [sum(backoff(policy, failures) for failures in range(1, policy.attempts)) for _ in range(200)]
    assert min(totals) > 20
    assert max(totals) < 60


def test_wait_never_exceeds_max() -> None:
    assert 0 <= backoff(RetryPolicy(), 100_000) <= RetryPolicy().wait_max


async def test_progress_resets_retry_count() -> None:
    moved = iter([0, 0, 1, 1, 1, 1])  # checked before the first attempt and after each failed one
    operation = Operation(*(errors.StalledError(str(number)) for number in range(1, 9)))
    with pytest.raises(errors.StalledError, match=r"^4$"):
        await with_retries(AT_ONCE, operation, progress=lambda: next(moved))
    assert operation.tries == 4


async def test_expired_url_retry_is_immediate(waits: list[float]) -> None:
    operation = Operation(*(errors.PartError(str(number), status=403) for number in range(1, 9)))
    with pytest.raises(errors.PartError, match=r"^3$"):
        await with_retries(RetryPolicy(attempts=8, wait_initial=9), operation)
    assert waits == [0.0, 0.0]


async def test_progress_resets_expired_count(waits: list[float]) -> None:
    moved = iter([0, 0, 0, 1, 1, 1])  # checked before the first attempt and after each failed one
    operation = Operation(*(errors.PartError(str(number), status=403) for number in range(1, 9)))
    with pytest.raises(errors.PartError, match=r"^5$"):
        await with_retries(RetryPolicy(attempts=8), operation, progress=lambda: next(moved))
    assert waits == [0.0] * 4


def test_untrusted_cert_not_retried() -> None:
    for error in (errors.APIConnectionError("registry"), errors.PartError("storage")):
        error.__cause__ = OSError("tls")
        assert is_transient(error)
        error.__cause__.__cause__ = ssl.SSLCertVerificationError(1, "self-signed")
        assert not is_transient(error)


def test_proxy_407_is_not_retried() -> None:
    refused = errors.APIConnectionError("proxy")
    refused.__cause__ = errors.APIStatusError("as aiohttp's ClientHttpProxyError, it has a status", status=407)
    assert not is_transient(refused)


@pytest.mark.parametrize("kind", [APIStatusError, PartError])
async def test_longer_retry_after_is_obeyed(kind: type[APIStatusError | PartError], waits: list[float]) -> None:
    policy = RetryPolicy(attempts=2, wait_initial=0.001, wait_max=0.001)
    await with_retries(policy, Operation(kind("busy", status=503, retry_after=0.002)))
    assert waits == [0.002]


@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_short_retry_after_backs_off(asked: float) -> None:
    policy, busy = RetryPolicy(), errors.ServerError("busy", status=503, retry_after=asked)
    waits = [wait_before_retry(policy, busy, failures=failures, expired=0) for failures in range(1, policy.attempts)]
    assert sum(wait or 0 for wait in waits) > 20


CAPPED = RetryPolicy(attempts=3, wait_initial=0, wait_max=0, retry_after_cap=0.002)


async def test_retry_after_at_cap_is_obeyed(waits: list[float]) -> None:
    assert await with_retries(CAPPED, Operation(errors.RateLimitError("busy", status=429, retry_after=0.002))) == "done"
    assert waits == [0.002]


@pytest.mark.parametrize("asked", [0.0021, 3600.0, float("inf")])
async def test_retry_after_beyond_cap_raises(asked: float) -> None:
    operation = Operation(errors.RateLimitError("busy", status=429, retry_after=asked))
    with pytest.raises(errors.RateLimitError):
        await with_retries(CAPPED, operation)
    assert operation.tries == 1


async def test_permanent_retry_after_ignored() -> None:
    operation = Operation(errors.APIStatusError("too large", status=413, retry_after=0.0))
    with pytest.raises(errors.APIStatusError):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 1


SLOW = RetryPolicy(wait_initial=60, wait_max=60, retry_after_cap=120)


async def paused(throttle: HostThrottle, host: str) -> bool:
    """Return whether a host must not be used for longer than a test waits."""
    try:
        await asyncio.wait_for(throttle.wait(host), 0.01)
    except asyncio.TimeoutError:
        return True
    return False


@pytest.mark.parametrize("status", [429, 503])
async def test_throttle_is_per_host(status: int) -> None:
    throttle = HostThrottle(SLOW)
    throttle.record("busy:1", status, 100.0)

    assert await paused(throttle, "busy:1")
    assert not await paused(throttle, "busy:2")


@pytest.mark.parametrize("status", [200, 206, 400, 403, 404, 500, 502, 504])
async def test_throttle_ignores_other_status(status: int) -> None:
    throttle = HostThrottle(SLOW)
    throttle.record("host:1", status, 100.0)

    assert not await paused(throttle, "host:1")


async def test_throttle_outlasts_late_success() -> None:
    throttle = HostThrottle(SLOW)
    throttle.record("host:1", 503, 100.0)
    throttle.record("host:1", 200, None)
    throttle.record("host:1", 503, 0.0)

    assert await paused(throttle, "host:1")


async def test_throttle_pause_ends() -> None:
    throttle = HostThrottle(RetryPolicy(wait_initial=0, wait_max=0))
    throttle.record("host:1", 503, 0.02)
    began = asyncio.get_running_loop().time()

    await throttle.wait("host:1")

    assert asyncio.get_running_loop().time() - began >= 0.019


async def test_throttle_wait_has_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses, failures = [1000.0], list[float](), list[int]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(retry, "backoff", lambda _, number: failures.append(number) or 0.25)
    throttle = HostThrottle(RetryPolicy())
    throttle.record("host:1", 503, 7.0)

    assert throttle.is_paused("host:1")
    await throttle.wait("host:1")

    now[0] = 1007.0
    await throttle.wait("host:1")
    assert (pauses, failures) == ([7.25], [1])
    assert not throttle.is_paused("host:1")

    throttle.record("host:1", 503, None)  # the second refusal, after the pause
    assert failures == [1, 2]


async def test_throttle_ignores_pause_over_cap() -> None:
    throttle = HostThrottle(SLOW)
    throttle.record("host:1", 503, 121.0)
    throttle.record("host:2", 503, 120.0)

    assert not await paused(throttle, "host:1")
    assert await paused(throttle, "host:2")


async def test_throttle_backs_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def remember(policy: RetryPolicy, failures: int) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr("async_bento._core.retry.backoff", remember)
    throttle = HostThrottle(RetryPolicy())
    for status in (503, 429, 200, 503):
        throttle.record("host:1", status, None)

    assert asked == [1, 2, 1]


async def test_throttle_counts_pause_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def remember(policy: RetryPolicy, failures: int) -> float:
        asked.append(failures)
        return 100.0

    monkeypatch.setattr("async_bento._core.retry.backoff", remember)
    throttle = HostThrottle(RetryPolicy())
    for _ in range(3):
        throttle.record("host:1", 503, None)

    assert asked == [1, 1, 1]
