"""An interrupted push and the next one: the parts that are uploaded again."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from async_bento import APIError, PartError, SourceChangedError
from async_bento.api.resources import DISK_THREADS
from async_bento.transfer.journal import Journal
from tests.builders import MiB, contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.fault_proxy import FINISH, PART, FaultProxy, Hold, answer_json, in_sequence, lose_answer, refuse
from tests.fixtures import FEW_RANGES
from tests.transfer.processes import Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


SIX_PARTS = random_bytes(26 * MiB, 5)
COMPLETE = "complete_multipart"
START = "start_multipart"


def parts(proxy: FaultProxy) -> list[str]:
    return sorted(proxy.steps("PUT part"))


@pytest.fixture
async def proxy(start_proxy: StartProxy, home: Path) -> FaultProxy:
    make_model(home, files={"weights": SIX_PARTS})
    return await start_proxy()


@pytest.fixture
async def interrupted(proxy: FaultProxy, make_client: MakeClient) -> FaultProxy:
    """A proxy of a registry with parts 1 and 2 of a push; part 4 was refused."""
    proxy.add_fault("PUT .*partNumber=3", refuse(400, code="InvalidRequest"))
    with pytest.raises(PartError, match="InvalidRequest"):
        await make_client(proxy).models.push("mod:m1", threads=1)
    assert parts(proxy) == ["PUT part 1", "PUT part 2", "PUT part 3"]
    proxy.requests.clear()
    return proxy


async def pulled(make_client: MakeClient, proxy: FaultProxy, elsewhere: Path) -> dict[str, object]:
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")
    return contents(elsewhere / "models/mod/m1")


async def test_upload_resume_after_failure(
    interrupted: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    events: list[ProgressEvent] = []

    result = await make_client(interrupted, progress=events.append).models.push("mod:m1")

    assert parts(interrupted) == ["PUT part 3", "PUT part 4", "PUT part 5", "PUT part 6"]
    assert not interrupted.matching(START)
    assert result.resumed
    assert result.parts == 4
    total = events[-1].bytes_total
    assert total is not None
    assert result.bytes_sent == total - 10 * MiB
    assert events[-1].bytes_done == total
    assert [event.message for event in events if event.message] == ["resuming at 38 %"]
    assert await pulled(make_client, interrupted, elsewhere) == contents(home / "models/mod/m1")


async def test_success_removes_resume_state(interrupted: FaultProxy, make_client: MakeClient, home: Path) -> None:
    assert left_in_scratch(home)

    await make_client(interrupted).models.push("mod:m1")

    assert not left_in_scratch(home)


async def test_skip_removes_resume_state(interrupted: FaultProxy, make_client: MakeClient, home: Path) -> None:
    (journal,) = (home / "tmp").glob("async-bento-kept-push+*")
    notes = journal.read_text()
    await make_client(interrupted).models.push("mod:m1")
    journal.write_text(notes)  # the state after a kill right after the last request

    result = await make_client(interrupted).models.push("mod:m1")

    assert result.skipped
    assert not left_in_scratch(home)


async def test_force_after_resume_uploads_all(interrupted: FaultProxy, make_client: MakeClient) -> None:
    api = make_client(interrupted)
    await api.models.push("mod:m1")
    interrupted.requests.clear()

    result = await api.models.push("mod:m1", force=True)

    assert len(parts(interrupted)) == 6
    assert not result.resumed


async def test_upload_resume_after_cancel(proxy: FaultProxy, make_client: MakeClient) -> None:
    held = Hold()
    proxy.add_fault("PUT .*partNumber=5", held)
    pushing = asyncio.create_task(make_client(proxy).models.push("mod:m1", threads=1))
    await held.arrived.wait()
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    held.released.set()
    proxy.requests.clear()

    result = await make_client(proxy).models.push("mod:m1")

    assert result.resumed
    assert parts(proxy) == ["PUT part 5", "PUT part 6"]


async def test_upload_cancel_on_busy_threads_resumes(proxy: FaultProxy, make_client: MakeClient) -> None:
    """The journal gets a part that has arrived, even if a cancelled scope cancels again while all threads are busy."""
    idle = threading.Event()

    async def cancel() -> None:
        for _ in range(20):
            pushing.cancel()
            await asyncio.sleep(0)
        idle.set()

    def listen(event: ProgressEvent) -> None:
        if event.parts_done == 1 and not cancelling:
            for _ in range(DISK_THREADS):
                api.models._resources.threads.executor.submit(idle.wait, 30)
            cancelling.append(asyncio.ensure_future(cancel()))

    api, cancelling = make_client(proxy, progress=listen), list[asyncio.Future[None]]()
    pushing = asyncio.create_task(api.models.push("mod:m1", threads=1))
    await asyncio.wait([pushing])
    assert pushing.cancelled()
    proxy.requests.clear()

    assert (await make_client(proxy).models.push("mod:m1")).resumed
    assert parts(proxy)[0] == "PUT part 2"


KILLED = """
async def main():
    async with api() as client:
        result = await client.models.push("mod:m1", threads=2)
        report(resumed=result.resumed, sent=result.bytes_sent)

