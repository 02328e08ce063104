"""Pulls verify the bytes by the checksums of the registry, so damaged bytes never reach the store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from async_bento import APIResponseError, BentoError, IntegrityError, PartError, UnsafeArchiveError
from async_bento._core.concurrency import Threads
from async_bento.rest.schemas import ChecksumsSchema
from async_bento.transfer import resumable_extract, verify
from async_bento.transfer.verify import Verifier
from tests.builders import KiB, MiB, contents, left_in_scratch, make_model, random_bytes
from tests.fault_proxy import DOWNLOAD, GET, FaultProxy, end_early, ignore_range, refuse, with_headers
from tests.transfer.quiet import nothing_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy

    Push = Callable[..., Awaitable[FaultProxy]]

FILES = {"big": random_bytes(2 * MiB + 77, 3), "small": random_bytes(1000, 4)}
PART = 300 * KiB
RECORD = r"GET /api/v1/model_repositories/mod/models/m1$"
RECORDS = rf"{RECORD}|PATCH .*/presign_download_url$"
RANGE = 64 * KiB


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_extract, "CHECKPOINT_INTERVAL", 128 * KiB)


@pytest.fixture
def push(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> Push:
    """Push `mod:m1` to a registry behind a proxy that sends its checksums, in parts of `PART` bytes."""

    async def push(
        transmission: str = "presigned_url", part: int = PART, files: dict[str, bytes] | None = None, **changed: Any
    ) -> FaultProxy:
        make_model(home, files=files or FILES)
        proxy = await start_proxy(transmission)
        proxy.streams_downloads = False
        await make_client(proxy).models.push("mod:m1")
        tar, etag = await stored(proxy)
        pieces = [tar[start : start + part] for start in range(0, len(tar), part)]
        checksums = {
            "size": len(tar),
            "etag": etag,
            "parts": [[len(piece), hashlib.md5(piece).hexdigest()] for piece in pieces],
        }
        proxy.add_fault(RECORDS, with_checksums(checksums | changed), times=None)
        proxy.requests.clear()
        return proxy

    return push


async def stored(proxy: FaultProxy) -> tuple[bytes, str]:
    """The tar of `mod:m1` in the registry, and its ETag."""
    url = f"{proxy.registry.endpoint}/api/v1/model_repositories/mod/models/m1/download"
    headers = {"X-YATAI-API-TOKEN": proxy.registry.api_token}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return await response.read(), response.headers["ETag"]


def with_checksums(checksums: object) -> Fault:
    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        return web.json_response(json.loads(answer.body) | {"checksums": checksums}, status=answer.status)

    return fault


def flip(offset: int, *, whole: bool = False, bits: list[int] | None = None) -> Fault:
    """Change the byte at an offset of the tar; with `bits`, another bit in each response that has it."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await (ignore_range(exchange) if whole else exchange.forward())
        match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", "bytes 0-"))
        assert match
        assert isinstance(answer.body, bytes)
        body, at = bytearray(answer.body), offset - int(match[1])
        if 0 <= at < len(body):
            body[at] ^= bits.pop() if bits else 1
            answer.body = bytes(body)
        return answer

    return fault


def starts(proxy: FaultProxy) -> list[int]:
    """Return the starts of the requested ranges."""
    asked = [request.headers.get("Range", "bytes=0-") for request in proxy.matching(f"GET (blob|bytes)|{DOWNLOAD}")]
    return [int(value.removeprefix("bytes=").partition("-")[0]) for value in asked]


def is_pulled(home: Path, elsewhere: Path) -> bool:
    there = contents(elsewhere / "models/mod/m1")
    return there == contents(home / "models/mod/m1") and not left_in_scratch(elsewhere)


def is_clean(elsewhere: Path) -> bool:
    """Return whether the store and the staging area hold no file."""
    stored = [path for path in (elsewhere / "models").rglob("*") if path.is_file()]
    return not stored and not left_in_scratch(elsewhere)


@pytest.mark.parametrize("tag", ["mod:m1", "mod"])
@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_verified_pull_equals_pushed_item(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str, tag: str
) -> None:
    proxy = await push(transmission)

    await make_client(proxy, elsewhere).models.pull(tag)

    assert is_pulled(home, elsewhere)
    assert len(starts(proxy)) == len(set(starts(proxy)))


AT_REST = {"first byte": 0, "header": 1000, "content": 2 * PART + 5, "first of a part": 3 * PART, "last part": -700}


