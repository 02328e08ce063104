"""Copies from one registry to another."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from async_bento import (
    APIError,
    APIResponseError,
    AsyncBentoAPI,
    BentoAPI,
    BentoError,
    BentoStore,
    ConfigError,
    ModelStore,
    NotFoundError,
    ProgressEvent,
    PushesError,
    TransferError,
)
from async_bento.api import blocking
from async_bento.cli.dry_run import plan_copy_model
from async_bento.registry import LocalRegistry
from async_bento.rest.request_schemas import FinishUploadSchema
from async_bento.transfer.copy import CopyReads
from async_bento.transfer.journal import Journal
from tests.builders import KiB, MiB, contents, make_bento, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import (
    DOWNLOAD,
    FINISH,
    GET,
    PART,
    PUT,
    UPLOAD,
    Hold,
    answer_json,
    disconnect,
    disconnect_while_sending,
    ignore_range,
    lose_answer,
    refuse,
    with_headers,
)
from tests.fixtures import FEW_RANGES

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from async_bento.transfer.http import TransferPool
    from tests.fault_proxy import Exchange, FaultProxy
    from tests.fixtures import MakeClient, StartProxy

STRATEGIES = ["presigned_url", "auto", "proxy"]
FILES = {"src/service.py": b"pass\n", "src/weights": random_bytes(12 * MiB + 17, 5)}
LABELS = {"team": "vision", "stage": "test"}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushes."""
    return tmp_path / "origin"


class Pair(NamedTuple):
    """Two registries and a client of each."""

    source: FaultProxy
    target: FaultProxy
    here: AsyncBentoAPI
    there: AsyncBentoAPI


StartPair = Callable[..., Awaitable[Pair]]


