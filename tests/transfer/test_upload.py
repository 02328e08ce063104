"""Uploads of tars: the requests to the registry and to the storage."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from aiohttp import web

from async_bento import BentoError, Config, IntegrityError, PartError, SourceChangedError, StalledError
from async_bento._core.concurrency import ByteBudget, Threads
from async_bento._core.tag import Tag
from async_bento.errors import APIConnectionError, APIResponseError, APIStatusError, AuthenticationError, ServerError
from async_bento.progress.events import Progress
from async_bento.transfer import body as body_module, upload as upload_module
from async_bento.transfer.body import TarBody
from async_bento.transfer.http import ByteRange, TransferPool
from async_bento.transfer.tar import reader as reader_module
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.reader import TarReader
from async_bento.transfer.upload import Upload
from tests.builders import MiB, make_model, random_bytes
from tests.fault_proxy import (
    FINISH,
    PART,
    PUT,
    UPLOAD,
    FaultProxy,
    Hold,
    answer_json,
    answer_page,
    disconnect,
    disconnect_while_reading,
    in_sequence,
    lose_answer,
    no_fault,
    read_slowly,
    refuse,
    stop_reading,
    with_headers,
)
from tests.transfer.quiet import nothing_left, round_trips

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy


SMALL = random_bytes(300_000, 1)
THREE_PARTS = random_bytes(11 * MiB, 2)
FOUR_PARTS = random_bytes(16 * MiB, 3)


def files_of(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return {
            member.name.removeprefix("./"): opened.extractfile(member).read()  # type: ignore[union-attr]
            for member in opened
            if member.isfile()
        }


def outcomes(proxy: FaultProxy) -> list[tuple[str, str]]:
    """Return the status and reason of each report to the registry that an upload ended."""
    return [(request.json["status"], request.json["reason"]) for request in proxy.matching(FINISH)]


# The three strategies


async def test_registry_upload_is_one_put(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("proxy")

    result = await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching(UPLOAD)
    assert files_of(put.body)["weights"] == SMALL
    assert put.headers["Content-Length"] == str(len(put.body)) == str(result.bytes_sent)
    assert put.headers["Content-Type"] == "application/octet-stream"
    assert put.headers["X-YATAI-API-TOKEN"] == proxy.registry.api_token
    assert proxy.steps("upload|PUT") == ["PATCH mod/m1/start_upload", "PUT mod/m1/upload"]  # which ends it by itself


async def test_upload_presigned_is_one_put(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")

    result = await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching(PUT)
    assert files_of(put.body)["weights"] == SMALL
    assert len(put.body) == result.bytes_sent
    assert result.parts == 1
    assert proxy.steps("upload|PUT") == [
        "PATCH mod/m1/presign_upload_url",
        "PATCH mod/m1/start_upload",
        "PUT blob",
        "PATCH mod/m1/finish_upload",
    ]
    assert outcomes(proxy) == [("success", "")]


async def test_no_presigned_url_uses_registry(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto", presign=False)

    await make_client(proxy).models.push("mod:m1")

    assert proxy.steps("presign|PUT") == ["PATCH mod/m1/presign_upload_url", "PUT mod/m1/upload"]


async def test_multipart_parts_make_up_tar(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    proxy = await start_proxy()

    result = await make_client(proxy).models.push("mod:m1", threads=2)

    parts = {int(put.query["partNumber"]): put.body for put in proxy.matching("PUT part")}
    assert [len(parts[number]) for number in (1, 2)] == [5 * MiB, 5 * MiB]
    assert 0 < len(parts[3]) < 5 * MiB
    assert files_of(parts[1] + parts[2] + parts[3])["weights"] == THREE_PARTS
    assert (result.parts, result.bytes_sent) == (3, sum(map(len, parts.values())))
    assert outcomes(proxy) == [("success", "")]


@pytest.mark.parametrize("transmission", ["auto", "presigned_url"])
async def test_presigned_put_has_signed_headers(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)

    await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching("^PUT")
    assert put.headers["Content-Length"] == str(len(put.body))
    assert not put.headers.keys() & {"Content-Type", "Transfer-Encoding", "Content-Encoding", "Expect", "Cookie"}
    assert not put.headers.keys() & {"X-YATAI-API-TOKEN", "X-Yatai-Api-Token", "Authorization"}


async def test_above_put_limit_is_multipart(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    monkeypatch.setattr(upload_module, "MAX_PUT_SIZE", 6 * MiB)
    proxy = await start_proxy("auto", max_put_size=6 * MiB)

    result = await make_client(proxy).models.push("mod:m1")

    assert result.parts == 3
    assert sorted(proxy.steps("^PUT")) == ["PUT part 1", "PUT part 2", "PUT part 3"]


@pytest.mark.parametrize("status", [201, 204])
@pytest.mark.parametrize("transmission", ["auto", "presigned_url"])
async def test_any_success_status_accepted(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, status: int
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)

    async def respond(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        answer.set_status(status)
        return answer

    proxy.add_fault(PUT, respond, times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("^PUT")) == 1
    assert outcomes(proxy) == [("success", "")]


def test_upload_put_limit_is_5_gib() -> None:
    assert upload_module.MAX_PUT_SIZE == 5 * 1024**3


# Parts in flight


async def test_threads_limit_parts_in_flight(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    held = Hold(count=2)
    proxy.add_fault(PART, held, times=None)
    api = make_client(proxy)

    pushing = asyncio.create_task(api.models.push("mod:m1", threads=2))
    await held.arrived.wait()
    await round_trips(api)
    presigned_meanwhile = len(proxy.matching("presign"))
    held.released.set()
    result = await pushing

    assert result.parts == 4
    assert proxy.max_concurrent["PUT"] == 2
    assert presigned_meanwhile == 4  # one per worker, and the next one


@pytest.mark.parametrize("failures", [0, 2])
async def test_presigns_one_part_ahead(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, failures: int
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    held = Hold()
    proxy.add_fault(PART, in_sequence(*[refuse(500)] * failures, held), times=failures + 1)
    api = make_client(proxy)

    pushing = asyncio.create_task(api.models.push("mod:m1", threads=1))
    await held.arrived.wait()
    await round_trips(api)
    presigned_meanwhile = len(proxy.matching("presign"))
    held.released.set()
    await pushing

    assert presigned_meanwhile == 2 + failures  # a URL lives an hour, and a push may take longer
    assert len(proxy.matching("presign")) == 4 + failures


async def test_failure_stops_presigning(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    asked = Hold()
    proxy.add_fault("presign", asked, skip=1)
    proxy.add_fault(PART, refuse(400, code="InvalidRequest"))

    with pytest.raises(PartError, match="InvalidRequest"):
        await make_client(proxy).models.push("mod:m1", threads=1)

    asked.released.set()
    assert len(proxy.matching("presign")) <= 2
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "_presign" in repr(task.get_coro())]


async def test_concurrency_limits_uploads(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    for number in range(4):
        make_model(home, f"mod{number}:m1")
    proxy = await start_proxy()
    held = Hold(count=2)
    proxy.add_fault(PUT, held, times=None)
    api = make_client(proxy, transfer={"concurrency": 2})

    pushing = asyncio.gather(*(api.models.push(f"mod{number}:m1") for number in range(4)))
    await held.arrived.wait()
    await round_trips(api)
    held.released.set()
    await pushing

    assert proxy.max_concurrent["PUT"] == 2


async def test_completes_parts_in_order(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    proxy = await start_proxy()
    others_are_in = asyncio.Event()
    etags: dict[int, str] = {}

    async def first_is_last(exchange: Exchange) -> web.StreamResponse:
        number = int(exchange.logged.query["partNumber"])
        if number == 1:
            await others_are_in.wait()
        answer = await exchange.forward()
        etags[number] = answer.headers["ETag"]
        if {2, 3} <= etags.keys():
            others_are_in.set()
        return answer

    proxy.add_fault(PART, first_is_last, times=None)

    await make_client(proxy).models.push("mod:m1")

    (complete,) = proxy.matching("complete_multipart")
    assert list(etags)[-1] == 1
    assert complete.json["parts"] == [{"part_number": number, "etag": etags[number]} for number in (1, 2, 3)]
    assert all(etag.startswith('"') for etag in etags.values())


# Faults that are retried


TRANSIENT = {
    "500": refuse(500, code="InternalError"),
    "503": refuse(503),
    "429": refuse(429),
    "408": refuse(408),
    "503 before the body was read": refuse(503, read=False),
    "hang-up": disconnect,
    "hang-up in mid-body": disconnect_while_reading(100_000),
    "lost answer": lose_answer,
    "damaged": with_headers(ETag=f'"{"0" * 32}"'),
}


@pytest.mark.parametrize(
    ("transmission", "fault"),
    [
        pytest.param(way, fault, id=f"{way}-{name}")
        for way in ("auto", "presigned_url", "proxy")
        for name, fault in TRANSIENT.items()
        if (way, name) != ("proxy", "damaged")  # the registry gives no ETag
    ],
)
async def test_retry_sends_whole_body(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, fault: Fault
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy(transmission)
    whole: list[bytes] = []

    async def keep(exchange: Exchange) -> web.StreamResponse:
        whole.append(await exchange.read())
        return await exchange.forward()

    proxy.add_fault("^PUT", in_sequence(fault, keep), times=None)

    result = await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("^PUT")) == 2
    assert files_of(whole[0])["weights"] == SMALL
    assert result.bytes_sent == len(whole[0])
    assert all(request.body in {b"", whole[0]} for request in proxy.matching("^PUT"))


async def test_part_retry_sends_whole_part(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    proxy = await start_proxy()
    proxy.add_fault(
        "PUT .*partNumber=2", in_sequence(refuse(500), disconnect_while_reading(2 * MiB), no_fault), times=None
    )

    result = await make_client(proxy).models.push("mod:m1")

    assert sorted(proxy.steps("^PUT")) == ["PUT part 1", *["PUT part 2"] * 3, "PUT part 3"]
    first, _, again = (put.body for put in proxy.matching("PUT part 2"))
    assert first == again
    assert len(again) == 5 * MiB
    assert result.parts == 3
    assert outcomes(proxy) == [("success", "")]


async def test_part_retry_has_own_url(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PART, refuse(500))

    await make_client(proxy).models.push("mod:m1")

    assert proxy.steps("presign|PUT part") == [
        "PATCH mod/m1/presign_multipart_upload_url",
        "PUT part 1",
        "PATCH mod/m1/presign_multipart_upload_url",
        "PUT part 1",
    ]


@pytest.mark.parametrize("transmission", ["auto", "presigned_url"])
async def test_expired_url_presigned_again(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy(transmission)
    proxy.add_fault(PUT, refuse(403, code="AccessDenied"))

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT (blob|part)")) == 2
    assert len(proxy.matching("presign")) == 2
    assert outcomes(proxy) == [("success", "")]


async def test_retry_reduces_progress(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(500))
    events: list[ProgressEvent] = []

    result = await make_client(proxy, progress=events.append).models.push("mod:m1")

    counts = [event.bytes_done for event in events]
    assert max(counts) == counts[-1] == result.bytes_sent
    assert 0 in counts[counts.index(max(counts)) :]  # all bytes were counted once, then subtracted
    assert [event.phase for event in events if event.phase != "transferring"] == ["planning", "finishing", "done"]


async def test_last_retry_reports_storage_error(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PART, refuse(503, code="SlowDown"), times=None)

    with pytest.raises(PartError, match=r"part 1.*503 SlowDown: injected fault") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert (caught.value.status, caught.value.part_number) == (503, 1)
    assert "signature" not in str(caught.value)
    assert len(proxy.matching("PUT part")) == 3
    assert not proxy.matching("complete")
    ((status, reason),) = outcomes(proxy)
    assert status == "failed"
    assert reason == str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 411, 413])
async def test_permanent_error_has_no_retry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, status: int
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(status, code="InvalidRequest"), times=None)

    with pytest.raises(PartError) as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.status == status
    assert len(proxy.matching("PUT blob")) == 1
    assert outcomes(proxy)[0][0] == "failed"


@pytest.mark.parametrize("through", ["presigned_url", "auto", "proxy"])
async def test_full_disk_has_no_retry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, through: str
) -> None:
    make_model(home)
    proxy = await start_proxy(through)
    full = "the registry's disk is full: No space left on device"
    proxy.add_fault(PUT, refuse(507, code="InsufficientStorage", message=full), times=None)
    proxy.add_fault(UPLOAD, answer_json(507, {"error": full}), times=None)

    with pytest.raises(BentoError, match=f"507 .*: {full}. Free space for the registry, then try again.$") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert getattr(caught.value, "status", None) == 507
    assert len(proxy.matching(rf"{PUT}|{UPLOAD}")) == 1
    assert outcomes(proxy)[0][0] == "failed"


async def test_record_on_full_disk_has_no_retry(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("POST", answer_json(507, {"error": "the registry's disk is full"}), times=None)

    with pytest.raises(ServerError, match=r"the registry's disk is full. Free space for the registry, then try again"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("POST")) == 1


async def test_retry_after_above_limit_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(503, headers={"Retry-After": "86400"}), times=None)

    with pytest.raises(PartError) as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.retry_after == 86400
    assert len(proxy.matching("PUT blob")) == 1


async def test_registry_refusal_is_raised(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, answer_json(403, {"message": "not you"}), times=None)

    with pytest.raises(AuthenticationError, match=r"not you.*the api_token argument"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching(UPLOAD)) == 1


async def test_last_retry_reports_connection(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, disconnect, times=None)

    with pytest.raises(APIConnectionError, match=r"the connection to the registry at .* broke"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching(UPLOAD)) >= 3  # aiohttp itself repeats a request on a broken kept-alive connection


@pytest.mark.parametrize(
    "step", ["start_upload", "start_multipart", "presign_multipart", "complete_multipart", "finish_upload"]
)
async def test_lost_response_is_retried(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, step: str
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(step, lose_answer)
    api = make_client(proxy)

    await api.models.push("mod:m1")

    assert len(proxy.matching(step)) == 2
    assert (await api.models.get("mod:m1")).upload_status == "success"


# Digests


@pytest.mark.parametrize("transmission", ["auto", "presigned_url"])
async def test_wrong_digest_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"'), times=None)

    with pytest.raises(IntegrityError, match=r"MD5 0{32}"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT (blob|part)")) == 3
    assert not proxy.matching("complete")
    assert outcomes(proxy)[0][0] == "failed"


@pytest.mark.parametrize("etag", ['"d41d8cd98f00b204e9800998ecf8427e-1"', '"0x8DB1"', '"' + "0" * 40 + '"', "W/abc"])
async def test_etag_without_md5_not_verified(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, etag: str
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=etag), times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 1


@pytest.mark.parametrize(
    "encrypted",
    [
        {"x_amz_server_side_encryption": "aws:kms"},
        {"x_amz_server_side_encryption": "aws:kms:dsse"},
        {"x_amz_server_side_encryption_customer_algorithm": "AES256"},
    ],
    ids=["kms", "dsse", "customer"],
)
async def test_etag_of_kms_not_verified(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, encrypted: dict[str, str]
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"', **encrypted), times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 1


async def test_registry_etag_not_verified(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    """The registry's own ETag need not be an MD5 of the body."""
    make_model(home)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, with_headers(ETag=f'"{"0" * 32}"'), times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching(UPLOAD)) == 1


