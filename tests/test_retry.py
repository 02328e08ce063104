"""What is tried again, how often, and after which wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import stamina.instrumentation

from async_bento import RetryPolicy, errors
from async_bento.errors import APIStatusError, PartError
from async_bento.retry import is_transient, seconds_to_wait, with_retries

if TYPE_CHECKING:
    from collections.abc import Iterator

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
]
NEVER = [
    *(errors.APIStatusError("registry", status=status) for status in (301, 302, 400, 401, 403, 404, 409, 413, 422)),
    *(errors.PartError("storage", status=status) for status in (206, 301, 400, 401, 404, 405, 411, 412, 413, 416)),
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
def test_what_may_pass_is_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", NEVER, ids=name)
def test_what_will_not_pass_is_not(error: Exception) -> None:
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
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("soon", None),
    ],
)
def test_a_retry_after_is_read_in_seconds(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header) == seconds


class Operation:
    """Fails as it is told to, one try after another, then succeeds."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults = list(faults)
        self.tries = 0

    async def __call__(self) -> str:
        self.tries += 1
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        return "done"


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """How long each wait was to be."""
    waits: list[float] = []
    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    yield waits
    stamina.instrumentation.set_on_retry_hooks(before)


async def test_what_succeeds_is_done_once() -> None:
    operation = Operation()
    assert await with_retries(AT_ONCE, operation) == "done"
    assert operation.tries == 1


async def test_a_transient_fault_is_tried_again() -> None:
    operation = Operation(errors.StalledError("1"), errors.APIConnectionError("2"))
    assert await with_retries(AT_ONCE, operation) == "done"
    assert operation.tries == 3


async def test_the_last_try_says_what_went_wrong_last() -> None:
    operation = Operation(*(errors.StalledError(str(number)) for number in range(1, 9)))
    with pytest.raises(errors.StalledError, match=r"^3$"):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 3


async def test_another_fault_ends_it_at_once() -> None:
    operation = Operation(errors.StalledError("1"), errors.StoreError("no space"))
    with pytest.raises(errors.StoreError, match="no space"):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 2


async def test_a_cancellation_is_never_tried_again() -> None:
    operation = Operation(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 1


async def test_one_attempt_is_no_retry() -> None:
    operation = Operation(errors.StalledError("1"))
    with pytest.raises(errors.StalledError):
        await with_retries(RetryPolicy(attempts=1), operation)
    assert operation.tries == 1


async def test_the_waits_double_up_to_the_longest(waits: list[float]) -> None:
    policy = RetryPolicy(attempts=6, wait_initial=0.001, wait_max=0.004)
    await with_retries(policy, Operation(*(errors.StalledError("x") for _ in range(5))))
    for number, wait in enumerate(waits):
        least = 0.001 * 2**number
        assert min(least, 0.004) <= wait + 1e-9
        assert wait - 1e-9 <= min(least + 0.001, 0.004)
    assert len(waits) == 5


@pytest.mark.parametrize("asked", [0.0, 0.002])
@pytest.mark.parametrize("kind", [APIStatusError, PartError])
async def test_a_retry_after_goes_before_the_policys_waits(
    kind: type[APIStatusError | PartError], asked: float, waits: list[float]
) -> None:
    policy = RetryPolicy(attempts=2, wait_initial=0.001, wait_max=0.001)
    await with_retries(policy, Operation(kind("busy", status=503, retry_after=asked)))
    assert waits == [asked]


CAPPED = RetryPolicy(attempts=3, wait_initial=0, wait_max=0, retry_after_cap=0.002)


async def test_a_retry_after_up_to_the_cap_is_obeyed(waits: list[float]) -> None:
    assert await with_retries(CAPPED, Operation(errors.RateLimitError("busy", status=429, retry_after=0.002))) == "done"
    assert waits == [0.002]


@pytest.mark.parametrize("asked", [0.0021, 3600.0, float("inf")])
async def test_a_retry_after_beyond_the_cap_ends_it(asked: float) -> None:
    operation = Operation(errors.RateLimitError("busy", status=429, retry_after=asked))
    with pytest.raises(errors.RateLimitError):
        await with_retries(CAPPED, operation)
    assert operation.tries == 1


async def test_a_retry_after_does_not_make_a_no_a_maybe() -> None:
    operation = Operation(errors.APIStatusError("too large", status=413, retry_after=0.0))
    with pytest.raises(errors.APIStatusError):
        await with_retries(AT_ONCE, operation)
    assert operation.tries == 1
