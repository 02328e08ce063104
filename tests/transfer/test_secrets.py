"""Failed pushes and pulls show no token and no presigned URL in errors, logs, events and files."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import stat
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoError
from async_bento.transfer import resumable_extract, source as source_module
from tests.builders import KiB, make_model, random_bytes
from tests.fault_proxy import DOWNLOAD, GET, PART, PUT, UPLOAD, FaultProxy, disconnect, refuse
from tests.platforms import IS_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp import web

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy


SIZE = 64 * KiB


@pytest.fixture(autouse=True)
def small_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "choose_part_size", lambda size, wanted, threads: SIZE)
    monkeypatch.setattr(resumable_extract, "CHECKPOINT_INTERVAL", SIZE)


@dataclass
class Output:
    """The output of some calls: log records, events, errors, and objects whose repr a user may print."""

    proxy: FaultProxy
    home: Path
    log: pytest.LogCaptureFixture
    events: list[ProgressEvent] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    things: list[object] = field(default_factory=list)

    def secrets(self) -> set[str]:
        """Return the token, and the values in the queries of the used presigned URLs."""
        queries = [request.query for request in self.proxy.requests if request.path.startswith("/blobs/")]
        signatures = {query["signature"] for query in queries}
        return {self.proxy.registry.api_token} | signatures

    def texts(self) -> Iterator[str]:
        for record in self.log.records:
            if record.name in {"aiohttp.access", "aiohttp.server"}:  # the proxy's own
                continue
            yield f"{record.name}: {record.getMessage()} {vars(record)}"
            if record.exc_info and record.exc_info[1]:
                yield "".join(traceback.format_exception(*record.exc_info))
        for event in self.events:
            yield repr(event)
        for error in self.errors:
            yield "".join(traceback.format_exception(type(error), error, error.__traceback__))
            yield pickle.dumps(error).decode("latin-1")
            for cause in _chain(error):
                yield f"{cause} {cause!r} {cause.args} {vars(cause)}"
        for thing in self.things:
            yield f"{thing!r} {thing}"

    def check(self) -> None:
        secrets = self.secrets()
        for text in self.texts():
            assert not [secret for secret in secrets if secret in text], text

    def check_files(self, pattern: str) -> None:
        """Check that only the owner can read the leftover files, and that they contain no secret."""
        (file,) = (self.home / "tmp").glob(pattern)
        assert IS_WINDOWS or stat.S_IMODE(file.stat().st_mode) == 0o600
        text = file.read_text()
        assert not [secret for secret in self.secrets() if secret in text]
        assert "/blobs/" not in text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from _chain(error.__context__ if error.__context__ is not error.__cause__ else None)
        error = error.__cause__


async def answer_nonsense(exchange: Exchange) -> web.StreamResponse:
    """For a response that is not HTTP, the error of aiohttp contains the whole URL."""
    await exchange.read()
    transport = exchange.request.transport
    assert isinstance(transport, asyncio.Transport)
    transport.write(b"HTTP/1.1 no answer\r\n\r\n")
    await asyncio.sleep(0.02)
    return exchange.disconnect()


FAULTS: dict[str, Fault] = {
    "refused": refuse(400, code="InvalidRequest"),
    "expired": refuse(403, code="AccessDenied"),
    "busy": refuse(503, headers={"Retry-After": "0"}),
    "broken": disconnect,
    "nonsense": answer_nonsense,
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    for name in ("", "asyncio", "aiohttp", "async_bento"):
        caplog.set_level(logging.DEBUG, logger=name or None)
    return caplog


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_push_failure_shows_no_secret(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    log: pytest.LogCaptureFixture,
    transmission: str,
    fault: str,
) -> None:
    make_model(home, files={"weights": random_bytes(3 * SIZE)})
    proxy = await start_proxy(transmission, min_part_size=SIZE)
    output = Output(proxy, home, log)
    proxy.add_fault(
        {"presigned_url": PART, "auto": PUT, "proxy": UPLOAD}[transmission], FAULTS[fault], skip=1, times=None
    )
    if transmission != "presigned_url":
        proxy._rules[0].skip = 0

    api = make_client(proxy, progress=output.events.append)
    with pytest.raises(BentoError) as caught:
        await api.models.push("mod:m1", threads=1)

    output.errors.append(caught.value)
    output.things += [api, api._resources.client, api._resources.client.credentials, api._resources.config]
    output.things += [api._resources.pool, await api.models.get("mod")]
    assert len(output.secrets()) > (transmission != "proxy")
    assert log.records
    output.check()
    if transmission == "presigned_url":
        output.check_files("async-bento-kept-push*")


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_pull_failure_shows_no_secret(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    log: pytest.LogCaptureFixture,
    transmission: str,
    fault: str,
) -> None:
    make_model(home, files={"weights": random_bytes(5 * SIZE)})
    proxy = await start_proxy(transmission, min_part_size=SIZE)
    await make_client(proxy).models.push("mod:m1")
    output = Output(proxy, elsewhere, log)
    proxy.hides_checksums = True  # so that the state of the pull is saved within the only part
    skip = 3 if transmission == "presigned_url" else 0
    proxy.add_fault({"presigned_url": GET, "proxy": DOWNLOAD}[transmission], FAULTS[fault], skip=skip, times=None)

    with pytest.raises(BentoError) as caught:
        await make_client(proxy, elsewhere, progress=output.events.append).models.pull("mod:m1")

    output.errors.append(caught.value)
    output.check()
    if transmission == "presigned_url":
        output.check_files("*/state.json")


async def test_push_result_shows_no_secret(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, log: pytest.LogCaptureFixture
) -> None:
    make_model(home, files={"weights": random_bytes(3 * SIZE)})
    proxy = await start_proxy(min_part_size=SIZE)
    output = Output(proxy, home, log)
    api = make_client(proxy, progress=output.events.append)
    output.things.append(await api.models.push("mod:m1"))
    presigned = await api.models._kind.routes.presign_download("mod", "m1")
    url = presigned.presigned_download_url.get_secret_value()
    output.things.append(presigned)

    output.check()
    (signature,) = re.findall(r"ignature=([^&]+)", url)
    assert signature not in f"{presigned!r} {presigned}"
