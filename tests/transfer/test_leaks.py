"""Many transfers with faults in one process use no more resources than the first few."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from async_bento import BentoError
from async_bento._core.thread_pool import DaemonThreadPool
from tests.builders import KiB, make_model, random_bytes
from tests.fault_proxy import (
    GET,
    PART,
    answer_page,
    disconnect,
    disconnect_while_reading,
    disconnect_while_sending,
    end_early,
    lose_answer,
    refuse,
)
from tests.transfer.quiet import tasks

if TYPE_CHECKING:
    from tests.fault_proxy import Fault
    from tests.fixtures import MakeClient, StartProxy


pytestmark = [pytest.mark.long, pytest.mark.posix("/proc")]

DESCRIPTORS = Path("/proc/self/fd")

TRANSFERS = 500

WARM = 100
"""Transfers for warm-up: thread pools, caches, arenas of the allocator."""

PER_TRANSFER = 8 * KiB
"""Bytes of memory a transfer may leave behind, on average: the allocator's noise. The one part or range that a transfer
has to hold is over ten times as much."""

FAULTS: dict[str, list[Fault]] = {
    "API": [disconnect, lose_answer, answer_page(502), refuse(429), refuse(500)],
    PART: [disconnect_while_reading(10_000), lose_answer, refuse(403), refuse(503), disconnect],
    GET: [disconnect_while_sending(30_000), end_early(20_000), refuse(403), refuse(503), disconnect],
}


class Hold(NamedTuple):
    """The resources of a process.

    Attributes:
        tasks: Tasks, except those of the servers.
        pools: Pools of threads; each has as many threads as it once needed, up to its bound.
        threads: Threads outside of pools.
        descriptors: Open files and sockets.
        memory: Resident bytes.
    """

    tasks: int
    pools: int
    threads: int
    descriptors: int
    memory: int


def resident() -> int:
    """Return the resident bytes of this process, without those of files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return KiB * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


async def held() -> Hold:
    """Return the resources once all transfers and requests have ended."""
    for _ in range(20):
        await asyncio.sleep(0.01)
    gc.collect()
    pools = [thing for thing in gc.get_objects() if isinstance(thing, DaemonThreadPool) and thing._finalizer.alive]
    # The registry of this process connects to its database as needed, by a thread and some files per connection.
    others = ("async-bento", "asyncio")
    threads = [
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith(others) and "_connection_worker_thread" not in thread.name
    ]
    descriptors = [each for each in DESCRIPTORS.iterdir() if "registry.sqlite3" not in os.path.realpath(each)]
    return Hold(len(tasks()), len(pools), len(threads), len(descriptors), resident())


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="only Linux lists the descriptors of a process")
@pytest.mark.timeout(180)
async def test_faulty_transfers_leak_nothing(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    logging.disable()  # pytest keeps log records
    make_model(home, files={"weights": random_bytes(100_000)})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    options: dict[str, Any] = {"retry": {"attempts": 3}, "timeouts": {"stall": 5}}
    pusher, puller = make_client(proxy, **options), make_client(proxy, elsewhere, **options)
    random = Random(7)
    words: Counter[str] = Counter()

    async def transfer(number: int) -> None:
        proxy._rules.clear()
        proxy.requests.clear()
        pushes = number % 2 == 0
        pattern = random.choice(["API", PART if pushes else GET])
        fault = random.choice(FAULTS[pattern])
        times = random.choice([0, 1, 1, 2, 9])
        proxy.add_fault("/api/" if pattern == "API" else pattern, fault, times=times, skip=random.randint(0, 3))
        api = pusher if pushes else puller
        if own_client := random.random() < 0.1:
            api = make_client(proxy, home if pushes else elsewhere, **options)
        doing = asyncio.ensure_future((api.models.push if pushes else api.models.pull)("mod:m1", force=True))
        if random.random() < 0.1:
            await asyncio.sleep(random.uniform(0, 0.03))
            doing.cancel()
        try:
            await doing
            words["done"] += 1
        except BentoError as error:
            words[type(error).__name__] += 1
        except asyncio.CancelledError:
            words["cancelled"] += 1
        if own_client:
            await api.aclose()

    try:
        for number in range(WARM):
            await transfer(number)
        warm = await held()
        for number in range(WARM, TRANSFERS):
            await transfer(number)
        after = await held()
    finally:
        logging.disable(logging.NOTSET)

    assert after[:3] == warm[:3], (warm, after)
    assert after.descriptors <= warm.descriptors, (warm, after)
    assert after.memory - warm.memory <= PER_TRANSFER * (TRANSFERS - WARM), (warm, after)
    assert words["done"] > TRANSFERS / 3, words
    assert words["cancelled"], words
    assert words.total() - words["done"] - words["cancelled"] > TRANSFERS / 20, words
