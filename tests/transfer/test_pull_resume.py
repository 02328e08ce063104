"""An interrupted pull and the next one: the ranges that are downloaded again.

The registry sends no checksums here, so that a pull resumes anywhere. `test_verify.py` has the others.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import BentoError, Limits, PartError, StoreError
from async_bento._core import platform
from async_bento.errors import ArchiveError, TransferError
from async_bento.store.moves import Move
from async_bento.transfer import resumable_extract
from async_bento.transfer.resumable_extract import ResumableExtract
from tests.builders import KiB, MiB, contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import DOWNLOAD, GET, FaultProxy, Hold, ignore_range, refuse, with_headers
from tests.platforms import link_if_possible
from tests.transfer.processes import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento import AsyncBentoAPI, ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


FILES = {f"small/{number}": random_bytes(10_000, number) for number in range(20)} | {
    "weights": random_bytes(3 * MiB, 77)
}
RANGE = 64 * KiB


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_extract, "CHECKPOINT_INTERVAL", 128 * KiB)


@pytest.fixture
async def proxy(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> FaultProxy:
    """A proxy of a registry with a model."""
    model = make_model(home, files=FILES)
    link_if_possible(model / "link", "weights")
    (model / "small/1").chmod(0o755)
    proxy = await start_proxy()
    proxy.hides_checksums = True
    await make_client(proxy).models.push("mod:m1")
    proxy.requests.clear()
    return proxy


def starts(proxy: FaultProxy) -> list[int]:
    """Return the starts of the requested ranges."""
    asked = [
        re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]) for request in proxy.matching("GET (blob|bytes)")
    ]
    return sorted(int(match[1]) for match in asked if match)


async def refuse_late(exchange: Exchange) -> web.StreamResponse:
    """Refuse a request once all earlier bytes are extracted."""
    await asyncio.sleep(1)
    return await refuse(400, code="InvalidRequest")(exchange)


async def interrupt(proxy: FaultProxy, api: AsyncBentoAPI, **options: Any) -> int:
    """Pull until the 20th range is refused; return the ranges requested until then."""
    proxy.add_fault(GET, refuse_late, skip=20, times=None)
    with pytest.raises(PartError, match="InvalidRequest"):
        await api.models.pull("mod:m1", **options)
    proxy._rules.clear()
    reached = max(starts(proxy))
    proxy.requests.clear()
    return reached


def state(elsewhere: Path) -> Path:
    (found,) = (elsewhere / "tmp").glob("*/state.json")
    return found


def noted(elsewhere: Path) -> int:
    """Return the offset in the tar up to which the bytes are extracted and recorded."""
    position: int = json.loads(state(elsewhere).read_text())["checkpoint"]["position"]
    return position


def same(home: Path, elsewhere: Path) -> bool:
    there, here = elsewhere / "models/mod/m1", home / "models/mod/m1"
    modes = [(there / name).lstat().st_mode == (here / name).lstat().st_mode for name in contents(here)]
    return contents(there) == contents(here) and all(modes) and not left_in_scratch(elsewhere)


def test_extracted_tar_leaves_no_state(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        writer.addfile(tarfile.TarInfo("weights"))
    state = tmp_path / "state"
    (tmp_path / "item").mkdir()

    with resumable_extract.resumable_extract(tmp_path / "item", state, "origin", Limits(), 0) as extract:
        extract.start(len(tar.getvalue()), '"etag"')
        extract.feed([tar.getvalue()[:512]])
        extract.feed([tar.getvalue()[512:]])
        assert state.exists()
        extract.close()

    assert not state.exists()
    assert [path.name for path in (tmp_path / "item").iterdir()] == ["weights"]


async def test_download_resume_after_failure(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    reached = await interrupt(proxy, make_client(proxy, elsewhere))
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert same(home, elsewhere)
    first, total = starts(proxy)[0], events[-1].bytes_total
    assert total is not None
    assert reached - 2 * MiB <= first <= reached  # the window may have been full of unextracted bytes
    assert first > 0
    assert [event.message for event in events if event.message] == [f"resuming at {100 * first // total} %"]
    assert events[-1].bytes_done == total
    assert {request.headers["If-Match"] for request in proxy.matching("GET (blob|bytes)")} != set()


async def test_download_resume_by_registry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, files=FILES)
    proxy = await start_proxy("proxy")
    proxy.streams_downloads = False
    proxy.hides_checksums = True
    await make_client(proxy).models.push("mod:m1")
    proxy.add_fault(DOWNLOAD, refuse_late, skip=20, times=None)
    with pytest.raises(BentoError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")
    proxy._rules.clear()
    first_pull = len(proxy.matching(DOWNLOAD))

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")
    ranges = [request.headers["Range"] for request in proxy.matching(DOWNLOAD)[first_pull:]]
    starts_again = min(int(each.removeprefix("bytes=").partition("-")[0]) for each in ranges)
    assert starts_again >= 10 * RANGE


async def test_download_resume_after_cancel(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    held = Hold()
    proxy.add_fault(GET, held, skip=20, times=None)
    pulling = asyncio.create_task(make_client(proxy, elsewhere).models.pull("mod:m1"))
    await held.arrived.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    proxy._rules.clear()
    held.released.set()
    proxy.requests.clear()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert starts(proxy)[0] > 0
    assert same(home, elsewhere)


KILLED = """
import async_bento.transfer.resumable_extract
async_bento.transfer.resumable_extract.CHECKPOINT_INTERVAL = 128 * 1024