asyncio.run(main())
"""


async def test_upload_resume_after_kill(
    proxy: FaultProxy, home: Path, elsewhere: Path, make_client: MakeClient
) -> None:
    held = Hold(count=2)
    proxy.add_fault(PART, held, skip=3, times=None)
    first = await Client.start(KILLED, proxy, home)
    await held.arrived.wait()
    first.process.kill()
    await first.ended()
    held.released.set()
    arrived = [request for request in proxy.matching("PUT part") if request.status == 200][:3]
    proxy.requests.clear()

    code, (reported,), error = await (await Client.start(KILLED, proxy, home)).ended()

    assert code == 0, error
    assert reported["resumed"]
    assert len(arrived) == 3
    assert not {request.step for request in arrived[:2]} & {
        *proxy.steps("PUT part")
    }  # the line of part 3 may be missing
    assert len(parts(proxy)) <= 4  # the missing parts, and the parts in flight
    assert await pulled(make_client, proxy, elsewhere) == contents(home / "models/mod/m1")


async def test_resume_with_all_parts_completes(proxy: FaultProxy, make_client: MakeClient) -> None:
    proxy.add_fault(COMPLETE, answer_json(403, {"message": "not you"}))
    with pytest.raises(Exception, match="not you"):
        await make_client(proxy).models.push("mod:m1")
    proxy.requests.clear()

    result = await make_client(proxy).models.push("mod:m1")

    assert result.resumed
    assert result.parts == result.bytes_sent == 0
    assert not parts(proxy)


MINIO = "complete multipart upload: The specified multipart upload does not exist. The upload ID may be invalid"


@pytest.mark.parametrize("status", [500, 403, 422])
async def test_failed_completion_restarts(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, status: int
) -> None:
    """The storage has dropped a complete upload, which the registry reports by its own message."""
    proxy.add_fault(COMPLETE, answer_json(403, {"message": "not you"}))
    with pytest.raises(Exception, match="not you"):
        await make_client(proxy).models.push("mod:m1")
    dropped = proxy.matching("presign_multipart")[0].json["upload_id"]
    proxy.requests.clear()

    async def complete(exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        if exchange.logged.json["upload_id"] == dropped:
            return web.json_response({"error": MINIO}, status=status)
        return await exchange.forward()

    proxy.add_fault(COMPLETE, complete, times=None)
    errors: list[str] = []

    try:
        await make_client(proxy).models.push("mod:m1")
    except APIError as error:
        errors.append(str(error))

    assert errors == []
    assert len(parts(proxy)) == 6
    assert await pulled(make_client, proxy, elsewhere) == contents(home / "models/mod/m1")


async def test_rejected_completion_keeps_parts(interrupted: FaultProxy, make_client: MakeClient) -> None:
    interrupted.add_fault(COMPLETE, answer_json(403, {"message": "not you"}))

    with pytest.raises(APIError, match="not you"):
        await make_client(interrupted).models.push("mod:m1")

    assert len(parts(interrupted)) == 4


async def test_repeated_failure_restarts_once(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    proxy.add_fault(COMPLETE, answer_json(500, {"error": "broken"}), times=None)
    for sent in (6, 12, 18):
        with pytest.raises(APIError, match="broken"):
            await make_client(proxy).models.push("mod:m1")
        assert len(parts(proxy)) == sent


def grow(home: Path) -> None:
    with (home / "models/mod/m1/weights").open("ab") as file:
        file.write(b"more")


def touch(home: Path) -> None:
    os.utime(home / "models/mod/m1/weights", ns=(0, 1))


def replace_with_same_size_and_time(home: Path) -> None:
    weights = home / "models/mod/m1/weights"
    status = weights.stat()
    new = weights.with_name("new")
    new.write_bytes(random_bytes(26 * MiB, 6))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(weights)


def write_with_same_size_and_time(home: Path) -> None:
    weights = home / "models/mod/m1/weights"
    status = weights.stat()
    with weights.open("r+b") as file:
        file.write(random_bytes(26 * MiB, 6))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_executable(home: Path) -> None:
    (home / "models/mod/m1/weights").chmod(0o755)


def add(home: Path) -> None:
    (home / "models/mod/m1/another").touch()


def rename(home: Path) -> None:
    (home / "models/mod/m1/weights").rename(home / "models/mod/m1/height")


@pytest.mark.parametrize(
    "change",
    [
        grow,
        touch,
        pytest.param(make_executable, marks=pytest.mark.posix("file modes")),
        add,
        rename,
        replace_with_same_size_and_time,
        pytest.param(write_with_same_size_and_time, marks=pytest.mark.posix("time of the last change of attributes")),
    ],
)
async def test_changed_file_restarts(
    interrupted: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, change: Callable[[Path], None]
) -> None:
    change(home)
    events: list[ProgressEvent] = []

    result = await make_client(interrupted, progress=events.append).models.push("mod:m1")

    assert not result.resumed
    assert len(parts(interrupted)) == 6
    assert [event.message for event in events if event.message] == [
        "restarting: an interrupted push cannot be resumed, since the files have changed"
    ]
    assert await pulled(make_client, interrupted, elsewhere) == contents(home / "models/mod/m1")
    assert not left_in_scratch(home)


@pytest.mark.parametrize(
    "change", [pytest.param(replace_with_same_size_and_time, marks=pytest.mark.posix("replacement of open files")), add]
)
async def test_changed_after_last_part_fails(
    proxy: FaultProxy, make_client: MakeClient, home: Path, change: Callable[[Path], None]
) -> None:
    """The last part may arrive first, so the end of the tar has been read long before the push ends."""
    held = Hold()
    proxy.add_fault("PUT .*partNumber=2", held)
    pushing = asyncio.create_task(make_client(proxy).models.push("mod:m1", threads=6))
    await held.arrived.wait()
    await proxy.wait_for("PUT part 6", 1)
    await asyncio.to_thread(change, home)
    held.fault = refuse(500)  # once
    held.released.set()

    with pytest.raises(SourceChangedError, match="changed during the push"):
        await pushing

    assert not proxy.matching(COMPLETE)
    assert proxy.matching(FINISH)[-1].json["status"] == "failed"


@pytest.mark.parametrize(("part_size", "threads"), [(7, 1), (5, 3), (26, 10), (60, 1)])
async def test_resume_uses_journal_part_size(
    interrupted: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, part_size: int, threads: int
) -> None:
    client = make_client(interrupted, transfer={"part_size": part_size * MiB})

    result = await client.models.push("mod:m1", threads=threads)

    assert parts(interrupted) == ["PUT part 3", "PUT part 4", "PUT part 5", "PUT part 6"]
    assert result.resumed
    assert await pulled(make_client, interrupted, elsewhere) == contents(home / "models/mod/m1")


async def test_too_small_parts_restart(interrupted: FaultProxy, make_client: MakeClient, home: Path) -> None:
    (journal,) = (home / "tmp").glob("async-bento-kept-push+*")
    journal.write_text(journal.read_text().replace(f'"part_size":{5 * MiB}', f'"part_size":{4 * MiB}'))

    result = await make_client(interrupted).models.push("mod:m1", threads=1)

    assert not result.resumed
    assert len(parts(interrupted)) == 6


async def test_another_registry_restarts(
    interrupted: FaultProxy, start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path
) -> None:
    async with FaultProxy(interrupted.registry) as other:  # the same registry, by another address
        result = await make_client(other).models.push("mod:m1")

    assert not result.resumed


async def test_unknown_to_storage_restarts(
    interrupted: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    interrupted.add_fault(PART, refuse(404, code="NoSuchUpload"))
    events: list[ProgressEvent] = []

    result = await make_client(interrupted, progress=events.append).models.push("mod:m1")

    assert not result.resumed
    assert result.parts == 6
    assert events[-1].bytes_done == events[-1].bytes_total
    assert [event.message for event in events if event.message] == [
        "resuming at 38 %",
        "restarting: an interrupted push cannot be resumed, since the storage has dropped the upload",
    ]
    assert await pulled(make_client, interrupted, elsewhere) == contents(home / "models/mod/m1")


async def test_unknown_to_registry_restarts(interrupted: FaultProxy, make_client: MakeClient) -> None:
    interrupted.add_fault("presign_multipart", answer_json(400, {"error": "no such upload"}))

    result = await make_client(interrupted).models.push("mod:m1")

    assert not result.resumed
    assert result.parts == 6


async def test_unrelated_error_keeps_parts(interrupted: FaultProxy, make_client: MakeClient) -> None:
    interrupted.add_fault(PART, refuse(500), times=None)
    with pytest.raises(PartError):
        await make_client(interrupted).models.push("mod:m1")
    interrupted._rules.clear()
    interrupted.requests.clear()

    assert (await make_client(interrupted).models.push("mod:m1")).resumed
    assert len(parts(interrupted)) == 4


async def test_resume_disabled_uploads_all(interrupted: FaultProxy, make_client: MakeClient, home: Path) -> None:
    result = await make_client(interrupted, transfer={"resume": False}).models.push("mod:m1")

    assert not result.resumed
    assert len(parts(interrupted)) == 6


async def test_no_journal_dir_succeeds(
    proxy: FaultProxy,
    make_client: MakeClient,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in (home / "tmp", home / "models/async-bento:tmp"):
        place.write_text("no directory")
    monkeypatch.setattr(tempfile, "tempdir", str(home / "tmp"))

    await make_client(proxy).models.push("mod:m1")

    assert "cannot be resumed" in caplog.text
    assert len(parts(proxy)) == 6


@pytest.mark.parametrize("method", ["read", "create", "add", "remove"])
async def test_unusable_journal_succeeds(
    proxy: FaultProxy,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    paths: list[Path] = []

    def full(journal: Journal, *_: object) -> None:
        paths.append(journal.path)
        raise OSError(28, "No space left on device")  # os.write names no file

    monkeypatch.setattr(Journal, method, full)

    await make_client(proxy).models.push("mod:m1")

    removed = "cannot remove the resume state of the push of mod:m1"
    failed = removed if method == "remove" else "an interrupted push of mod:m1 cannot be resumed"
    assert f"{failed}: No space left on device: {paths[0]}" in caplog.messages
    assert proxy.matching(FINISH)[-1].json["status"] == "success"


async def test_lock_held_waits_then_skips(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    held = Hold()
    proxy.add_fault("PUT .*partNumber=6", held)
    events: list[ProgressEvent] = []
    waits = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        events.append(event)
        if event.message:
            waits.set()

    first = asyncio.create_task(make_client(proxy).models.push("mod:m1"))
    await held.arrived.wait()
    second = asyncio.create_task(make_client(proxy, progress=listen).models.push("mod:m1"))
    await waits.wait()
    held.released.set()

    assert not (await first).skipped
    assert (await second).skipped
    assert len(parts(proxy)) == 6
    assert [event.message for event in events if event.message] == [
        "waiting: another process is pushing this version",
        "already pushed",
    ]


async def test_lock_of_failed_push_resumes(proxy: FaultProxy, make_client: MakeClient) -> None:
    held = Hold(fault=refuse(400, code="InvalidRequest"))
    proxy.add_fault("PUT .*partNumber=6", held)
    waits = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.message:
            waits.set()

    first = asyncio.create_task(make_client(proxy).models.push("mod:m1", threads=1))
    await held.arrived.wait()
    second = asyncio.create_task(make_client(proxy, progress=listen).models.push("mod:m1"))
    await waits.wait()
    held.released.set()

    with pytest.raises(PartError):
        await first
    result = await second
    assert result.resumed
    assert result.parts == 1


async def test_lock_is_per_registry(proxy: FaultProxy, start_proxy: StartProxy, make_client: MakeClient) -> None:
    other = await start_proxy("auto")
    held = Hold()
    proxy.add_fault(PART, held, times=None)
    first = asyncio.create_task(make_client(proxy).models.push("mod:m1"))
    await held.arrived.wait()

    await make_client(other).models.push("mod:m1")

    held.released.set()
    await first


async def test_lost_completion_succeeds(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy.add_fault(
        COMPLETE, in_sequence(lose_answer, answer_json(400, {"error": "NoSuchUpload: it is completed"})), times=None
    )

    result = await make_client(proxy).models.push("mod:m1")

    assert result.parts == 6
    assert proxy.steps("^GET (blob|bytes)") == ["GET bytes=0-0"]
    assert proxy.matching(FINISH)[-1].json["status"] == "success"
    assert await pulled(make_client, proxy, elsewhere) == contents(home / "models/mod/m1")


async def test_completion_of_old_object_fails(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(proxy)
    await api.models.push("mod:m1")
    weights = home / "models/mod/m1/weights"
    weights.write_bytes(random_bytes(26 * MiB, 6))  # the same size, but other bytes
    proxy.add_fault(COMPLETE, answer_json(400, {"error": "no"}), times=None)

    with pytest.raises(Exception, match="no"):
        await api.models.push("mod:m1", force=True)


async def test_bento_resumes_models(interrupted: FaultProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, models=["mod:m1"])

    result = await make_client(interrupted).push("svc:v1")

    assert not result.resumed
    assert [model.resumed for model in result.models] == [True]
