"""Calls that are cancelled wherever they wait: they end soon, tell the registry, leave nothing, and can be made again.

A few of all these places are tried; with `EVERY_AWAIT=1`, all of them (`nox -s every-await`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from async_bento import NotFoundError
from async_bento.transfer import resumable_extract, source as source_module, upload as upload_module
from async_bento.transfer.journal import Journal
from tests.builders import KiB, contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.fault_proxy import Hold, disconnect, refuse
from tests.transfer.quiet import nothing_left
from tests.transfer.steps import Steps, counting_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from async_bento import AsyncBentoAPI
    from tests.fault_proxy import FaultProxy
    from tests.fixtures import MakeClient, StartProxy

    Call = Callable[[], Awaitable[object]]
    Way = Callable[[Call, Steps], Awaitable[None]]

pytestmark = pytest.mark.long

ALL = bool(os.environ.get("EVERY_AWAIT"))
SAMPLES = 5
PART = 64 * KiB
FILES = {"weights": random_bytes(3 * PART + 5, 3), "small/a": b"a" * 700, "small/b": b"b"}


# What is cancelled, and how


async def by_task(call: Call, steps: Steps) -> None:
    with steps.counted():
        task = asyncio.ensure_future(call())
    steps.act = task.cancel
    with suppress(asyncio.CancelledError):
        await task
        steps.at = 0  # it had finished


async def by_scope(call: Call, steps: Steps) -> None:
    async def run() -> None:
        with anyio.CancelScope() as scope:
            steps.act = scope.cancel
            await call()
            steps.at = 0

    with steps.counted():
        task = asyncio.ensure_future(run())
    await task


async def by_group(call: Call, steps: Steps) -> None:
    async def one() -> None:
        await call()
        steps.at = 0

    async def run() -> None:
        async with anyio.create_task_group() as group:
            steps.act = group.cancel_scope.cancel
            group.start_soon(one)

    with steps.counted():
        task = asyncio.ensure_future(run())
    await task


async def by_deadline(call: Call, steps: Steps) -> None:
    """What `fail_after` raises is not what the call was told: that is a cancellation."""

    async def run() -> None:
        with anyio.fail_after(60) as scope:
            steps.act = lambda: setattr(scope, "deadline", -1)
            await call()
            steps.at = 0

    with steps.counted():
        task = asyncio.ensure_future(run())
    with suppress(TimeoutError):
        await task
        assert not steps.at


async def by_wait_for(call: Call, steps: Steps) -> None:
    """A timeout of asyncio's own: `wait_for` awaits what it was given as `asyncio.timeout` does, or in a task."""
    expired = asyncio.get_running_loop().create_future()

    def expire() -> None:
        if not expired.done():
            expired.set_result(None)

    steps.act = expire
    with steps.counted():
        task = asyncio.ensure_future(call())
    await asyncio.wait([task, expired], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        steps.at = 0
        task.result()
        return
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(task, 0)


WAYS: dict[str, Way] = {
    "task": by_task,
    "scope": by_scope,
    "group": by_group,
    "fail_after": by_deadline,
    "wait_for": by_wait_for,
}


async def places(call: Callable[[Steps], Awaitable[None]]) -> list[Steps]:
    """The places of a call to try, which is made once to count them."""
    steps = Steps()
    await call(steps)
    count = steps.count
    if ALL:
        return [Steps(at, woken=woken) for at in range(1, count + 1) for woken in (False, True)]
    return [Steps(1 + index * (count - 1) // SAMPLES, woken=bool(index % 2)) for index in range(SAMPLES + 1)]


# What is left


@dataclass
class Books:
    """The parts that journals recorded, by the journal's path."""

    noted: dict[Path, set[int]] = field(default_factory=dict)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    books = Books()
    begin, note = Journal.create, Journal.add

    def begun(self: Journal, recorded: Any) -> None:
        begin(self, recorded)
        books.noted[self.path] = set(recorded.etags)

    def record_part(self: Journal, part_number: int, etag: str) -> None:
        note(self, part_number, etag)
        books.noted[self.path].add(part_number)

    monkeypatch.setattr(Journal, "create", begun)
    monkeypatch.setattr(Journal, "add", record_part)
    return books


@pytest.fixture(autouse=True)
def small_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "choose_part_size", lambda size, wanted, threads: PART)
    monkeypatch.setattr(upload_module, "MIN_PART_SIZE", PART)
    monkeypatch.setattr(resumable_extract, "CHECKPOINT_INTERVAL", PART)


def descriptors() -> Iterator[tuple[int, str]]:
    """The file descriptors of this process, and what they are of."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield int(link.name), str(link.readlink())


def open_files(below: Path) -> list[str]:
    """The files and directories below a path that are open in this process."""
    return [target for _, target in descriptors() if target.startswith(f"{below}/")]


def connections(proxy: FaultProxy) -> int:
    """How many sockets of this process are connected to a proxy."""
    port, count = int(proxy.endpoint.rpartition(":")[2]), 0
    for descriptor, target in descriptors():
        if target.startswith("socket:"):
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                count += connection.getpeername()[1:2] == (port,)
    return count


def busy_threads() -> list[str]:
    """The threads that run code of a client."""
    busy = []
    for thread in threading.enumerate():
        if thread.name == "async-bento-hub":  # what it was asked for is told by its last step
            thread.join(0.5)
    frames = sys._current_frames()
    for thread in threading.enumerate():
        files = []
        frame = frames.get(thread.ident or 0) if thread.name.startswith("async-bento") else None
        while frame is not None:
            if not frame.f_code.co_filename.endswith("/thread_pool.py"):  # an idle thread waits there
                files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if any("/async_bento/" in file for file in files) and not any("/registry/" in file for file in files):
            busy.append(thread.name)
    return busy


@contextmanager
def ends_soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 15


async def cancelled(api: AsyncBentoAPI, call: Call, steps: Steps, way: Way, proxy: FaultProxy, home: Path) -> None:
    """Make a call that is cancelled at a place, and see that it ends and leaves nothing open."""
    assert not open_files(home)
    with counting_loop(), ends_soon():
        async with nothing_left(api):
            await way(call, steps)
        assert not steps.unfinished()
    assert not busy_threads()
    assert not open_files(home)
    await api.aclose()
    for _ in range(3):  # a transport that was closed lets go of its socket in a later turn of the loop
        await asyncio.sleep(0)
    assert not connections(proxy)


async def statuses(api: AsyncBentoAPI, tags: dict[str, str]) -> dict[str, str]:
    """The upload status of each of the records that are there."""
    found = {}
    for tag, kind in tags.items():
        with suppress(NotFoundError):
            found[tag] = (await (api if kind == "bento" else api.models).get(tag)).upload_status
    return found


async def settled(api: AsyncBentoAPI, tags: dict[str, str]) -> dict[str, str]:
    """The same, when the registry has taken note of connections that were cut."""
    until = time.monotonic() + 1
    while True:
        found = await statuses(api, tags)
        if not {*found.values()} & {"pending", "uploading"} or time.monotonic() > until:
            return found
        await asyncio.sleep(0.02)


# Pushes


def one_model(home: Path, number: int) -> dict[str, str]:
    make_model(home, f"mod{number}:m1", FILES)
    return {f"mod{number}:m1": "model"}


def with_models(home: Path, number: int) -> dict[str, str]:
    models = [f"mod{number}{letter}:m1" for letter in "ab"]
    for model in models:
        make_model(home, model, {"weights": random_bytes(PART + 5, 4)})
    make_bento(home, f"svc{number}:v1", {"src/data": random_bytes(PART + 5, 5)}, models=models)
    return dict.fromkeys(models, "model") | {f"svc{number}:v1": "bento"}


PUSHES = {
    "in parts": ("presigned_url", one_model),
    "in one PUT": ("auto", one_model),
    "through the registry": ("proxy", one_model),
    "with models": ("presigned_url", with_models),
}


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize(
    ("pushed", "way"),
    [(pushed, way) for pushed in PUSHES for way in ("task", "scope")]
    + [("in parts", way) for way in ("group", "fail_after", "wait_for")],
)
async def test_push_cancelled_at_any_await_leaves_clean_state(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path, books: Books, pushed: str, way: str
) -> None:
    transmission, make = PUSHES[pushed]
    proxy = await start_proxy(transmission, min_part_size=PART)

    async def push(api: AsyncBentoAPI, tags: dict[str, str]) -> Any:
        last = [*tags][-1]
        return await (api if tags[last] == "bento" else api.models).push(last, threads=2)

    async def once(steps: Steps, number: int = 0) -> None:
        tags = make(home, number)
        books.noted.clear()
        api = make_client(proxy)
        await cancelled(api, lambda: push(api, tags), steps, WAYS[way], proxy, home)
        at = f"{steps.at} of {steps.count}"

        async with make_client(proxy) as other:
            found = await settled(other, tags)

        assert not {*found.values()} & {"pending", "uploading"}, at
        if not steps.at:
            assert {*found.values()} == {"success"}
        for tag, status in found.items():
            journals = {path for path in books.noted if tag.replace(":", "+") in path.name and books.noted[path]}
            assert status != "failed" or all(path.exists() for path in journals), at
        noted = {*next(iter(books.noted.values()), ())}
        proxy.requests.clear()
        async with make_client(proxy) as other:
            done = await push(other, tags)
        is_there = found.get([*tags][-1]) == "success"
        # A registry that had all bytes when their sender went away notes the success itself.
        assert done.skipped == is_there or transmission == "proxy", at
        if pushed == "in parts":
            sent = {int(step.rpartition(" ")[2]) for step in proxy.steps("PUT part")}
            assert done.skipped or not sent & noted, at
        there = tmp_path / f"there{number}"
        for tag, kind in tags.items():
            async with make_client(proxy, there) as other:
                copy = await (other if kind == "bento" else other.models).pull(tag)
            assert contents(copy.path) == contents(home / f"{kind}s" / tag.replace(":", "/")), at
        assert not left_in_scratch(home), at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)


async def test_bare_push_cancelled_at_any_await_leaves_clean_state(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    proxy = await start_proxy()

    async def once(steps: Steps, number: int = 0) -> None:
        tag = f"svc{number}:v1"
        make_bento(home, tag)
        api = make_client(proxy)
        await cancelled(api, lambda: api.push(tag, bare=True), steps, by_task, proxy, home)
        async with make_client(proxy) as other:
            assert not {*(await settled(other, {tag: "bento"})).values()} & {"pending", "uploading"}, steps.at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)


async def test_forced_push_cancelled_before_start_keeps_the_item(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    """Its record says `success`, since its bytes are there."""
    make_model(home)
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    held = Hold(fault=disconnect)
    proxy.add_fault("start_upload", held)
    pushing = asyncio.create_task(make_client(proxy).models.push("mod:m1", force=True))
    await held.arrived.wait()
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    held.released.set()

    assert (await make_client(proxy).models.get("mod:m1")).upload_status == "success"


# Pulls

PULLS = {
    "in ranges": ("presigned_url", False),
    "as a stream": ("proxy", False),
    "with models": ("presigned_url", True),
}


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize(
    ("pulled", "way"),
    [(pulled, way) for pulled in PULLS for way in ("task", "scope")]
    + [("in ranges", way) for way in ("group", "fail_after", "wait_for")],
)
async def test_pull_cancelled_at_any_await_leaves_clean_state(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path, pulled: str, way: str
) -> None:
    transmission, models = PULLS[pulled]
    proxy = await start_proxy(transmission, min_part_size=PART)
    tags = with_models(home, 0) if models else one_model(home, 0)
    last = [*tags][-1]
    async with make_client(proxy) as pusher:
        await (pusher if models else pusher.models).push(last)

    async def pull(api: AsyncBentoAPI) -> Any:
        return await (api.pull(last, with_models=True) if models else api.models.pull(last))

    def came(there: Path) -> dict[str, bool]:
        """Whether each came as it is; those of which nothing is in the store are left out."""
        found = {}
        for tag, kind in tags.items():
            path = f"{kind}s/{tag.replace(':', '/')}"
            if (there / path).exists():
                found[tag] = contents(there / path) == contents(home / path)
        return found

    async def once(steps: Steps, number: int = 0) -> None:
        there, at = tmp_path / f"there{number}", f"{steps.at} of {steps.count}"
        api = make_client(proxy, there)
        await cancelled(api, lambda: pull(api), steps, WAYS[way], proxy, there)

        assert all(came(there).values()), at  # whole, or not at all
        assert not left_in_scratch(there, kept=False), at
        async with make_client(proxy, there) as other:
            await pull(other)
        assert came(there) == dict.fromkeys(tags, True), at
        assert not left_in_scratch(there), at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize("way", ["task", "scope"])
async def test_pull_directory_cancelled_at_any_await_leaves_none(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path, way: str
) -> None:
    proxy = await start_proxy(min_part_size=PART)
    tags = with_models(home, 0)
    last = [*tags][-1]
    async with make_client(proxy) as pusher:
        await pusher.push(last)

    async def once(steps: Steps, number: int = 0) -> None:
        there, at = tmp_path / f"there{number}", f"{steps.at} of {steps.count}"
        directory = there / "new" / "svc"
        api = make_client(proxy, there)
        pull = partial(api.pull, last, path=directory, with_models=True)
        await cancelled(api, pull, steps, WAYS[way], proxy, there)

        found = contents(there) if there.exists() else {}
        if found:
            assert {name for name in found if name.count("/") < 2} == {"new", "new/svc"}, at
            models = {f"new/svc/models/{tag.replace(':', '/')}" for tag, kind in tags.items() if kind == "model"}
            assert models | {"new/svc/bento.yaml"} <= found.keys(), at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize(("transmission", "way"), [("presigned_url", "task"), ("proxy", "scope")])
async def test_remote_extract_cancelled_at_any_await_leaves_none(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path, transmission: str, way: str
) -> None:
    proxy = await start_proxy(transmission, min_part_size=PART)
    make_model(home, files=FILES)
    async with make_client(proxy) as pusher:
        await pusher.models.push("mod:m1")
    if transmission == "proxy":
        proxy.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    expected = {"weights": FILES["weights"], "small": None, "small/a": FILES["small/a"]}

    async def once(steps: Steps, number: int = 0) -> None:
        there, at = tmp_path / f"there{number}", f"{steps.at} of {steps.count}"
        there.mkdir()
        api = make_client(proxy)
        extract = partial(api.models.files("mod:m1").extract, ["weights", "*/a"], there / "out")
        await cancelled(api, extract, steps, WAYS[way], proxy, there)

        found = contents(there)
        assert not found or found == {"out": None} | {f"out/{name}": data for name, data in expected.items()}, at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)