async def main():
    async with api(range_size=2**16, window=2**20) as client:
        await client.models.pull("mod:m1")

asyncio.run(main())
"""


async def test_download_resume_after_kill(proxy: FaultProxy, home: Path, elsewhere: Path) -> None:
    held = Hold()
    proxy.add_fault(GET, held, skip=30, times=None)
    first = await Client.start(KILLED, proxy, elsewhere)
    await held.arrived.wait()
    await eventually(lambda: noted(elsewhere) >= 27 * RANGE)
    first.process.kill()
    await first.ended()
    proxy._rules.clear()
    held.released.set()
    sent = {start for start in starts(proxy) if start < 30 * RANGE}
    proxy.requests.clear()

    code, _, error = await (await Client.start(KILLED, proxy, elsewhere)).ended()

    assert code == 0, error
    assert same(home, elsewhere)
    assert len(sent) == 30
    twice = [start for start in starts(proxy) if start + RANGE <= 30 * RANGE]
    assert len(twice) <= 1 + 128 * KiB // RANGE  # since the last checkpoint


@pytest.mark.parametrize("tag", ["mod:m1", "mod"])
async def test_kill_at_commit_cleaned_up(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path, tag: str) -> None:
    await make_client(proxy, elsewhere).models.pull("mod:m1")
    (elsewhere / "tmp/async-bento-kept-models+mod+m1").mkdir()

    await make_client(proxy, elsewhere).models.pull(tag)

    assert not left_in_scratch(elsewhere)


@pytest.mark.parametrize("tag", ["mod:m1", "mod"])
async def test_kill_before_latest_sets_latest(
    proxy: FaultProxy, make_client: MakeClient, elsewhere: Path, tag: str
) -> None:
    make_model(elsewhere, "mod:m0", built="2020-01-01 00:00:00")
    await make_client(proxy, elsewhere).models.pull("mod:m1")
    latest = elsewhere / "models/mod/latest"
    latest.write_text("m0")
    aside = elsewhere / "tmp/async-bento-killed"
    aside.mkdir()
    item = elsewhere / "models/mod/m1"
    await asyncio.to_thread(Move(str(item), "models+mod", "m0", "m1").record, aside, item)

    await make_client(proxy, elsewhere).models.pull(tag)

    assert latest.read_text() == "m1"
    assert not left_in_scratch(elsewhere)


async def test_failed_pull_sets_latest(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    await make_client(proxy, elsewhere).models.pull("mod:m1")
    aside = elsewhere / "tmp/async-bento-killed"
    aside.mkdir()
    item = elsewhere / "models/mod/m1"
    await asyncio.to_thread(Move(str(item), "models+mod", "m1", None).record, aside, item)

    await interrupt(proxy, make_client(proxy, elsewhere), force=True)

    assert (elsewhere / "models/mod/latest").read_text() == "m1"


async def test_local_item_keeps_forced_state(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    make_model(elsewhere)
    await interrupt(proxy, make_client(proxy, elsewhere), force=True)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert state(elsewhere)


async def test_repeated_resume_advances(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    reached = []
    for _ in range(4):
        proxy.add_fault(GET, refuse_late, skip=8, times=None)
        with pytest.raises(PartError):
            await make_client(proxy, elsewhere).models.pull("mod:m1")
        proxy._rules.clear()
        reached.append(starts(proxy)[0])
        proxy.requests.clear()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert reached == sorted(set(reached))
    assert same(home, elsewhere)


async def test_changed_object_restarts(proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    model = make_model(home, files={"other": random_bytes(300_000, 5)})
    await make_client(proxy).models.push("mod:m1", force=True)
    proxy.requests.clear()
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert model.is_dir()
    assert same(home, elsewhere)
    assert "restarting: the item was pushed again during the download" in [event.message for event in events]
    assert events[-1].bytes_done == events[-1].bytes_total


@pytest.mark.parametrize(
    "fault",
    [refuse(412, code="PreconditionFailed"), refuse(416, code="InvalidRange"), with_headers(ETag='"another"')],
    ids=["412", "416", "another ETag"],
)
async def test_mismatch_response_restarts(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, fault: Any
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    proxy.add_fault(GET, fault)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert starts(proxy)[:2] == [0, RANGE]
    assert same(home, elsewhere)


async def test_no_range_support_restarts(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    proxy.add_fault(GET, ignore_range, times=None)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert same(home, elsewhere)


async def test_another_registry_restarts(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    async with FaultProxy(proxy.registry) as other:
        await make_client(other, elsewhere).models.pull("mod:m1")

        assert starts(other)[0] == 0
    assert f"pull of mod:m1 cannot be resumed: it was from {proxy.endpoint}" in caplog.text
    assert same(home, elsewhere)


@pytest.mark.parametrize(
    "error", [OSError(5, "broken"), ValueError(), KeyError(), OverflowError(), StoreError("gone")], ids=repr
)
def test_unreadable_state_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: ResumableExtract) -> None:
        raise error

    monkeypatch.setattr(ResumableExtract, "_resumed", fail)
    extract = ResumableExtract(tmp_path, tmp_path / "state", "http://127.0.0.1", Limits(), 0)
    assert (extract.resume_point, extract.not_resumed) == (None, "its state or its files are damaged")
    extract.abort(keep_state=False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("nonsense"),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": {}})),
        lambda path: path.write_text(path.read_text().replace('"position": ', '"position": 1e999, "was": ')),
        lambda path: shutil.rmtree(path.parent / "item/small"),
        lambda path: (path.parent / "item/weights").unlink(),
        lambda path: (path.parent / "item/weights").write_bytes(b"short"),
    ],
    ids=[
        "nonsense",
        "list",
        "cut short",
        "no checkpoint",
        "infinite position",
        "directory gone",
        "file gone",
        "file short",
    ],
)
async def test_modified_files_restart(
    proxy: FaultProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    spoil: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    spoil(state(elsewhere))

    try:
        await make_client(proxy, elsewhere).models.pull("mod:m1")
    except (ArchiveError, StoreError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")
    else:
        assert re.search(
            r"pull of mod:m1 cannot be resumed: its (state|state or its files) (is|are) damaged", caplog.text
        )

    assert same(home, elsewhere)


async def test_restart_after_reboot(
    proxy: FaultProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Files are not synced, so a file may be shorter than its size in the checkpoint."""
    await interrupt(proxy, make_client(proxy, elsewhere))
    monkeypatch.setattr(platform, "boot_id", lambda: "another")

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert starts(proxy)[0] == 0
    assert "pull of mod:m1 cannot be resumed: the machine was restarted" in caplog.text
    assert same(home, elsewhere)


