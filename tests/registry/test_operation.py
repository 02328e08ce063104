"""Operation: health, readiness, metrics, the access log, and the stop of the registry."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_bento.cli.access_log import access_log
from async_bento.registry.errors import StorageError
from async_bento.registry.server import LocalRegistry
from tests.eventually import eventually
from tests.registry.conftest import BUILD_AT, disk_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.registry.conftest import Caller, Response, Serve


async def call(caller: Caller, path: str, **kwargs: object) -> Response:
    return await caller.bare("GET", f"{caller.registry.endpoint}{path}", **kwargs)


# Health and readiness


async def test_health_needs_no_token(caller: Caller):
    for path in ("/healthz", "/readyz"):
        response = await call(caller, path)
        assert (response.status, response.json) == (200, {"status": "ok"})


async def test_readiness_needs_database(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def fail(_: object) -> None:
        raise StorageError("ServiceUnavailable", "the registry's database cannot be reached", status=503)

    monkeypatch.setattr("async_bento.registry.records.sql.Records.count_items", fail)
    response = await call(caller, "/readyz")
    expected = {"status": "unavailable", "error": "the registry's database cannot be reached"}
    assert (response.status, response.json) == (503, expected)
    assert (await call(caller, "/healthz")).status == 200
    assert "the registry is not ready: the registry's database cannot be reached" in caplog.text


@disk_only
async def test_readiness_needs_directory(caller: Caller, tmp_path: Path):
    shutil.rmtree(tmp_path / "registry" / "blobs")
    response = await call(caller, "/readyz")
    assert (response.status, response.json) == (503, {"status": "unavailable", "error": "the storage does not answer"})


@disk_only
async def test_readiness_times_out(caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    async def hang(_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("async_bento.registry.operation._READY_TIMEOUT", 0.1)
    monkeypatch.setattr("async_bento.registry.records.sql.Records.count_items", hang)
    assert (await call(caller, "/readyz")).status == 503
    assert "the registry is not ready: TimeoutError" in caplog.messages


# Metrics


def values(text: str) -> dict[str, float]:
    """Parse Prometheus' text."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_metrics_count_requests(caller: Caller):
    await caller.create()
    await caller.upload(b"x" * 1000)
    await caller.upload(b"y" * 500)
    await caller.download()
    await caller.api("GET", "/nowhere")
    response = await call(caller, "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    found = values(response.body.decode())
    route = "/api/v1/bento_repositories/{name}/bentos/{version}"
    prefix = "async_bento_registry"
    assert found[f'{prefix}_requests_total{{method="PUT",route="{route}/upload",status="200"}}'] == 2
    assert found[f'{prefix}_requests_total{{method="GET",route="{route}/download",status="200"}}'] == 1
    assert found[f'{prefix}_requests_total{{method="GET",route="unknown",status="404"}}'] == 1
    labels = f'{{method="GET",route="{route}/download"}}'
    assert found[f"{prefix}_request_seconds_count{labels}"] == 1
    assert 0 < found[f"{prefix}_request_seconds_sum{labels}"] < 60  # a duration, and no time of the clock
    assert found[f"{prefix}_requests_in_flight"] == 1
    assert found[f"{prefix}_received_bytes_total"] >= 1500
    assert found[f"{prefix}_sent_bytes_total"] >= 500
    assert found[f'{prefix}_items{{kind="bento"}}'] == 1
    assert found[f'{prefix}_items{{kind="model"}}'] == 0
    assert found[f'{prefix}_stored_bytes{{state="current"}}'] == 500
    assert found[f'{prefix}_stored_bytes{{state="unused"}}'] == 1000
    assert "iris" not in response.body.decode()


async def test_metrics_count_empty_body(caller: Caller):
    await caller.create()
    before = await call(caller, "/metrics")
    assert (await caller.upload(b"bytes")).body == b""
    after = await call(caller, "/metrics")
    sent = [values(each.body.decode())["async_bento_registry_sent_bytes_total"] for each in (before, after)]
    assert sent[1] - sent[0] == len(before.body)


async def test_metrics_have_bounded_labels(caller: Caller):
    for method in ("PROPFIND", "BREW"):
        await caller.bare(method, f"{caller.registry.endpoint}/api/v1/bentos")
    for number in range(5):
        await caller.api("GET", f"/bento_repositories/name{number}")
    text = (await call(caller, "/metrics")).body.decode()
    assert "BREW" not in text
    assert "name1" not in text


# The access log


async def test_access_log_has_request_id(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    caller = await serve(access_log=logging.getLogger("access"))
    given = await call(caller, "/healthz", headers={"X-Request-ID": "from-the-proxy"})
    made = await call(caller, "/healthz", headers={"X-Request-ID": "bad id\t"})
    assert given.headers["X-Request-ID"] == "from-the-proxy"
    assert re.fullmatch(r"[0-9a-f]{16}", made.headers["X-Request-ID"])
    await eventually(lambda: made.headers["X-Request-ID"] in caplog.text)
    assert re.search(r"127\.0\.0\.1 GET /healthz 200 \d+ 0\.\d{3} from-the-proxy", caplog.text)


async def test_access_log_has_client_ip(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    caller = await serve(access_log=logging.getLogger("access"), forwarded_allow_ips=["127.0.0.1"])
    await call(caller, "/healthz", headers={"X-Forwarded-For": "10.9.9.9"})
    await eventually(lambda: "10.9.9.9 GET /healthz 200" in caplog.text)


def test_access_log_ignores_log_level(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    logging.getLogger("async_bento.registry").setLevel(logging.ERROR)
    with access_log("text") as logger:
        assert logger is not None
        logger.info("GET /healthz")
    assert re.fullmatch(r"\S+Z GET /healthz\n", capsys.readouterr().out)
    assert caplog.messages == []
    assert logger.propagate


@pytest.mark.parametrize("form", ["text", "json"])
def test_serve_prints_access_log(tmp_path: Path, form: str):
    command = [sys.executable, "-m", "async_bento", "registry", "serve", "--root", str(tmp_path / "registry")]
    with subprocess.Popen(
        [*command, "--port", "0", "--access-log", form], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        endpoint, _ = (server.stdout.readline().partition("=")[2].strip(' "\n') for _ in range(2))
        token = (tmp_path / "registry" / "api_token").read_text().strip()
        try:

            async def list_bentos() -> None:
                url, headers = f"{endpoint}/api/v1/bentos?search=secret", {"X-YATAI-API-TOKEN": token}
                async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
                    assert response.status == 200

            asyncio.run(list_bentos())
            line = server.stdout.readline()
        finally:
            server.terminate()
    assert token not in line
    assert "secret" not in line
    if form == "json":
        fields = json.loads(line)
        assert (fields["method"], fields["path"], fields["status"]) == ("GET", "/api/v1/bentos", 200)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", fields["time"])
    else:
        assert re.match(r"\d{4}-\d\d-\d\dT\S+Z 127\.0\.0\.1 GET /api/v1/bentos 200 ", line)


# The stop


async def slow_body(started: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"first "
    started.set()
    await go_on.wait()
    yield b"second"


async def test_stop_finishes_uploads(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "async_bento.registry")
    caller = await serve(grace=20)
    await caller.create()
    await caller.create(version="v2")
    started, go_on = asyncio.Event(), asyncio.Event()
    upload = asyncio.create_task(caller.upload(slow_body(started, go_on)))
    await started.wait()
    # A connection that is busy, since the registry closes idle ones.
    waiting, wait_on = asyncio.Event(), asyncio.Event()
    other = asyncio.create_task(caller.upload(slow_body(waiting, wait_on), "v2"))
    await waiting.wait()
    closing = asyncio.create_task(caller.registry.close())
    await asyncio.sleep(0.3)
    assert not closing.done()
    go_on.set()
    assert (await upload).status == 200
    assert not closing.done()
    wait_on.set()
    assert (await other).status == 200
    await asyncio.wait_for(closing, 10)
    assert "waiting for 2 requests" in caplog.messages
    await caller.registry.start()
    assert (await caller.download()).body == b"first second"


@disk_only
async def test_stop_refuses_new_uploads(serve: Serve):
    caller = await serve(grace=20)
    await caller.create()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(caller.registry.endpoint.rpartition(":")[2]))

    async def request(line: str) -> tuple[str, Any]:
        writer.write(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
        length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
        return head, json.loads(await reader.readexactly(length))

    assert (await request("GET /readyz"))[1] == {"status": "ok"}
    started, go_on = asyncio.Event(), asyncio.Event()
    upload = asyncio.create_task(caller.upload(slow_body(started, go_on)))
    await started.wait()
    closing = asyncio.create_task(caller.registry.close())

    async def is_stopping() -> bool:
        return (await request("GET /readyz"))[1] != {"status": "ok"}

    await eventually(is_stopping)
    head, body = await request("GET /readyz")
    assert (head.split()[1], body) == ("503", {"status": "stopping"})
    head, body = await request("PUT /upload")
    assert (head.split()[1], body) == ("503", {"error": "the registry is stopping. Try again."})
    assert {"Retry-After: 5", "Connection: close"} <= {*head.splitlines()}
    writer.close()
    go_on.set()
    assert (await upload).status == 200
    await asyncio.wait_for(closing, 10)


async def test_stop_cancels_after_grace(serve: Serve):
    caller = await serve(grace=1.0)
    await caller.create()
    started = asyncio.Event()
    upload = asyncio.create_task(caller.upload(slow_body(started, asyncio.Event())))
    await started.wait()
    began = time.monotonic()
    await caller.registry.close()
    assert time.monotonic() - began < 1.9  # not the grace for a second time
    with pytest.raises(aiohttp.ClientError):
        await upload
    await caller.registry.start()
    assert (await caller.get())["upload_status"] == "failed"


async def test_stop_serves_queued_request(serve: Serve):
    caller = await serve(grace=20)
    await caller.create()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(caller.registry.endpoint.rpartition(":")[2]))
    token = f"X-YATAI-API-TOKEN: {caller.registry.api_token}\r\n"
    path = f"/api/v1{caller.items()}/v1/upload"
    body = json.dumps({"version": "v2", "build_at": BUILD_AT, "manifest": {}})
    # Both requests arrive before the stop; the registry answers the second during the stop.
    writer.write(f"PUT {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 10\r\n\r\nfirst".encode())
    await writer.drain()
    await asyncio.sleep(0.2)
    closing = asyncio.create_task(caller.registry.close())
    await asyncio.sleep(0.2)
    writer.write(f"half!POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b"HTTP/1.1 200" in answer
    writer.close()
    await asyncio.wait_for(closing, 10)


@disk_only
@pytest.mark.posix("signals between processes")
async def test_sigterm_ends_within_grace(tmp_path: Path):
    command = [sys.executable, "-m", "async_bento", "registry", "serve", "--root", str(tmp_path / "registry")]
    server = await asyncio.create_subprocess_exec(
        *command, "--port", "0", "--grace", "1", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert server.stdout is not None
    endpoint, _ = [(await server.stdout.readline()).decode().strip().partition("=")[2] for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(endpoint.rpartition(":")[2]))
    writer.write(b"PUT /api/v1/bento_repositories/iris/bentos/v1/upload HTTP/1.1\r\n")  # a head without its end
    await writer.drain()
    os.kill(server.pid, signal.SIGTERM)
    assert await asyncio.wait_for(server.wait(), 20) == 0
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("options", "is_exposed"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "bentos.example"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0", "public_url": "https://bentos.example"}, False),
        ({"host": "0.0.0.0", "forwarded_allow_ips": ["127.0.0.1"]}, False),
    ],
)
def test_plain_http_is_detected(tmp_path: Path, options: dict[str, Any], is_exposed: bool):
    assert LocalRegistry(tmp_path, **options)._is_exposed() == is_exposed


@disk_only
async def test_plain_http_warns(serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LocalRegistry, "_is_exposed", lambda _: True)
    caller = await serve()
    assert f"{caller.registry.endpoint.removeprefix('http://')} is plain HTTP" in caplog.text