@pytest.mark.parametrize(
    ("transmission", "tag", "offset"),
    [
        *(pytest.param("presigned_url", "mod:m1", offset, id=name) for name, offset in AT_REST.items()),
        ("proxy", "mod:m1", AT_REST["content"]),
        ("proxy", "mod", AT_REST["content"]),
    ],
)
async def test_damaged_tar_fails(
    push: Push, make_client: MakeClient, elsewhere: Path, transmission: str, tag: str, offset: int
) -> None:
    proxy = await push(transmission)
    tar, _ = await stored(proxy)
    offset %= len(tar)
    proxy.add_fault(f"{GET}|{DOWNLOAD}", flip(offset), times=None)
    api = make_client(proxy, elsewhere)
    number = offset // PART + 1
    good = tar[(number - 1) * PART : number * PART]
    at = offset % PART
    bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    async with nothing_left(api):
        with pytest.raises(IntegrityError) as caught:
            await api.models.pull(tag)

    md5s = f"{hashlib.md5(bad).hexdigest()} instead of {hashlib.md5(good).hexdigest()}"
    assert str(caught.value) == (
        f"cannot pull mod:m1: the registry's copy is damaged: part {number} of its tar has the MD5 {md5s}. "
        "Push the model again with force (`--force`); the registry's operator can find all damaged tars with "
        "`async-bento registry check`."
    )
    assert is_clean(elsewhere)
    twice = {start for start in starts(proxy) if starts(proxy).count(start) > 1}
    assert all(abs(start - offset) < PART + RANGE for start in twice)  # only the part is downloaded again


