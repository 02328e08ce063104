"""A tar's way to the registry: what the registry and the storage see of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from aiohttp import web

from async_bento import BentoError, IntegrityError, PartError, SourceChangedError, StalledError
from async_bento.errors import APIConnectionError, APIResponseError, AuthenticationError, ServerError
from async_bento.transfer import http as body_module, upload as upload_module
from async_bento.transfer.tar.plan import TarPlan
from tests.builders import MiB, make_model, noise
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


SMALL = noise(300_000, 1)
THREE_PARTS = noise(11 * MiB, 2)
FOUR_PARTS = noise(16 * MiB, 3)


def files_of(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return {
            member.name.removeprefix("./"): opened.extractfile(member).read()  # type: ignore[union-attr]
            for member in opened
            if member.isfile()
        }


def outcomes(proxy: FaultProxy) -> list[tuple[str, str]]:
    """How the registry was told that it ended."""
    return [(request.json["status"], request.json["reason"]) for request in proxy.matching(FINISH)]


# The three ways


async def test_a_push_through_the_registry_is_one_put_of_the_whole_tar(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("proxy")

    result = await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching(UPLOAD)
    assert files_of(put.body)["weights"] == SMALL
    assert put.headers["Content-Length"] == str(len(put.body)) == str(result.bytes_sent)
    assert put.headers["Content-Type"] == "application/octet-stream"
    assert put.headers["X-YATAI-API-TOKEN"] == proxy.registry.api_token
    assert proxy.steps("upload|PUT") == ["PATCH mod/m1/start_upload", "PUT mod/m1/upload"]  # which ends it by itself


async def test_a_presigned_push_is_one_put_of_the_whole_tar(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_a_registry_that_presigns_nothing_gets_the_tar_itself(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto", presign=False)

    await make_client(proxy).models.push("mod:m1")

    assert proxy.steps("presign|PUT") == ["PATCH mod/m1/presign_upload_url", "PUT mod/m1/upload"]


async def test_a_multipart_push_cuts_the_tar_into_parts_that_make_it_up(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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
async def test_a_presigned_put_has_a_length_and_nothing_that_was_not_signed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)

    await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching("^PUT")
    assert put.headers["Content-Length"] == str(len(put.body))
    assert not put.headers.keys() & {"Content-Type", "Transfer-Encoding", "Content-Encoding", "Expect", "Cookie"}
    assert not put.headers.keys() & {"X-YATAI-API-TOKEN", "X-Yatai-Api-Token", "Authorization"}


async def test_a_tar_that_one_put_cannot_carry_goes_in_parts_whatever_the_registry_said(
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
async def test_a_storage_may_say_yes_in_other_words(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, status: int
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)

    async def say(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        answer.set_status(status)
        return answer

    proxy.add_fault(PUT, say, times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("^PUT")) == 1
    assert outcomes(proxy) == [("success", "")]


def test_one_put_carries_5_gib_as_s3_has_it() -> None:
    assert upload_module.MAX_PUT_SIZE == 5 * 1024**3


# Parts in flight


async def test_as_many_parts_as_threads_are_in_flight_and_no_more(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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
    assert presigned_meanwhile == 4  # each worker's, and the one that follows


async def test_the_next_part_is_presigned_while_one_is_sent_and_no_more_than_that(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    held = Hold()
    proxy.add_fault(PART, held)
    api = make_client(proxy)

    pushing = asyncio.create_task(api.models.push("mod:m1", threads=1))
    await held.arrived.wait()
    await round_trips(api)
    presigned_meanwhile = len(proxy.matching("presign"))
    held.released.set()
    await pushing

    assert presigned_meanwhile == 2  # a URL lives an hour, and a push may take longer
    assert len(proxy.matching("presign")) == 4


async def test_a_push_that_fails_asks_for_no_more_urls(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    asked = Hold()
    proxy.add_fault("presign", asked, skip=1)
    proxy.add_fault(PART, refuse(400, code="InvalidRequest"))

    with pytest.raises(PartError, match="InvalidRequest"):
        await make_client(proxy).models.push("mod:m1", threads=1)

    asked.released.set()
    assert len(proxy.matching("presign")) <= 2
    assert not [task for task in asyncio.all_tasks() if "_presign" in repr(task.get_coro())]


async def test_one_budget_bounds_the_bytes_in_flight_of_all_items(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_the_parts_are_completed_in_ascending_order_with_their_etags_as_they_came(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


# What goes wrong and is tried again


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
async def test_what_failed_on_its_way_is_sent_again_from_its_first_byte(
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


async def test_a_part_that_fails_is_sent_again_from_its_start(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_each_try_of_a_part_has_a_url_of_its_own(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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
async def test_an_expired_url_is_presigned_anew(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy(transmission)
    proxy.add_fault(PUT, refuse(403, code="AccessDenied"))

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT (blob|part)")) == 2
    assert len(proxy.matching("presign")) == 2
    assert outcomes(proxy) == [("success", "")]


async def test_what_was_sent_in_vain_is_taken_back_from_the_progress(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(500))
    events: list[ProgressEvent] = []

    result = await make_client(proxy, progress=events.append).models.push("mod:m1")

    counts = [event.bytes_done for event in events]
    assert max(counts) == counts[-1] == result.bytes_sent
    assert 0 in counts[counts.index(max(counts)) :]  # all of it had gone once, and was taken back
    assert [event.phase for event in events if event.phase != "transferring"] == ["planning", "finishing", "done"]


async def test_a_fault_that_stays_is_told_with_what_the_storage_said(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PART, refuse(503, code="SlowDown"), times=None)

    with pytest.raises(PartError, match=r"part 1.*503 SlowDown: said the storage") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert (caught.value.status, caught.value.part_number) == (503, 1)
    assert "signature" not in str(caught.value)
    assert len(proxy.matching("PUT part")) == 3
    assert not proxy.matching("complete")
    ((status, reason),) = outcomes(proxy)
    assert status == "failed"
    assert reason == str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 411, 413])
async def test_a_refusal_that_will_stay_is_not_tried_again(
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


async def test_a_longer_retry_after_than_is_bearable_ends_the_push(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(503, headers={"Retry-After": "86400"}), times=None)

    with pytest.raises(PartError) as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.retry_after == 86400
    assert len(proxy.matching("PUT blob")) == 1


async def test_a_redirect_is_not_followed(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(307, code="TemporaryRedirect", headers={"Location": f"{proxy.endpoint}/stolen?x=1"}))

    with pytest.raises(PartError, match="307"):
        await make_client(proxy).models.push("mod:m1")

    assert not proxy.matching("stolen")


async def test_a_registry_that_refuses_the_bytes_is_told_of_as_the_registry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, answer_json(403, {"message": "not you"}), times=None)

    with pytest.raises(AuthenticationError, match=r"not you.*the api_token argument"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching(UPLOAD)) == 1


async def test_a_registry_that_keeps_breaking_off_is_told_of_as_a_lost_connection(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, disconnect, times=None)

    with pytest.raises(APIConnectionError, match=r"the connection to the registry at .* broke"):
        await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching(UPLOAD)) >= 3  # aiohttp tries once more by itself where a kept connection breaks


@pytest.mark.parametrize(
    "step", ["start_upload", "start_multipart", "presign_multipart", "complete_multipart", "finish_upload"]
)
async def test_a_step_whose_answer_was_lost_is_taken_again(
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
async def test_bytes_that_never_arrive_as_they_were_sent_are_an_error(
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
async def test_an_etag_that_is_no_md5_is_left_alone(
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
async def test_an_etag_that_s3_made_of_encrypted_bytes_is_left_alone(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, encrypted: dict[str, str]
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"', **encrypted), times=None)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 1


async def test_s3_s_own_encryption_leaves_the_md5_as_it_was(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"', x_amz_server_side_encryption="AES256"), times=None)

    with pytest.raises(IntegrityError):
        await make_client(proxy).models.push("mod:m1")


async def test_without_verify_no_digest_is_computed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, with_headers(ETag=f'"{"0" * 32}"'), times=None)

    class NoHashlib:
        @staticmethod
        def md5(*_: object, **__: object) -> None:
            raise AssertionError("nobody asked for a digest")

    monkeypatch.setattr(body_module, "hashlib", NoHashlib)

    await make_client(proxy, transfer={"verify": False}).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 1


async def test_no_answer_comes_before_the_digest_is_known(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that is quicker than the hash would be believed without it: the last bytes go when it is known."""
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

    monkeypatch.setattr(body_module, "hashlib", Hashlib)
    api = make_client(proxy, retry={"attempts": 1})

    with pytest.raises(IntegrityError):
        await api.models.push("mod:m1")

    assert known[0] < arrived[0]