@pytest.fixture
def start_pair(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> StartPair:
    """Start two registries, the first with `svc:v1` and its model `mod:m1`."""

    async def start(source: str = "presigned_url", to: str = "presigned_url", **transfer: Any) -> Pair:
        first, second = await start_proxy(source, name=f"{to}-source"), await start_proxy(to, name=f"{to}-target")
        make_model(origin, "mod:m1", {"weights": random_bytes(300 * KiB, 1)}, labels={"kind": "cnn"})
        make_bento(origin, "svc:v1", FILES, models=["mod:m1"], labels=LABELS)
        await make_client(first, origin).push("svc:v1")
        first.requests.clear()
        here = make_client(first, transfer=FEW_RANGES | {"range_size": 2 * MiB})
        return Pair(first, second, here, make_client(second, transfer=FEW_RANGES | transfer))

    return start


async def pulled(api: AsyncBentoAPI, tag: str, directory: Path) -> dict[str, Any]:
    await api.pull(tag, path=directory)
    return contents(directory)


async def record_of(api: AsyncBentoAPI, tag: str) -> dict[str, Any]:
    record = await api.get(tag)
    kept = ("version", "description", "manifest", "labels", "build_at", "upload_status")
    found = {name: value for name, value in record.model_dump().items() if name in kept}
    found["labels"] = sorted(found["labels"], key=lambda label: label["key"])
    return found


@pytest.mark.parametrize("to", STRATEGIES)
@pytest.mark.parametrize("streams", [False, True], ids=["ranges", "whole"])
async def test_copied_bento_is_the_same(
    start_pair: StartPair, origin: Path, tmp_path: Path, to: str, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Copy from a registry with ranges, and from one without ranges, length and checksums."""
    caplog.set_level("INFO")
    pair = await start_pair("proxy" if streams else "auto", to)
    if streams:
        pair.source.hides_checksums = True
        pair.source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    started = time.monotonic()
    resources, events = pair.here._resources, list[ProgressEvent]()
    async with AsyncBentoAPI(resources.client, config=resources.config, progress=events.append) as here:
        result = await here.copy("svc", pair.there)
    assert (str(result.tag), result.skipped) == ("svc:v1", False)
    assert (events[-1].phase, events[-1].message) == ("done", "1 model")
    assert [str(model.tag) for model in result.models] == ["mod:m1"]
    assert 0 < result.models[0].seconds <= result.seconds <= time.monotonic() - started
    assert result.bytes_sent > len(FILES["src/weights"])
    assert result.parts == (3 if to == "presigned_url" else 1)
    assert await record_of(pair.there, "svc:v1") == await record_of(pair.here, "svc:v1")
    assert (await pair.there.models.get("mod:m1")).labels == (await pair.here.models.get("mod:m1")).labels
    assert await pulled(pair.there, "svc:v1", tmp_path / "copy") == await pulled(
        pair.here, "svc:v1", tmp_path / "original"
    )
    assert await contents_of_model(pair.there, tmp_path / "model") == contents(origin / "models" / "mod" / "m1")

    pair.target.requests.clear()
    again = await pair.here.copy("svc:v1", pair.there)
    assert (again.skipped, again.models[0].skipped, pair.target.matching("PUT")) == (True, True, [])
    assert ("the registry sends no ranges, so the tar is copied in one piece" in caplog.text) is streams


async def contents_of_model(api: AsyncBentoAPI, directory: Path) -> dict[str, Any]:
    await api.models.pull("mod:m1", path=directory)
    return contents(directory)


@pytest.mark.parametrize("to", ["presigned_url", "auto", "proxy"])
async def test_transfers_work_in_fips_mode(
    start_pair: StartPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """There, OpenSSL refuses MD5 except for purposes that are not security."""
    md5 = hashlib.md5

    def refuse(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return md5(data, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "md5", refuse)
    pair = await start_pair(to=to)
    await pair.here.copy("svc:v1", pair.there)
    bento = await pair.there.pull("svc:v1", path=tmp_path / "copy")
    assert (bento.path / "src/weights").read_bytes() == FILES["src/weights"]


async def test_copy_uses_source_parts(start_pair: StartPair) -> None:
    """The checksums of the source verify each part, and the memory holds at most `threads` parts."""
    pair = await start_pair()
    await pair.here.copy("svc:v1", pair.there, with_models=False, threads=2)
    sent = {request.step: len(request.body) for request in pair.target.matching("PUT part")}
    assert sorted(sent.values(), reverse=True)[:2] == [5 * MiB, 5 * MiB]
    assert pair.source.max_concurrent["GET"] <= 2
    assert pair.target.max_concurrent["PUT"] <= 2
    with pytest.raises(NotFoundError):
        await pair.there.models.get("mod:m1")


async def test_other_part_size_is_verified(start_pair: StartPair, tmp_path: Path) -> None:
    pair = await start_pair("auto")
    original = await pulled(pair.here, "svc:v1", tmp_path / "original")
    await pair.here.copy("svc:v1", pair.there)
    assert await pulled(pair.there, "svc:v1", tmp_path / "copy") == original
    pair.source.add_fault(GET, flip, skip=2)
    events: list[ProgressEvent] = []
    async with AsyncBentoAPI(
        pair.here._resources.client, config=pair.here._resources.config, progress=events.append
    ) as here:
        await here.copy("svc:v1", pair.there, force=True, with_models=False)  # damaged once, then restarted
    assert "restarting: part 1 arrived damaged" in [event.message for event in events]
    assert await pulled(pair.there, "svc:v1", tmp_path / "second") == original
    pair.source.add_fault(GET, flip, times=None)
    with pytest.raises(TransferError, match=r"cannot copy svc:v1: part 1 arrived damaged, twice\. Copy again"):
        await pair.here.copy("svc:v1", pair.there, force=True, with_models=False)
    assert (await pair.there.get("svc:v1")).upload_status == "success"  # still the bytes of the earlier copy
    assert await pulled(pair.there, "svc:v1", tmp_path / "third") == original


@pytest.mark.parametrize("is_interrupted", [True, False])
async def test_damaged_parts_not_resumed(
    start_pair: StartPair, tmp_path: Path, is_interrupted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The only checksum covers all bytes, so it is verified after the target has the damaged part."""
    pair = await start_pair("auto")
    pair.source.add_fault(GET, flip, skip=1)
    if is_interrupted:
        pair.target.add_fault(f"{PART}2", refuse(400, code="InvalidRequest"))
        with pytest.raises(BentoError, match="InvalidRequest"):
            await pair.here.copy("svc:v1", pair.there, with_models=False, threads=1)
    result = await pair.here.copy("svc:v1", pair.there, with_models=False, threads=1)
    copied = await pulled(pair.there, "svc:v1", tmp_path / "copy")
    assert copied["src/weights"] == FILES["src/weights"]
    assert not result.resumed
    assert "cannot be resumed" not in caplog.text


async def flip(exchange: Exchange) -> web.StreamResponse:
    """Forward a download with its last byte changed."""
    answer = await exchange.forward()
    assert isinstance(answer.body, bytes)
    answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
    return answer


@pytest.mark.parametrize("to", STRATEGIES)
async def test_copy_survives_faults(start_pair: StartPair, tmp_path: Path, to: str) -> None:
    pair = await start_pair(to=to)
    for skip, fault in enumerate((disconnect, disconnect_while_sending(1000), refuse(503), refuse(403), ignore_range)):
        pair.source.add_fault(GET, fault, skip=2 * skip + 1)
    pair.target.add_fault(f"{PUT}|{UPLOAD}", disconnect)
    pair.target.add_fault(f"{PUT}|{UPLOAD}", refuse(503), skip=2)
    pair.target.add_fault("PATCH .*/complete_multipart_upload", lose_answer)
    pair.target.add_fault(FINISH, lose_answer)
    await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert await pulled(pair.there, "svc:v1", tmp_path / "copy") == await pulled(
        pair.here, "svc:v1", tmp_path / "original"
    )


@pytest.mark.parametrize("streams", [False, True], ids=["ranges", "whole"])
async def test_copy_memory_is_bounded(start_pair: StartPair, monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    """Each part, or each tar read as a whole, counts against the limit of `threads`."""
    made: list[CopyReads] = []
    make_reads = CopyReads.of

    def make(pool: TransferPool, threads: int) -> CopyReads:
        made.append(make_reads(pool, threads))
        return made[-1]

    held: list[tuple[int, bool]] = []

    async def note(exchange: Exchange) -> web.StreamResponse:
        held.append((made[0].parts.size - made[0].parts.free, made[0].streams.locked()))
        return await exchange.forward()

    monkeypatch.setattr(CopyReads, "of", make)
    pair = await start_pair("proxy" if streams else "auto")
    if streams:
        pair.source.hides_checksums = True
        pair.source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    pair.target.add_fault(PART, note, times=None)
    result = await pair.here.copy("svc:v1", pair.there, with_models=False, threads=1)
    shares, are_streams = zip(*held, strict=True)
    assert are_streams == (streams,) * result.parts
    assert sum(shares) == (0 if streams else result.bytes_sent)
    assert made[0].parts.free == made[0].parts.size
    await asyncio.wait_for(made[0].streams.acquire(), 1)
    assert made[0].streams.locked()


async def test_copy_streams_each_part(start_pair: StartPair) -> None:
    """After a broken connection, the copy requests only the rest of the part."""
    pair = await start_pair()

    async def send_half(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        response = await exchange.start_response(answer)
        await response.write(answer.body[: 2 * MiB])
        await pair.target.wait_for("PUT part", 1)
        return exchange.disconnect()

    pair.source.add_fault(GET, send_half, skip=1)
    await asyncio.wait_for(pair.here.copy("svc:v1", pair.there, with_models=False, threads=1), 60)
    ranges = [request.headers["Range"] for request in pair.source.matching(GET)]
    first, part, rest = (int(each.removeprefix("bytes=").partition("-")[0]) for each in ranges[:3])
    assert (first, part) == (0, 0)
    assert 0 < rest <= 2 * MiB
    assert len(ranges) == 5


async def test_source_failure_is_reported(start_pair: StartPair) -> None:
    pair = await start_pair()
    pair.target.add_fault("POST .*/models$", refuse(403))
    with pytest.raises(APIError):
        await pair.here.models.copy("mod:m1", pair.there)
    pair.source.add_fault(GET, refuse(500, message="broken disk"), times=None, skip=2)
    with pytest.raises(BentoError, match=r"cannot copy svc:v1: .*broken disk"):
        await pair.here.copy("svc:v1", pair.there, with_models=False)
    record = await pair.there.get("svc:v1")
    assert record.upload_status == "failed"
    assert "cannot read the source" in record.upload_finished_reason


@pytest.mark.parametrize(
    ("step", "lacking"), [("presign.*upload", "presigned upload URL"), ("start_multipart", "upload_id")]
)
async def test_copy_error_names_copy(start_pair: StartPair, step: str, lacking: str) -> None:
    pair = await start_pair()
    pair.target.add_fault(step, answer_json(200, {"version": "m1"}), times=None)
    with pytest.raises(APIResponseError, match=rf"^cannot copy \S+: the registry's response has no {lacking}"):
        await pair.here.models.copy("mod:m1", pair.there)


def parts_in_journal(home: Path) -> int:
    journals = [Journal(path) for path in (home / "tmp").glob("async-bento-kept-push+*")]
    return sum(len(read.etags) for journal in journals if (read := journal.read()))


async def test_cancelled_copy_is_resumed(start_pair: StartPair, home: Path) -> None:
    pair = await start_pair()
    hold = Hold(1)
    pair.target.add_fault(f"{PART}3", hold)
    task = asyncio.create_task(pair.here.copy("svc:v1", pair.there, with_models=False))
    await hold.arrived.wait()
    await eventually(lambda: asyncio.to_thread(lambda: parts_in_journal(home) == 2))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.released.set()
    assert (await pair.there.get("svc:v1")).upload_status == "failed"
    result = await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert (result.resumed, result.parts) == (True, 1)
    assert (await pair.there.get("svc:v1")).upload_status == "success"


async def test_repushed_item_copied_whole(start_pair: StartPair, make_client: MakeClient, tmp_path: Path) -> None:
    """The target never mixes parts of both, whether the ETag or only the record shows the change."""
    for to in STRATEGIES:
        pair = await start_pair("proxy", to)
        pair.source.streams_downloads = False
        hold = Hold(1)
        pair.source.add_fault(DOWNLOAD, hold, skip=2)
        task = asyncio.create_task(pair.here.copy("svc:v1", pair.there, with_models=False))
        await hold.arrived.wait()
        make_bento(tmp_path / f"{to}-new", "svc:v1", {"src/weights": random_bytes(12 * MiB, 6)})
        await make_client(pair.source, tmp_path / f"{to}-new").push("svc:v1", force=True)
        hold.released.set()
        await task
        copied = await pulled(pair.there, "svc:v1", tmp_path / f"{to}-copy")
        assert copied == await pulled(pair.here, "svc:v1", tmp_path / f"{to}-original")
        assert hashlib.sha256(copied["src/weights"]).digest() == hashlib.sha256(random_bytes(12 * MiB, 6)).digest()


@pytest.mark.parametrize("to", ["presigned_url", "proxy"])
async def test_repush_during_stream_is_copied(
    to: str, start_pair: StartPair, make_client: MakeClient, tmp_path: Path
) -> None:
    """Without ranges, ETags and checksums, only the record shows the change."""
    pair = await start_pair("proxy", to)
    pair.source.hides_checksums = True
    pair.source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    new = tmp_path / "new"
    make_bento(new, "svc:v1", FILES | {"src/service.py": b"more\n"}, labels=LABELS)

    async def push_meanwhile(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        await make_client(pair.source, new).push("svc:v1", force=True)
        return answer

    pair.source.add_fault(DOWNLOAD, push_meanwhile, skip=2)
    await pair.here.copy("svc:v1", pair.there, with_models=False)
    copied = await pulled(pair.there, "svc:v1", tmp_path / "copy")
    assert copied["src/service.py"] == b"more\n"


async def test_list_copy_shares_models(
    start_pair: StartPair, make_client: MakeClient, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = await start_pair()
    make_bento(origin, "svc:v2", {"a": b"2"}, models=["mod:m1"])
    await make_client(pair.source, origin).push("svc:v2")
    with pytest.raises(PushesError, match="cannot copy 1 of 3 bentos") as failed:
        await pair.here.copy(["svc:v1", "svc:v2", "svc:nothing"], pair.there)
    assert [*failed.value.failures] == ["svc:nothing"]
    assert len(pair.target.matching("PUT")) == 3 + 1 + 1
    models = await pair.here.models.copy(["mod:m1"], pair.there)
    assert [model.skipped for model in models] == [True]

    await pair.there.set_labels("svc:v1", {"stage": "prod", "pinned": "yes"})
    await pair.here.copy("svc:v1", pair.there, force=True, keep_labels=True, with_models=False)
    assert {label.key: label.value for label in (await pair.there.get("svc:v1")).labels} == LABELS | {"pinned": "yes"}
    await pair.here.copy("svc:v1", pair.there, force=True, with_models=False)
    assert {label.key: label.value for label in (await pair.there.get("svc:v1")).labels} == LABELS
    assert "has dropped labels of bento svc:v1 in the registry: pinned=yes" in caplog.text


async def test_copy_without_files_rejected(start_pair: StartPair, make_client: MakeClient) -> None:
    pair = await start_pair()
    with pytest.raises(ConfigError, match="source and target are both"):
        await pair.here.copy("svc:v1", make_client(pair.source))
    with pytest.raises(NotFoundError):
        await pair.here.copy("svc:nothing", pair.there)
    pair.source.add_fault(GET, refuse(404, code="NoSuchKey"), times=None)
    with pytest.raises(BentoError, match=r"its model mod:m1 failed: cannot copy mod:m1: .* not its files"):
        await pair.here.copy("svc:v1", pair.there)


@pytest.mark.parametrize("source", ["presigned_url", "proxy"])
async def test_copy_of_empty_tar_rejected(start_pair: StartPair, source: str) -> None:
    pair = await start_pair(source)
    pair.source.hides_checksums = True
    if source == "proxy":
        pair.source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)

    async def empty(exchange: Exchange) -> web.StreamResponse:
        from aiohttp import web

        return web.Response()

    pair.source.add_fault(f"{GET}|{DOWNLOAD}", empty, times=None)
    with pytest.raises(TransferError, match=r"cannot copy svc:v1: the registry sent an empty tar\. Push it again\.$"):
        await pair.here.copy("svc:v1", pair.there, with_models=False)


async def test_copy_during_push_reads_old_tar(start_pair: StartPair, tmp_path: Path) -> None:
    pair = await start_pair()
    original = await pulled(pair.here, "svc:v1", tmp_path / "original")
    routes = pair.here._resources.client.bentos
    await routes.start_upload("svc", "v1")
    await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert await pulled(pair.there, "svc:v1", tmp_path / "copy") == original
    await routes.finish_upload("svc", "v1", FinishUploadSchema(status="failed", reason="cancelled"))
    with pytest.raises(NotFoundError, match=r"cannot copy svc:v1: its upload never finished \(upload_status=failed"):
        await pair.here.copy("svc:v1", pair.there, force=True)


async def test_bare_record_is_copied_bare(start_pair: StartPair, make_client: MakeClient, origin: Path) -> None:
    pair = await start_pair()
    make_bento(origin, "svc:dev", {"a": b"1"})
    await make_client(pair.source, origin).push("svc:dev", bare=True)
    result = await pair.here.copy("svc:dev", pair.there)
    assert (result.bytes_sent, result.parts) == (0, 0)
    assert await record_of(pair.there, "svc:dev") == await record_of(pair.here, "svc:dev")


async def test_unknown_fields_are_copied(start_pair: StartPair) -> None:
    """A newer BentoML may send fields that no schema knows."""
    pair = await start_pair()

    async def extend(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        record = json.loads(answer.body)  # type: ignore[arg-type]
        record["manifest"]["invented"] = {"later": True}
        answer.body = json.dumps(record).encode()
        answer.headers.pop("Content-Length", None)
        return answer

    pair.source.add_fault("GET .*/bentos/v1$", extend, times=None)
    await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert pair.target.matching("POST .*/bentos$")[0].json["manifest"]["invented"] == {"later": True}


async def test_mismatched_etag_rejected(start_pair: StartPair) -> None:
    pair = await start_pair()
    pair.source.add_fault(GET, with_headers(ETag='"0123456789abcdef0123456789abcdef"'), times=None)
    with pytest.raises(TransferError, match="twice"):
        await pair.here.copy("svc:v1", pair.there, with_models=False)


def test_blocking_api_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bento(tmp_path, "svc:v1", {"a": b"1"})
    make_model(tmp_path, "mod:m1", {"weights": b"2"})
    stores = {"bento_store": BentoStore(tmp_path / "bentos"), "model_store": ModelStore(tmp_path / "models")}
    closed: list[AsyncBentoAPI] = []
    close_on = blocking._close_on
    monkeypatch.setattr(blocking, "_close_on", lambda loop, api: closed.append(api) or close_on(loop, api))
    with LocalRegistry(tmp_path / "one") as one, LocalRegistry(tmp_path / "two") as two:
        here = BentoAPI(endpoint=one.endpoint, api_token=one.api_token, **stores)
        there = BentoAPI(endpoint=two.endpoint, api_token=two.api_token, **stores)
        with here, there:
            here.push("svc:v1")
            assert not there.exists("svc:v1")
            assert not here.copy("svc:v1", there).skipped
            assert [result.skipped for result in here.copy(["svc:v1"], there)] == [True]
            assert there.exists("svc:v1")
            here.models.push("mod:m1")
            assert not here.models.copy("mod:m1", there).skipped
            asyncio.run(eventually(lambda: not there._async._resources._calls))
            model = there.models.pull("mod:m1", path=tmp_path / "model")
            assert (model.path / "weights").read_bytes() == b"2"
    assert closed == []


async def test_close_on_other_loop_lets_loop_run() -> None:
    """A busy loop could not report the end of the copy to the target."""
    loop, released = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.get_running_loop().call_soon(loop.call_soon_threadsafe, released.set)
    await blocking._close_on(loop, SimpleNamespace(aclose=released.wait))  # type: ignore[arg-type]
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join)
    loop.close()
    assert released.is_set()


async def test_hub_model_copied_as_record(start_pair: StartPair, make_client: MakeClient, origin: Path) -> None:
    pair = await start_pair()
    make_model(origin, "bert:h1", {"a": b"1"}, metadata={"registry": "huggingface", "model_id": "org/bert"})
    await make_client(pair.source, origin).models.push("bert:h1")
    pair.source.requests.clear()
    started = time.monotonic()
    events: list[ProgressEvent] = []
    here = AsyncBentoAPI(pair.here._resources.client, progress=events.append)
    result = await here.models.copy("bert", pair.there)
    assert (str(result.tag), result.skipped, result.parts) == ("bert:h1", False, 0)
    assert (events[-1].phase, events[-1].message) == ("done", "its files stay on the Hugging Face Hub")
    assert 0 < result.seconds <= time.monotonic() - started
    manifests = [(await api.models.get("bert:h1")).manifest for api in (pair.here, pair.there)]
    assert manifests[0] == manifests[1]
    for force in (False, True):
        (planned,) = await plan_copy_model(pair.here.models, pair.there.models, "bert:h1", force=force)
        assert planned.action == "skip"
        again = await here.models.copy("bert:h1", pair.there, force=force)
        assert again.skipped
        assert (events[-1].phase, events[-1].message) == ("skipped", "already pushed")
        assert 0 < again.seconds <= time.monotonic() - started
    await here.aclose()
    assert not pair.source.matching("GET bytes|presign")


async def test_failed_stream_copy_resumes(start_pair: StartPair) -> None:
    pair = await start_pair("proxy")
    pair.source.hides_checksums = True
    pair.source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    pair.target.add_fault(f"{PART}2", refuse(400, code="InvalidRequest"))
    with pytest.raises(BentoError, match="InvalidRequest"):
        await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert not [task for task in asyncio.all_tasks() if "_Stream" in repr(task.get_coro())]
    result = await pair.here.copy("svc:v1", pair.there, with_models=False)
    assert (result.resumed, result.parts) == (True, 2)
    first, last = map(int, pair.source.matching(DOWNLOAD)[-1].headers["Range"].removeprefix("bytes=").split("-"))
    assert first == 0  # a server that ignores ranges sends all bytes
    assert last > 1 << 60