async def test_resume_without_boot_id(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process does not trust the files, since the system may have crashed in between."""
    platform.boot_id.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    monkeypatch.setattr(platform, "_windows_boot_id", str)
    try:
        assert platform.boot_id().startswith("process ")
        await interrupt(proxy, make_client(proxy, elsewhere))

        await make_client(proxy, elsewhere).models.pull("mod:m1")
    finally:
        platform.boot_id.cache_clear()

    assert starts(proxy)[0] > 0
    assert same(home, elsewhere)


async def test_resume_disabled_keeps_nothing(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    api = make_client(proxy, elsewhere, transfer={"resume": False})
    await interrupt(proxy, api)
    assert not left_in_scratch(elsewhere)

    await api.models.pull("mod:m1")

    assert starts(proxy)[0] == 0
    assert same(home, elsewhere)


async def test_forced_resume_replaces_item(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(elsewhere, files={"old": b"old"})
    await interrupt(proxy, make_client(proxy, elsewhere), force=True)
    assert "old" in contents(elsewhere / "models/mod/m1")

    await make_client(proxy, elsewhere).models.pull("mod:m1", force=True)

    assert starts(proxy)[0] > 0
    assert same(home, elsewhere)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_no_strong_etag_keeps_nothing(
    proxy: FaultProxy, make_client: MakeClient, elsewhere: Path, etag: str | None
) -> None:
    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        del answer.headers["ETag"]
        if etag:
            answer.headers["ETag"] = etag
        return answer

    proxy.add_fault(GET, refuse(400, code="InvalidRequest"), skip=20, times=None)
    proxy.add_fault(GET, fault, times=None)

    with pytest.raises(PartError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert not left_in_scratch(elsewhere)


async def test_refused_tar_keeps_nothing(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    async def spoil(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        answer.body = random_bytes(len(answer.body), 9)
        return answer

    proxy.add_fault(GET, spoil, skip=1, times=1)

    with pytest.raises(ArchiveError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert not left_in_scratch(elsewhere)


async def test_unwritable_checkpoint_tolerated(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    atomic_write = resumable_extract.atomic_write

    def full(path: Path, text: str, *, durable: bool, temp_path: Path) -> None:
        nonlocal written
        written += 1
        assert not durable  # a sync of each checkpoint would take longer than the pull
        if written > 3:
            raise OSError(28, "No space left on device")
        atomic_write(path, text, durable=durable, temp_path=temp_path)

    monkeypatch.setattr(resumable_extract, "atomic_write", full)
    await interrupt(proxy, make_client(proxy, elsewhere))
    assert written > 3
    assert not left_in_scratch(elsewhere)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert same(home, elsewhere)


async def test_no_disk_space_fails_early(
    proxy: FaultProxy, make_client: MakeClient, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(elsewhere.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=MiB))

    with pytest.raises(StoreError, match=r"cannot pull mod:m1: not enough disk space in \S+: 1\.0 MiB free, 3\.\d MiB"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert len(starts(proxy)) == 1
    assert not left_in_scratch(elsewhere)


async def test_resume_needs_space_for_rest_only(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    left = json.loads(state(elsewhere).read_text())
    usage = shutil.disk_usage(elsewhere.parent)
    free = left["total"] - left["checkpoint"]["position"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free))

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert same(home, elsewhere)


async def test_resume_without_space_keeps_state(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(proxy, make_client(proxy, elsewhere))
    before = state(elsewhere).read_text()
    usage = shutil.disk_usage(elsewhere.parent)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1))
        with pytest.raises(StoreError, match="not enough disk space"):
            await make_client(proxy, elsewhere).models.pull("mod:m1")
    assert state(elsewhere).read_text() == before
    proxy.requests.clear()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert starts(proxy)[0] == json.loads(before)["checkpoint"]["position"]
    assert same(home, elsewhere)


async def test_compressed_tar_restarts(proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(home / "models/mod/m1", ".")
    packed = gzip.compress(buffer.getvalue(), 0)

    async def compressed(exchange: Exchange) -> web.StreamResponse:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.request.headers["Range"])
        assert match
        start, stop = int(match[1]), min(int(match[2]) + 1, len(packed))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(packed)}", "ETag": '"packed"'}
        return web.Response(status=206, body=packed[start:stop], headers=headers)

    proxy.add_fault(GET, refuse_late, skip=20, times=1)
    proxy.add_fault(GET, compressed, times=None)
    with pytest.raises(PartError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")
    assert not left_in_scratch(elsewhere)
    proxy.requests.clear()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert starts(proxy)[0] == 0
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


async def test_bento_resumes_models(proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    make_bento(home, models=["mod:m1"])
    await make_client(proxy).push("svc:v1")
    proxy.add_fault("GET /blobs/models", refuse_late, skip=20, times=None)
    with pytest.raises(TransferError):
        await make_client(proxy, elsewhere).pull("svc:v1", with_models=True)
    proxy._rules.clear()
    proxy.requests.clear()

    await make_client(proxy, elsewhere).pull("svc:v1", with_models=True)

    assert starts(proxy)[0] > 0
    assert same(home, elsewhere)