async def test_a_storage_that_says_yes_before_it_has_everything_is_not_believed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": noise(8 * MiB)})
    proxy = await start_proxy("auto")

    async def yes_at_once(exchange: Exchange) -> web.StreamResponse:
        return web.Response(headers={"ETag": '"whatever"'})

    proxy.add_fault(PUT, yes_at_once)

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT blob")) == 2


@pytest.mark.parametrize(("way", "pattern"), [("presigned_url", PART), ("auto", PUT), ("proxy", UPLOAD)])
async def test_a_page_is_no_yes(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str, pattern: str
) -> None:
    make_model(home)
    proxy = await start_proxy(way)
    proxy.add_fault(pattern, answer_page(200), times=None)

    with pytest.raises((PartError, APIConnectionError), match="received an HTML page instead of a response"):
        await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy)[-1][0] == "failed"


async def test_a_part_without_an_etag_cannot_be_completed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PART, with_headers(ETag=None), times=None)

    with pytest.raises(IntegrityError, match=r"part 1.*no ETag"):
        await make_client(proxy).models.push("mod:m1")

    assert not proxy.matching("complete")


async def test_one_put_needs_no_etag(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
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
async def test_a_file_that_changes_under_a_push_ends_it(
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
    assert len(proxy.matching("^PUT")) <= 1  # it would change nothing to try again


async def test_a_file_that_changes_between_two_parts_leaves_the_upload_open(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_a_part_never_arrives_whole_when_its_file_changes_while_it_goes_out(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    weights = make_model(home, files={"weights": noise(6 * MiB)}) / "weights"
    proxy = await start_proxy()
    arrived: list[int] = []

    async def touch_it(exchange: Exchange) -> web.StreamResponse:
        with suppress(web.RequestPayloadError, ConnectionError):
            async for chunk in exchange.request.content.iter_any():
                arrived.append(len(chunk))
                if sum(arrived) > 2 * MiB:  # the file is open by then, and is looked at when it has been read
                    os.utime(weights, ns=(1, 1))
        return web.Response()

    proxy.add_fault(PART, touch_it)

    with pytest.raises(SourceChangedError):
        await make_client(proxy).models.push("mod:m1", threads=1)

    assert 0 < sum(arrived) < 5 * MiB


async def test_a_registry_hears_of_a_failure_that_names_a_file_in_no_encoding(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_one_part_that_fails_ends_the_others_and_is_what_is_raised(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_of_several_parts_that_fail_one_is_raised(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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
async def test_a_failure_at_any_step_is_told_to_the_registry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str, step: str
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)
    said = refuse(400, code="no") if "PUT" in step and transmission != "proxy" else answer_json(400, {"error": "no"})
    proxy.add_fault(step, said)
    api = make_client(proxy)

    async with nothing_left(api):
        with pytest.raises(Exception, match="no") as caught:
            await api.models.push("mod:m1")

    assert isinstance(caught.value, BentoError)  # and no group of them
    assert outcomes(proxy)[-1] == ("failed", str(caught.value))
    assert (await api.models.get("mod:m1")).upload_status == "failed"


@pytest.mark.parametrize(("transmission", "step"), EACH_STEP)
async def test_a_push_cancelled_at_any_step_ends_and_tells_the_registry(
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


async def test_a_push_cancelled_twice_still_tells_the_registry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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


async def test_a_cancelled_push_ends_when_no_thread_reads_for_it_any_more(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    reading, go_on = threading.Event(), threading.Event()
    read_small = TarPlan._read_small

    def slowly(self: TarPlan, start: int, stop: int, large: int) -> bytes:
        reading.set()
        go_on.wait(10)
        return read_small(self, start, stop, large)

    monkeypatch.setattr(TarPlan, "_read_small", slowly)
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


async def test_a_push_in_a_cancelled_scope_tells_the_registry(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
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
    "fault",
    [answer_json(500, {"error": "also broken"}), disconnect, answer_json(200, ["no item"]), refuse(404)],
    ids=["500", "hang-up", "no item", "404"],
)
async def test_a_registry_that_cannot_be_told_does_not_hide_what_went_wrong(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, fault: Fault
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(400, code="TheRealReason"), times=None)
    proxy.add_fault(FINISH, fault, times=None)

    with pytest.raises(PartError, match="TheRealReason"):
        await make_client(proxy).models.push("mod:m1")

    assert proxy.matching(FINISH)


async def test_a_client_closed_under_a_push_does_not_hide_what_went_wrong(
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


async def test_a_registry_that_does_not_answer_holds_a_failed_push_only_so_long(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
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


async def test_a_storage_that_stops_reading_is_not_waited_for_for_ever(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever), times=None)
    api = make_client(proxy, timeouts={"stall": 0.2}, retry={"attempts": 1})

    async with nothing_left(api):
        with pytest.raises(StalledError, match=r"no byte moved for 0\.2 s"):
            await api.models.push("mod:m1")
    forever.set()

    assert outcomes(proxy)[0][0] == "failed"


async def test_a_connection_that_is_slow_is_not_taken_for_one_that_has_stalled(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "WRITE_SIZE", 64 * MiB)  # one write takes all the time
    make_model(home, files={"weights": noise(32 * MiB)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, read_slowly(5 * MiB, 12 * MiB))
    api = make_client(proxy, timeouts={"stall": 0.8}, retry={"attempts": 1}, transfer={"io_chunk": 64 * MiB})

    await api.models.push("mod:m1")

    assert outcomes(proxy) == [("success", "")]


async def test_a_storage_that_is_busy_is_left_alone_by_all_who_send(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=1", refuse(503, headers={"Retry-After": "0.5"}, read=False))

    await make_client(proxy).models.push("mod:m1", threads=2)

    refused, *others = sorted(proxy.matching("PUT part"), key=lambda request: request.at)
    assert refused.step == "PUT part 1"
    assert len(others) == 4
    assert [request.step for request in others if request.at < refused.at + 0.5] in ([], ["PUT part 2"])  # it had begun


async def test_a_push_that_stalled_once_goes_on(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"weights": SMALL})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever))

    await make_client(proxy, timeouts={"stall": 0.5}).models.push("mod:m1")
    forever.set()

    assert len(proxy.matching("PUT blob")) == 2
    assert outcomes(proxy) == [("success", "")]


@pytest.mark.parametrize("said", [{"upload_id": ""}, {}], ids=["empty", "absent"])
async def test_a_registry_that_begins_no_multipart_upload_is_told_of(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, said: dict[str, str]
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("start_multipart", answer_json(200, {"version": "m1", **said}))

    with pytest.raises(APIResponseError, match="upload_id"):
        await make_client(proxy).models.push("mod:m1")

    assert outcomes(proxy)[0][0] == "failed"


async def test_a_registry_that_presigns_no_part_is_told_of(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("presign_multipart", answer_json(200, {"version": "m1"}), times=None)

    with pytest.raises(APIResponseError, match="mod:m1: the registry's response has no presigned upload URL") as caught:
        await make_client(proxy).models.push("mod:m1")

    assert caught.value.field == "presigned_upload_url"
    assert len(proxy.matching("presign")) == 1


async def test_the_registry_s_own_fault_is_raised_as_such(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("complete", answer_json(500, {"error": "no disk"}), times=None)

    with pytest.raises(ServerError, match="no disk"):
        await make_client(proxy).models.push("mod:m1")


async def test_a_part_for_which_no_etag_was_given_is_sent_again(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": FOUR_PARTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=2", with_headers(ETag=None))

    await make_client(proxy).models.push("mod:m1")

    assert len(proxy.matching("PUT part 2")) == 2
    assert outcomes(proxy) == [("success", "")]