async def test_damaged_tar_keeps_old_copy(push: Push, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await push()
    old = make_model(elsewhere, files={"old": b"old"})
    before = contents(old)
    proxy.add_fault(GET, flip(2 * PART), times=None)

    with pytest.raises(IntegrityError):
        await make_client(proxy, elsewhere).models.pull("mod:m1", force=True)

    assert contents(old) == before


async def test_damaged_tar_to_dir_fails(push: Push, make_client: MakeClient, tmp_path: Path, elsewhere: Path) -> None:
    proxy = await push()
    proxy.add_fault(GET, flip(2 * PART), times=None)

    with pytest.raises(IntegrityError):
        await make_client(proxy, elsewhere).models.pull("mod:m1", path=tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("offset", [1000, 2 * PART + 5])
async def test_damage_in_transit_restarts(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, offset: int
) -> None:
    proxy = await push()
    proxy.add_fault(GET, flip(offset), skip=offset // RANGE)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, transfer={"concurrency": 1}, progress=events.append).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    number = offset // PART + 1
    assert f"restarting: part {number} arrived damaged" in [event.message for event in events]
    assert events[-1].bytes_done == events[-1].bytes_total


async def test_damaging_connection_fails(push: Push, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await push()
    proxy.add_fault(GET, flip(2 * PART + 5, bits=[1, 2, 4, 8]), times=None)

    with pytest.raises(IntegrityError, match="the connection damages its bytes: part 3 of its tar has the MD5"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


async def test_no_verify_stores_damaged_bytes(push: Push, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    proxy = await push()
    proxy.add_fault(GET, flip(2 * PART + 5), times=None)

    await make_client(proxy, elsewhere, transfer={"verify": False}).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1").keys() == contents(home / "models/mod/m1").keys()
    assert not is_pulled(home, elsewhere)


# Without range requests


@pytest.mark.parametrize("times", [1, None])
async def test_stream_with_damaged_bytes(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, times: int | None
) -> None:
    proxy = await push("proxy")
    proxy.streams_downloads = True
    proxy.add_fault(DOWNLOAD, flip(2 * PART + 5, whole=True), times=times)
    api = make_client(proxy, elsewhere)

    if times is None:
        with pytest.raises(IntegrityError, match="the registry's copy is damaged: part 3 of its tar"):
            await api.models.pull("mod:m1")
        assert is_clean(elsewhere)
    else:
        await api.models.pull("mod:m1")
        assert is_pulled(home, elsewhere)
    assert len(starts(proxy)) == 2


async def test_truncated_stream_is_retried(push: Push, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    proxy = await push("proxy")
    proxy.streams_downloads = True
    proxy.add_fault(DOWNLOAD, end_early(100_000))

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)


async def test_overlong_stream_fails(push: Push, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await push("proxy")
    tar, _ = await stored(proxy)
    proxy.streams_downloads = True

    async def longer(exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(exchange.request)
        await response.write(tar + bytes(10_240))
        return response

    proxy.add_fault(DOWNLOAD, longer, times=None)

    with pytest.raises(IntegrityError, match=f"the storage sent more than {len(tar)} bytes"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


# Size and ETag


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
@pytest.mark.parametrize(
    ("changed", "difference"),
    [({"size": 10, "parts": []}, r"\d+ bytes instead of 10"), ({"etag": '"abc"'}, r'the ETag "\S+" instead of "abc"')],
    ids=["size", "etag"],
)
async def test_another_object_fails(
    push: Push, make_client: MakeClient, elsewhere: Path, changed: dict[str, Any], difference: str, transmission: str
) -> None:
    proxy = await push(transmission, **changed)

    with pytest.raises(IntegrityError, match=f"mod:m1: the storage sent a tar with {difference}: it was damaged"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_item_pushed_meanwhile_restarts(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    """The first response has the checksums of the earlier object."""
    proxy = await push(transmission)
    stale = with_checksums({"size": 5, "etag": '"abc"', "parts": [[5, "0" * 32]]})
    current = proxy._rules.pop()
    proxy.add_fault("presign_download" if transmission == "presigned_url" else RECORD, stale)
    proxy._rules.append(current)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert "restarting: the item was pushed again during the download" in [event.message for event in events]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_no_strong_etag_compares_parts(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, etag: str | None
) -> None:
    proxy = await push()
    proxy.add_fault(GET, with_headers(ETag=etag), times=None)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)


@pytest.mark.parametrize("checksums", [None, {"sha256": "abc"}, "abc", {"size": 5, "etag": 7, "parts": [[1]]}])
async def test_unknown_checksums_ignored(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, checksums: object
) -> None:
    proxy = await push()
    proxy._rules.clear()
    proxy.add_fault(RECORDS, with_checksums(checksums), times=None)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([[5, "0" * 32]], r"the parts have 5 bytes, and the tar \d{7}"),
        ([[-1, "0" * 32]], "part 1 has -1 bytes"),
        ([[5, "z" * 32]], "part 1 has no MD5"),
        ([[5, "0" * 31]], "part 1 has no MD5"),
    ],
)
async def test_contradictory_checksums_fail(
    push: Push, make_client: MakeClient, elsewhere: Path, parts: list[Any], problem: str
) -> None:
    proxy = await push(parts=parts)

    with pytest.raises(APIResponseError, match=f"mod:m1: the registry sent invalid checksums: {problem}") as caught:
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert caught.value.field == "checksums.parts"
    assert is_clean(elsewhere)


@pytest.mark.parametrize("action", ["copy", "read"])
async def test_contradictory_checksums_name_action(
    push: Push, start_proxy: StartProxy, make_client: MakeClient, action: str
) -> None:
    proxy = await push(parts=[[5, "0" * 32]])
    proxy.add_fault(GET, ignore_range, times=None)
    models, target = make_client(proxy).models, make_client(await start_proxy(name="target"))

    with pytest.raises(APIResponseError, match=f"^cannot {action} mod:m1: the registry sent invalid checksums: "):
        await (models.copy("mod:m1", target) if action == "copy" else models.files("mod:m1").list())


async def test_record_has_checksums(push: Push, make_client: MakeClient) -> None:
    proxy = await push()
    tar, etag = await stored(proxy)

    checksums = (await make_client(proxy).models.get("mod:m1")).checksums

    assert checksums is not None
    assert (checksums.size, checksums.etag) == (len(tar), etag)
    assert checksums.parts[0] == (PART, hashlib.md5(tar[:PART]).hexdigest())


async def test_unsafe_tar_with_valid_checksums(push: Push, make_client: MakeClient, elsewhere: Path) -> None:
    """The bytes are as they were pushed: another push of the same bytes is no remedy."""
    bad = random_bytes(PART + 5)
    parts = [[PART, hashlib.md5(bad[:PART]).hexdigest()], [5, hashlib.md5(bad[PART:]).hexdigest()]]
    proxy = await push("proxy", size=len(bad), parts=parts, etag="")

    async def send(exchange: Exchange) -> web.StreamResponse:
        return web.Response(body=bad)

    proxy.add_fault(DOWNLOAD, send, times=None)

    with pytest.raises(UnsafeArchiveError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


# Resumed pulls


async def interrupt(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path, ranges: int, **transfer: Any) -> None:
    """Pull until the given number of ranges was extracted, one after the other."""

    async def refuse_late(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await refuse(400, code="InvalidRequest")(exchange)

    proxy.add_fault(f"{GET}|{DOWNLOAD}", refuse_late, skip=ranges, times=None)
    proxy._rules.insert(0, proxy._rules.pop())
    with pytest.raises(BentoError, match=r"InvalidRequest|400 Bad Request"):
        await make_client(proxy, elsewhere, transfer={"concurrency": 1, **transfer}).models.pull("mod:m1")
    del proxy._rules[0]
    proxy.requests.clear()


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_resume_starts_at_part(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    proxy = await push(transmission)
    await interrupt(proxy, make_client, elsewhere, 20)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert min(starts(proxy)) == 20 * RANGE // PART * PART


async def test_interrupted_first_part_not_kept(push: Push, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await push()

    await interrupt(proxy, make_client, elsewhere, 3)

    assert is_clean(elsewhere)


async def test_resume_replaces_files_of_part(push: Push, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    """Files that were extracted after the start of the part are no duplicates."""
    proxy = await push(files={f"small/{number}": random_bytes(10_000, number) for number in range(150)}, part=7 * RANGE)
    await interrupt(proxy, make_client, elsewhere, 20)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert min(starts(proxy)) == 14 * RANGE


@pytest.mark.parametrize(
    ("part", "ranges"), [(PART, 1), (PART, 14), (PART, 25), (40 * KiB, 14), (RANGE, 5), (7 * RANGE, 25)]
)
async def test_resume_verifies_whole_part(
    push: Push, make_client: MakeClient, elsewhere: Path, ranges: int, part: int
) -> None:
    """The damaged byte arrives before the interruption, in the interrupted part."""
    proxy = await push(part=part)
    proxy.add_fault(GET, flip(ranges * RANGE // part * part + 3), times=None)
    await interrupt(proxy, make_client, elsewhere, ranges)

    with pytest.raises(IntegrityError, match="the registry's copy is damaged"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


@pytest.mark.parametrize("part", [PART, 5 * RANGE], ids=["within a part", "between parts"])
async def test_resume_of_unverified_restarts(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path, part: int
) -> None:
    proxy = await push(part=part)
    await interrupt(proxy, make_client, elsewhere, 20, verify=False)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert min(starts(proxy)) == 0
    assert [event.message for event in events if event.message] == ["restarting: the interrupted pull was not verified"]


async def test_resume_without_verify_continues(
    push: Push, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await push()
    await interrupt(proxy, make_client, elsewhere, 20)

    await make_client(proxy, elsewhere, transfer={"verify": False}).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert min(starts(proxy)) == 20 * RANGE // PART * PART


@pytest.mark.parametrize("damaged", [18 * RANGE, 30 * RANGE])
async def test_resume_within_large_part(
    push: Push,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: int,
) -> None:
    """The rest of that part is not verified, and the next part is."""
    monkeypatch.setattr(verify, "MAX_REPEATED", 20 * RANGE)
    proxy = await push(part=25 * RANGE)
    await interrupt(proxy, make_client, elsewhere, 15)
    proxy.add_fault(GET, flip(damaged), times=None)
    api = make_client(proxy, elsewhere)

    if damaged < 25 * RANGE:
        await api.models.pull("mod:m1")
        assert contents(elsewhere / "models/mod/m1").keys() == contents(home / "models/mod/m1").keys()
    else:
        with pytest.raises(IntegrityError, match="part 2 of its tar"):
            await api.models.pull("mod:m1")
        assert is_clean(elsewhere)
    assert 10 * RANGE < min(starts(proxy)) <= 15 * RANGE


async def test_pull_after_damage_restarts(push: Push, make_client: MakeClient, home: Path, elsewhere: Path) -> None:
    proxy = await push()
    proxy.add_fault(GET, flip(20 * RANGE), times=None)
    with pytest.raises(IntegrityError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")
    proxy._rules.pop()
    proxy.requests.clear()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_pulled(home, elsewhere)
    assert min(starts(proxy)) == 0


async def test_damage_then_error_keeps_nothing(
    push: Push, make_client: MakeClient, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large part, the state lies behind the damaged byte."""
    monkeypatch.setattr(verify, "MAX_REPEATED", MiB)
    proxy = await push(part=10 * MiB)
    tar, _ = await stored(proxy)
    proxy.add_fault(GET, refuse(400, code="InvalidRequest"), skip=-(-len(tar) // RANGE), times=None)
    proxy.add_fault(GET, flip(20 * RANGE), times=None)

    with pytest.raises(PartError, match="InvalidRequest"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert is_clean(elsewhere)


# The verifier alone


SIZES = [10, 10, 5]
BYTES = random_bytes(25, 8)


def checksums_of(data: bytes = BYTES, etag: str = '"abc"') -> ChecksumsSchema:
    ends = [10, 20, 25]
    parts = [(size, hashlib.md5(data[end - size : end]).hexdigest()) for size, end in zip(SIZES, ends, strict=True)]
    return ChecksumsSchema(size=len(data), etag=etag, parts=parts)


@pytest.mark.parametrize(
    ("largest", "points"),
    [
        (10, {0: 0, 1: 10, 10: 10, 11: 20, 20: 20, 21: 25, 25: 25, 26: 26}),
        (9, {0: 0, 1: 1, 10: 10, 11: 11, 21: 25, 25: 25}),
    ],
)
def test_verifier_resumes_at_part(monkeypatch: pytest.MonkeyPatch, largest: int, points: dict[int, int]) -> None:
    monkeypatch.setattr(verify, "MAX_REPEATED", largest)
    verifier = Verifier(checksums_of(), "cannot pull mod:m1")
    assert {position: verifier.next_checkpoint(position) for position in points} == points


@pytest.mark.parametrize(
    ("total", "etag", "is_same"),
    [
        (25, '"abc"', True),
        (25, '"ABC"', True),
        (None, None, True),
        (25, 'W/"other"', True),
        (24, '"abc"', False),
        (25, '"other"', False),
        (None, '"other"', False),
    ],
)
def test_checksums_are_of_object(total: int | None, etag: str | None, is_same: bool) -> None:
    if is_same:
        verify.check_object(checksums_of(), total, etag)
    else:
        with pytest.raises(verify.OtherObjectError):
            verify.check_object(checksums_of(), total, etag)
    verify.check_object(checksums_of(etag=""), 25, etag)  # of a registry that does not know it


class Collected:
    """Collects the bytes that a sink gets."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: list[bytes | memoryview]) -> None:
        self.data += b"".join(data)


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


@pytest.mark.parametrize("size", [1, 3, 10, 25])
@pytest.mark.parametrize(("start", "damaged"), [(0, 0), (0, 9), (0, 10), (0, 24), (10, 12), (12, 21), (20, 20)])
async def test_verifier_finds_damaged_part(threads: Threads, size: int, start: int, damaged: int) -> None:
    data = bytearray(BYTES)
    data[damaged] ^= 1
    verifier, sink = Verifier(checksums_of(), "cannot pull mod:m1", start), Collected()
    pieces = [bytes(data[offset : min(offset + size, 25)]) for offset in range(start, 25, size)]
    target: Any = sink

    with pytest.raises(verify.DamagedPartError) as caught:
        await verifier.feed(pieces, target, threads)

    number = damaged // 10 + 1
    stop = min(10 * number, 25)
    assert (caught.value.number, caught.value.start, caught.value.stop) == (number, 10 * (number - 1), stop)
    assert caught.value.expected == checksums_of().parts[number - 1][1]
    assert caught.value.actual == hashlib.md5(data[10 * (number - 1) : stop]).hexdigest()
    assert sink.data == data[start:stop]


async def test_verifier_skips_rest_of_part(threads: Threads) -> None:
    """What is before was verified by nobody, so the MD5 of the part is unknown."""
    verifier = Verifier(checksums_of(), "cannot pull mod:m1", 12)
    await verifier.check([b"x" * 8, BYTES[20:24]], threads)
    assert verifier.position == 24
    with pytest.raises(IntegrityError, match=r"^cannot pull mod:m1: 24 of 25 bytes arrived\. Try again\.$"):
        verifier.finish()
    await verifier.check([BYTES[24:]], threads)
    verifier.finish()
    with pytest.raises(IntegrityError, match="the storage sent more than 25 bytes"):
        await verifier.check([b"x"], threads)


def test_checksums_of_empty_part_are_valid() -> None:
    empty = (0, hashlib.md5().hexdigest())
    Verifier(checksums_of().model_copy(update={"parts": [*checksums_of().parts, empty]}), "cannot pull mod:m1")