async def test_etag_of_sse_s3_verified(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"', x_amz_server_side_encryption="AES256"), times=None)

    with pytest.raises(IntegrityError):
        await make_client(proxy).models.push("mod:m1")


async def test_no_verify_computes_no_digest(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"'), times=None)

    class NoHashlib:
        @staticmethod
        def md5(*_: object, **__: object) -> None:
            raise AssertionError("nobody asked for a digest")

    monkeypatch.setattr(reader_module, "hashlib", NoHashlib)

    await make_client(proxy, transfer={"verify": False}).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 1


async def test_digest_known_before_response(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bytes wait for the digest; otherwise a fast response would be accepted unchecked."""
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")
    arrived: list[int] = []  # at the storage, when the digest became known

    async def count(exchange: Exchange) -> web.StreamResponse:
        arrived.append(0)
        async for chunk in exchange.request.content.iter_any():
            arrived[-1] += len(chunk)
        return web.Response(headers={"ETag": f'"{"0" * 32}"'})

    proxy.add_fault(PUT, count, times=None)
    known: list[int] = []

    class Md5:
        def __init__(self) -> None:
            self._md5 = hashlib.md5()

        def update(self, data: bytes) -> None:
            self._md5.update(data)

        def hexdigest(self) -> str:
            known.append(arrived[-1] if arrived else 0)
            return self._md5.hexdigest()

    class Hashlib:
        md5 = staticmethod(lambda **_: Md5())

    monkeypatch.setattr(reader_module, "hashlib", Hashlib)
    api = make_client(proxy, retry={"attempts": 1})

    with pytest.raises(IntegrityError):
        await api.models.push("mod:m1")

    assert known[0] < arrived[0]


async def test_early_success_is_retried(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(8 * MiB)})
    proxy = await start_proxy("auto")

    async def yes_at_once(exchange: Exchange) -> web.StreamResponse:
        return web.Response(headers={"ETag": '"whatever"'})

    proxy.add_fault(PUT, yes_at_once)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 2


@pytest.mark.parametrize(("way", "pattern"), [("presigned_url", PART), ("auto", PUT), ("proxy", UPLOAD)])
async def test_html_response_is_failure(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str, pattern: str
) -> None:
    make_model(home)
    proxy = await start_proxy(way)
    proxy.add_fault(pattern, answer_page(200), times=None)

    with pytest.raises((PartError, APIConnectionError), match="received an HTML page instead of a response"):
        await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy)[-1][0] == "failed"


async def test_upload_part_without_etag_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PART, with_headers(ETag=None), times=None)

    with pytest.raises(IntegrityError, match=r"part 1.*no ETag"):
        await make_client(proxy).models.push("mod:m1")

    assert not proxy.matching("complete")


async def test_put_without_etag_succeeds(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=None))

    await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy) == [("success", "")]


# The source


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda path: path.write_bytes(SMALL + b"more"),
    "shrunk": lambda path: path.write_bytes(SMALL[:-4]),
    "touched": _touch,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("transmission", ["auto", "presigned_url", "proxy"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_changed_file_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, change: Callable[[Path], object]
) -> None:
    weights = make_model(home, files={"weights": SMALL}) / "weights"
    proxy = await start_proxy(transmission)

    async def change_it(exchange: Exchange) -> web.StreamResponse:
        change(weights)
        return await exchange.forward()

    proxy.add_fault("start_upload", change_it)

    with pytest.raises(SourceChangedError, match="weights") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.path == str(weights)
    assert not proxy.matching("complete")
    ((status, reason),) = outcomes(proxy)
    assert status == "failed"
    assert "weights changed during the push" in reason
    assert len(proxy.matching("^PUT")) <= 1  # a retry would read the same file


async def test_changed_between_parts_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    weights = make_model(home, files={"weights": THREE_PARTS}) / "weights"
    proxy = await start_proxy()

    async def change_it(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        os.utime(weights, ns=(1, 1))
        return answer

    proxy.add_fault(PART, change_it)

    with pytest.raises(SourceChangedError):
        await make_client(proxy).models.push("mod:m1", threads=1)

    assert proxy.matching("PUT part 1")
    assert not proxy.matching("complete|PUT part 3")
    assert outcomes(proxy)[0][0] == "failed"


async def test_changed_within_part_cut_off(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    weights = make_model(home, files={"weights": random_bytes(6 * MiB)}) / "weights"
    proxy = await start_proxy()
    arrived: list[int] = []

    async def touch_it(exchange: Exchange) -> web.StreamResponse:
        with suppress(web.RequestPayloadError, ConnectionError):
            async for chunk in exchange.request.content.iter_any():
                arrived.append(len(chunk))
                if sum(arrived) > 2 * MiB:  # the file is open by then, and is checked after the read
                    os.utime(weights, ns=(1, 1))
        return web.Response()

    proxy.add_fault(PART, touch_it)

    with pytest.raises(SourceChangedError):
        await make_client(proxy).models.push("mod:m1", threads=1)

    assert 0 < sum(arrived) < 5 * MiB


@pytest.mark.posix("names that are not Unicode")
async def test_undecodable_filename_reported(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    model = make_model(home)
    strange = model / os.fsdecode(b"w\xff")
    strange.write_bytes(b"x")
    proxy = await start_proxy("auto")

    async def change_it(exchange: Exchange) -> web.StreamResponse:
        os.utime(strange, ns=(1, 1))
        return await exchange.forward()

    proxy.add_fault("start_upload", change_it)

    with pytest.raises(SourceChangedError):
        await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy)[0][0] == "failed"


# Failure and cancellation


async def test_failed_part_cancels_others(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    proxy = await start_proxy()
    held = Hold(count=2)

    async def fail_when_others_fly(exchange: Exchange) -> web.StreamResponse:
        await held.arrived.wait()
        return await refuse(400, code="BadDigest")(exchange)

    proxy.add_fault("PUT .*partNumber=1", fail_when_others_fly, times=None)
    proxy.add_fault(PART, held, times=None)
    api = make_client(proxy)

    async with nothing_left(api):
        with pytest.raises(PartError, match="BadDigest"):
            await api.models.push("mod:m1")

    assert not proxy.matching("complete")
    assert [status for status, _ in outcomes(proxy)] == ["failed"]


async def test_several_failed_parts_raise_one(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": THREE_PARTS})
    proxy = await start_proxy()
    proxy.add_fault(PART, refuse(400, code="BadDigest"), times=None)
    api = make_client(proxy)

    async with nothing_left(api):
        with pytest.raises(PartError, match="BadDigest"):
            await api.models.push("mod:m1")


STEPS = {
    "presigned_url": ["start_upload", "start_multipart", "presign_multipart", "^PUT", "complete", "finish_upload"],
    "auto": ["presign_upload", "start_upload", "^PUT", "finish_upload"],
    "proxy": ["start_upload", "^PUT"],
}
EACH_STEP = [(way, step) for way, steps in STEPS.items() for step in steps]


@pytest.mark.parametrize(("transmission", "step"), EACH_STEP)
async def test_failed_at_any_step_reported(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, step: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)
    fault = refuse(400, code="no") if "PUT" in step and transmission != "proxy" else answer_json(400, {"error": "no"})
    proxy.add_fault(step, fault)
    api = make_client(proxy)

    async with nothing_left(api):
        with pytest.raises(Exception, match="no") as caught:
            await api.models.push("mod:m1")

    assert isinstance(caught.value, BentoError)  # and no group of them
    assert outcomes(proxy)[-1] == ("failed", str(caught.value))
    assert (await api.models.get("mod:m1")).upload_status == "failed"


@pytest.mark.parametrize(("transmission", "step"), EACH_STEP)
async def test_cancelled_at_any_step_reported(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, step: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)
    held = Hold()
    proxy.add_fault(step, held)
    api = make_client(proxy)

    async with nothing_left(api):
        pushing = asyncio.create_task(api.models.push("mod:m1"))
        await held.arrived.wait()
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
    held.released.set()

    assert outcomes(proxy)[-1] == ("failed", "cancelled")


async def test_cancelled_twice_reported(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    sending, telling = Hold(), Hold()
    proxy.add_fault(PUT, sending)
    proxy.add_fault(FINISH, telling)
    api = make_client(proxy)

    async with nothing_left(api):
        pushing = asyncio.create_task(api.models.push("mod:m1"))
        await sending.arrived.wait()
        pushing.cancel()
        await telling.arrived.wait()
        pushing.cancel()
        await round_trips(api, 2)
        assert not pushing.done()
        telling.released.set()
        with pytest.raises(asyncio.CancelledError):
            await pushing
    sending.released.set()

    assert (await api.models.get("mod:m1")).upload_status == "failed"


async def test_cancel_waits_for_read_threads(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    reading, go_on = threading.Event(), threading.Event()
    read_small = TarReader._read_small

    def slowly(self: TarReader, stop: int) -> bytes:
        reading.set()
        go_on.wait(10)
        return read_small(self, stop)

    monkeypatch.setattr(TarReader, "_read_small", slowly)
    api = make_client(proxy)

    async with nothing_left(api):
        pushing = asyncio.create_task(api.models.push("mod:m1"))
        await asyncio.to_thread(reading.wait, 10)
        pushing.cancel()
        await round_trips(api, 8)
        reported = proxy.matching(FINISH)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pushing

    assert not reported
    assert outcomes(proxy) == [("failed", "cancelled")]


async def test_cancelled_scope_reported(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    held = Hold()
    proxy.add_fault(PUT, held)
    api = make_client(proxy)

    async with nothing_left(api), anyio.create_task_group() as group:
        group.start_soon(api.models.push, "mod:m1")
        await held.arrived.wait()
        group.cancel_scope.cancel()
    held.released.set()

    assert (await api.models.get("mod:m1")).upload_status == "failed"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (answer_json(500, {"error": "also broken"}), "also broken"),
        (disconnect, "the connection to the registry"),
        (answer_json(200, ["no item"]), ""),
        (refuse(404), "404"),
    ],
    ids=["500", "hang-up", "no item", "404"],
)
async def test_unreportable_failure_raised(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    fault: Fault,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(400, code="TheRealReason"), times=None)
    proxy.add_fault(FINISH, fault, times=None)

    with pytest.raises(PartError, match="TheRealReason"):
        await make_client(proxy).models.push("mod:m1")

    assert proxy.matching(FINISH)
    _, _, reported = caplog.text.partition("cannot report the failed push of mod:m1 to the registry: ")
    assert reported
    assert why in reported


async def test_closed_client_failure_raised(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(400, code="TheRealReason"), times=None)
    api = make_client(proxy)

    async def session_is_closed(*_: object) -> None:
        raise RuntimeError("Session is closed")

    monkeypatch.setattr(type(api.models._kind.routes), "finish_upload", session_is_closed)

    with pytest.raises(PartError, match="TheRealReason"):
        await api.models.push("mod:m1")


async def test_failure_report_times_out(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_model(home)
    monkeypatch.setattr(upload_module, "REPORT_TIMEOUT", 0.05)
    proxy = await start_proxy("auto")
    held = Hold()
    proxy.add_fault(PUT, refuse(400, code="TheRealReason"), times=None)
    proxy.add_fault(FINISH, held, times=None)
    api = make_client(proxy)

    async with nothing_left(api):
        with pytest.raises(PartError, match="TheRealReason"):
            await api.models.push("mod:m1")
    held.released.set()

    assert "cannot report the failed push of mod:m1 to the registry: TimeoutError" in caplog.text


async def test_stalled_storage_times_out(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever), times=None)
    # `complete` is the bound where the system does not report acknowledged bytes.
    api = make_client(proxy, timeouts={"stall": 0.2, "complete": 0.2}, retry={"attempts": 1})

    async with nothing_left(api):
        with pytest.raises(StalledError, match=r"no byte was transferred for 0\.2 s"):
            await api.models.push("mod:m1")
    forever.set()

    assert outcomes(proxy)[0][0] == "failed"


async def test_slow_connection_no_stall(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "WRITE_SIZE", 64 * MiB)  # one write takes all the time
    make_model(home, files={"weights": random_bytes(32 * MiB)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, read_slowly(5 * MiB, 12 * MiB))
    api = make_client(proxy, timeouts={"stall": 0.8}, retry={"attempts": 1}, transfer={"io_chunk": 64 * MiB})

    await api.models.push("mod:m1")

    assert outcomes(proxy) == [("success", "")]


async def test_throttling_pauses_all_parts(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=1", refuse(503, headers={"Retry-After": "0.5"}, read=False))

    await make_client(proxy).models.push("mod:m1", threads=2)

    refused = proxy.matching("PUT part 1")[0]
    others = [request for request in proxy.matching("PUT part") if request is not refused]
    assert len(others) == 4
    assert [request.step for request in others if request.at < refused.at + 0.5] in ([], ["PUT part 2"])  # it had begun


async def test_rewind_resets_acknowledged(tmp_path: Path) -> None:
    """Otherwise, the watchdog of the next attempt would start with the bytes of the last one."""
    await asyncio.to_thread((tmp_path / "weights").write_bytes, b"weights")
    threads = Threads(1)
    plan = await threads.run(TarPlan.scan, tmp_path)
    pool = TransferPool(Config(), threads, asyncio.Semaphore(1), ByteBudget(1))
    body = TarBody(plan, ByteRange(0, plan.size), pool, Progress("push", "model", "mod:m1", None), digest=False)

    class Writer:
        transport = None

        async def write(self, chunk: bytes) -> None:
            pass

    assert body.acknowledged is None
    await body.write(Writer())
    assert body.acknowledged == plan.size
    body.rewind()
    assert body.acknowledged is None
    threads.close()


async def test_retry_after_stall_succeeds(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever))

    await make_client(proxy, timeouts={"stall": 0.5, "complete": 0.5}).models.push("mod:m1")
    forever.set()

    assert len(proxy.matching("PUT blob")) == 2
    assert outcomes(proxy) == [("success", "")]


async def test_failed_start_waits_for_multipart(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    """The registry may handle a request after the report of the failure."""
    make_model(home)
    proxy = await start_proxy()
    held = Hold()
    proxy.add_fault("start_upload", answer_json(400, {"error": "no"}))
    proxy.add_fault("start_multipart", held)
    api = make_client(proxy)

    pushing = asyncio.create_task(api.models.push("mod:m1"))
    await held.arrived.wait()
    await proxy.wait_for("start_upload", 1)
    await round_trips(api)
    reported = outcomes(proxy)
    held.released.set()
    with pytest.raises(BentoError, match="no"):
        await pushing

    assert not reported
    assert outcomes(proxy)[0][0] == "failed"


@pytest.mark.parametrize("response", [{"upload_id": ""}, {}], ids=["empty", "absent"])
async def test_multipart_no_upload_id_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, response: dict[str, str]
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("start_multipart", answer_json(200, {"version": "m1", **response}))

    with pytest.raises(APIResponseError, match="upload_id"):
        await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy)[0][0] == "failed"


async def test_multipart_no_part_url_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("presign_multipart", answer_json(200, {"version": "m1"}), times=None)

    with pytest.raises(APIResponseError, match="mod:m1: the registry's response has no presigned upload URL") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.field == "presigned_upload_url"
    assert len(proxy.matching("presign")) == 1


async def test_registry_error_raised(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("complete", answer_json(500, {"error": "no disk"}), times=None)

    with pytest.raises(ServerError, match="no disk"):
        await make_client(proxy).models.push("mod:m1")


async def test_part_without_etag_is_retried(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=2", with_headers(ETag=None))

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT part 2")) == 2
    assert outcomes(proxy) == [("success", "")]


# Decisions


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        *((PartError("", status=status), True) for status in (400, 404, 409, 410)),
        *((PartError("", status=status), False) for status in (403, 500, None)),
        (APIStatusError("", status=410), True),
        (APIStatusError("", status=403), False),
        (APIStatusError("", status=403, server_message="NoSuchUpload: it is completed"), True),
        (ServerError("", status=400), False),
        (ServerError("", status=500, server_message="NoSuchUpload"), True),
        (StalledError(""), False),
    ],
)
def test_upload_is_gone_by_error(error: BentoError, is_gone: bool) -> None:
    assert upload_module._is_upload_gone(error) is is_gone


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        *((PartError("", status=status), True) for status in (300, 400, 499)),
        *((PartError("", status=status), False) for status in (206, 500, None)),
        (APIStatusError("", status=403), True),
        (APIStatusError("", status=502), False),
        (StalledError(""), False),
    ],
)
def test_upload_is_refused_by_error(error: BentoError, is_refusal: bool) -> None:
    assert upload_module._is_refusal(error) is is_refusal


@pytest.mark.parametrize(
    ("part_size", "size", "is_allowed"),
    [
        (5 * MiB, 1, True),
        (5 * MiB - 1, 1, False),
        (5120 * MiB, 5121 * MiB, True),
        (5120 * MiB + 1, 5121 * MiB, False),
        (5 * MiB, 50_000 * MiB, True),
        (5 * MiB, 50_000 * MiB + 1, False),
    ],
)
def test_upload_parts_allowed_by_s3(part_size: int, size: int, is_allowed: bool) -> None:
    assert upload_module._is_allowed(part_size, size) is is_allowed


@pytest.mark.parametrize(
    ("way", "statuses", "asked"),
    [
        ("proxy", ["failed"], 1),
        ("proxy", ["uploading", "uploading", "failed"], 3),
        ("proxy", [None], 1),
        ("proxy", ["uploading"] * 20, 10),
        ("presigned_url", ["uploading"], 0),
    ],
)
async def test_upload_restore_waits_for_registry(
    monkeypatch: pytest.MonkeyPatch, way: str, statuses: list[str | None], asked: int
) -> None:
    """The registry records a broken request once it has noticed, and would overwrite an earlier report."""
    monkeypatch.setattr(upload_module, "_STATUS_INTERVAL", 0)
    left, finished = list(statuses), list[tuple[int, str, str]]()

    async def get(*_: str) -> object:
        status = left.pop(0)
        return None if status is None else SimpleNamespace(upload_status=status)

    async def finish_upload(name: str, version: str, outcome: Any) -> None:
        finished.append((len(left), outcome.status, outcome.reason))

    routes: Any = SimpleNamespace(get=get, finish_upload=finish_upload)
    pool: Any = None
    record: Any = SimpleNamespace(upload_finished_reason="as before")
    upload = Upload(routes, Tag("mod", "m1"), pool, Progress("push", "model", "mod:m1", None), None)
    upload._way = way

    await upload._restore(record)

    assert finished == [(len(statuses) - asked, "success", "as before")]
