"""The registry as a server: start, stop, crash, secrets, invalid arguments."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from async_bento import BentoAPI
from async_bento.errors import ConfigError
from async_bento.registry import cleanup
from async_bento.registry.blobs.disk_files import StagedFile
from async_bento.registry.cleanup import Cleanup
from async_bento.registry.errors import StorageError
from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry, _endpoint
from tests.platforms import KILLED
from tests.registry.conftest import BENTOS, MODELS, Caller, disk_only, everywhere

if TYPE_CHECKING:
    from tests.registry.conftest import Serve, Stored

pytestmark = everywhere

NOISY_LOGGERS = {"asyncio", "botocore", "aiobotocore", "aiosqlite", "alembic"}

CHILD = """
import asyncio, sys
from async_bento.registry import LocalRegistry

async def main():
    async with LocalRegistry(sys.argv[1]) as registry:
        print(registry.endpoint, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_restart_keeps_everything(either: Caller):
    manifest, labels = {"models": [], "x": 1}, [{"key": "k", "value": "v"}]
    await either.create(manifest=manifest, labels=labels)
    await either.upload(b"bytes")
    before, token = await either.get(), either.registry.api_token
    await either.registry.close()
    await either.registry.start()
    assert either.registry.api_token == token
    assert await either.get() == before
    assert (await either.download()).body == b"bytes"


@disk_only
async def test_kill_keeps_everything(serve: Serve, tmp_path: Path):
    root = tmp_path / "registry"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, str(root), stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        endpoint = (await child.stdout.readline()).decode().strip()
        with pytest.raises(ConfigError, match="another registry is using it"):
            await LocalRegistry(root).start()
        token = (await asyncio.to_thread((root / "api_token").read_text)).strip()

        class ChildRegistry:
            def __init__(self) -> None:
                self.endpoint, self.api_token = endpoint, token

        async with aiohttp.ClientSession() as session:
            there = Caller(ChildRegistry(), session, BENTOS)
            await there.create()
            await there.upload(b"bytes")
            await there.create(version="v2")
            upload_id = await there.start_multipart("v2")
            etag = await there.put_part(upload_id, 1, b"one", "v2")
    finally:
        child.kill()
        assert await child.wait() == KILLED
    caller = await serve()
    assert caller.registry.api_token == token
    assert (await caller.get())["upload_status"] == "success"
    assert (await caller.download()).body == b"bytes"
    assert (await caller.complete(upload_id, [(1, etag)], "v2")).status == 200


@disk_only
async def test_directory_lock_is_exclusive(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wait(_: float) -> None:
        raise AssertionError("the second registry waits for the lock")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", wait)
        with pytest.raises(ConfigError, match="another registry is using it"):
            await LocalRegistry(tmp_path / "registry").start()
    await caller.registry.close()
    async with LocalRegistry(tmp_path / "registry"):
        pass


async def test_two_registries_are_separate(serve: Serve, tmp_path: Path):
    one, two = await serve("one"), await serve("two")
    await one.create("only-here")
    assert (one.registry.endpoint, one.registry.api_token) != (two.registry.endpoint, two.registry.api_token)
    assert (await two.list())["total"] == 0
    assert (await two.api("GET", "/bentos", token=one.registry.api_token)).status == 403


@pytest.mark.posix("/proc")
async def test_close_leaves_no_resources(tmp_path: Path):
    def sockets() -> int:
        return sum(handle.is_symlink() for handle in Path("/proc/self/fd").iterdir())

    async with aiohttp.ClientSession() as session:
        tasks = asyncio.all_tasks()
        threads, handles = set(threading.enumerate()), sockets()
        registry = LocalRegistry(tmp_path / "registry", grace=0.2)
        await registry.start()
        caller = Caller(registry, session, BENTOS)
        await caller.create()
        await caller.upload(b"bytes")
        url = await caller.get_url()
        await caller.bare("GET", url)
        await registry.close()
        assert asyncio.all_tasks() == tasks
        with pytest.raises(aiohttp.ClientConnectionError):
            await caller.bare("GET", url)
    for thread in set(threading.enumerate()) - threads:
        await asyncio.to_thread(thread.join, 5) if not thread.name.startswith("asyncio_") else None
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not any(name.startswith("async-bento") for name in left)
    await asyncio.sleep(0.05)
    assert sockets() <= handles


def sockets_in_use() -> int:
    return sum(handle.is_socket() for handle in Path("/proc/self/fd").iterdir())


@pytest.mark.posix("/proc")
@pytest.mark.parametrize("steps", range(5))
async def test_close_ends_new_connections(tmp_path: Path, steps: int):
    before = sockets_in_use()
    async with LocalRegistry(tmp_path, grace=0.1) as registry:
        port = urlsplit(registry.endpoint).port
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
    for client in clients:
        client.close()
    assert sockets_in_use() == before


@pytest.mark.posix("/proc")
async def test_close_drops_stalled_client(caller: Caller):
    await caller.create()
    await caller.upload(bytes(24 * 2**20))  # more than the sockets hold
    url = urlsplit(f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/download")
    token = f"X-YATAI-API-TOKEN: {caller.registry.api_token}"
    before = sockets_in_use()
    with socket.create_connection((url.hostname, url.port)) as client:
        client.sendall(f"GET {url.path} HTTP/1.1\r\nHost: x\r\n{token}\r\n\r\n".encode())
        await asyncio.sleep(0.1)
        await caller.registry.close()
        assert sockets_in_use() <= before  # the registry no longer listens, and the client's own is open


@pytest.mark.parametrize("way", ["upload", "put_url", "download"])
async def test_close_cancels_transfers(caller: Caller, stored_files: Stored, way: str):
    await caller.create()
    await caller.upload(bytes(24 * 2**20))  # more than the sockets hold
    files = stored_files()
    token = f"X-YATAI-API-TOKEN: {caller.registry.api_token}"
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/{way}" if way != "put_url" else await caller.put_url()
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    verb = "GET" if way == "download" else "PUT"
    head = f"{verb} {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n{token}\r\n"
    writer.write(
        f"{head}\r\n".encode() if verb == "GET" else f"{head}Content-Length: 9999999\r\n\r\nbeginning".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    await asyncio.wait_for(caller.registry.close(), 3)
    assert stored_files() == files
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    await caller.registry.start()
    item = await caller.get()
    assert (item["upload_status"], bool(item["upload_finished_reason"])) == ("success", way == "upload")


@pytest.mark.parametrize("grace", [0, 0.05])
@disk_only
async def test_close_waits_for_cleanup(
    serve: Serve, stored_files: Stored, monkeypatch: pytest.MonkeyPatch, grace: float
):
    discard = StagedFile.discard

    def slowly(spool: StagedFile) -> None:
        time.sleep(0.4)
        discard(spool)

    monkeypatch.setattr(StagedFile, "discard", slowly)
    caller = await serve(grace=grace)
    await caller.create()
    parts = urlsplit(await caller.put_url())
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf".encode())
    await writer.drain()
    await asyncio.sleep(0.1)
    await asyncio.wait_for(caller.registry.close(), 3)
    assert stored_files() == []
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_cleanup_runs_every_hour(monkeypatch: pytest.MonkeyPatch):
    steps: list[object] = []

    class Recorder:
        async def run(self) -> None:
            steps.append("run")

    async def sleep(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await cleanup._repeat(Recorder())  # type: ignore[arg-type]
    assert steps == [60, "run", 3600, "run", 3600]


async def test_registry_runs_cleanup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    is_cleaned = asyncio.Event()

    async def run(_: Cleanup) -> None:
        is_cleaned.set()

    monkeypatch.setattr(cleanup, "_FIRST", 0)
    monkeypatch.setattr(Cleanup, "run", run)
    async with LocalRegistry(tmp_path / "new" / "registry"):
        await asyncio.wait_for(is_cleaned.wait(), 20)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "no disk"), "the cleanup failed: [Errno 5] no disk"),
        (StorageError("SlowDown", "no bucket"), "the cleanup failed: no bucket"),
        (RuntimeError("a bug"), "the cleanup failed"),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_failed_cleanup_is_logged(caplog: pytest.LogCaptureFixture, error: Exception, message: str):
    async def fail() -> None:
        raise error

    await cleanup._logged(fail)
    assert caplog.messages == [message]
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)


async def test_cancelled_close_during_cleanup_raises(monkeypatch: pytest.MonkeyPatch):
    """The close waits for the step of the cleanup, and the cancellation of the close is not lost."""
    started, ending, go_on, stop = (asyncio.Event() for _ in range(4))

    async def run(_: Cleanup) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await go_on.wait()

    async def serve() -> None:
        async with cleanup.running(object.__new__(Cleanup)):
            await stop.wait()

    monkeypatch.setattr(cleanup, "_FIRST", 0)
    monkeypatch.setattr(Cleanup, "run", run)
    serving = asyncio.create_task(serve())
    await started.wait()
    stop.set()
    await ending.wait()
    serving.cancel()
    go_on.set()
    await asyncio.wait([serving])
    assert serving.cancelled()


async def test_close_twice_is_harmless(caller: Caller):
    await caller.registry.close()
    await caller.registry.close()


def test_blocking_use_has_own_thread(tmp_path: Path):
    threads = {*threading.enumerate()}
    with (
        LocalRegistry(tmp_path) as registry,
        BentoAPI(endpoint=registry.endpoint, api_token=registry.api_token, progress=False) as api,
    ):
        assert len(api.list()) == 0
        with pytest.raises(ConfigError, match="already running"), registry:
            pass
        assert len(api.list()) == 0
    for thread in {*threading.enumerate()} - threads:
        thread.join(10)  # an idle worker is about to end
    assert {*threading.enumerate()} <= threads
    with pytest.raises(ConfigError, match="not running"):
        _ = registry.endpoint
    with registry:
        assert registry.endpoint


async def test_start_twice_raises(caller: Caller):
    with pytest.raises(ConfigError, match="already running"):
        await caller.registry.start()


async def test_unstarted_endpoint_raises(tmp_path: Path):
    registry = LocalRegistry(tmp_path)
    for name in ("endpoint", "api_token"):
        with pytest.raises(ConfigError, match="not running"):
            getattr(registry, name)


async def test_start_on_used_port_unlocks(caller: Caller, tmp_path: Path):
    port = urlsplit(caller.registry.endpoint).port
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}: \w.*\. Check the host and the port"):
        await LocalRegistry(tmp_path / "other", port=port).start()
    async with LocalRegistry(tmp_path / "other"):
        pass


async def test_unusable_directory_raises(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use \S*below: \w"):
        await LocalRegistry(tmp_path / "file" / "below").start()


async def test_invalid_database_raises(tmp_path: Path):
    (tmp_path / "registry.sqlite3").write_text("no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(ConfigError, match="cannot open"):
        await LocalRegistry(tmp_path).start()


@pytest.mark.postgres
async def test_unreachable_database_raises(tmp_path: Path):
    pytest.importorskip("asyncpg")
    url = "postgresql://bento:5ecret@127.0.0.1:9/bentos"
    with pytest.raises(ConfigError, match="cannot open the database postgresql") as raised:
        await LocalRegistry(tmp_path, database=url).start()
    assert "5ecret" not in str(raised.value)


async def test_newer_database_raises(tmp_path: Path):
    async with LocalRegistry(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "registry.sqlite3")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(ConfigError, match="newer async-bento"):
        await LocalRegistry(tmp_path).start()


# Secrets and logs


@disk_only
@pytest.mark.posix("file modes")
async def test_secrets_are_private(caller: Caller, tmp_path: Path):
    root = tmp_path / "registry"
    assert {(root / name).stat().st_mode & 0o777 for name in ("api_token", "signing_key")} == {0o600}
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.posix("file modes")
async def test_open_directory_hides_files(tmp_path: Path):
    root = tmp_path / "registry"
    root.mkdir(mode=0o755)
    (root / "blobs").mkdir(mode=0o755)
    (root / "registry.sqlite3").touch(mode=0o644)
    async with LocalRegistry(root):
        modes = {path.name: path.stat().st_mode & 0o777 for path in root.iterdir()}
    assert {"registry.sqlite3", "registry.sqlite3-wal", "blobs", "api_token", "lock"} <= {*modes}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes


@disk_only
async def test_lost_token_is_replaced(caller: Caller, tmp_path: Path):
    lost = caller.registry.api_token
    await caller.registry.close()
    (tmp_path / "registry" / "api_token").write_text("\n")
    await caller.registry.start()
    assert caller.registry.api_token not in {lost, ""}
    assert (await caller.api("GET", "/auth/current")).status == 200


@disk_only
@pytest.mark.posix("file modes")
async def test_readable_token_is_protected(caller: Caller, tmp_path: Path):
    await caller.registry.close()
    (tmp_path / "registry" / "api_token").chmod(0o644)
    await caller.registry.start()
    assert (tmp_path / "registry" / "api_token").stat().st_mode & 0o777 == 0o600


async def test_given_token_is_not_stored(serve: Serve, tmp_path: Path):
    caller = await serve(api_token="my-token")
    assert caller.registry.api_token == "my-token"
    assert (await caller.api("GET", "/auth/current")).status == 200
    assert not (tmp_path / "registry" / "api_token").exists()
    assert not caller.registry.has_new_token


@disk_only
async def test_repr_hides_secrets(serve: Serve, tmp_path: Path):
    caller = await serve(api_token="my-token")
    shown = f"LocalRegistry({str(tmp_path / 'registry')!r}, endpoint="
    assert repr(caller.registry) == f"{shown}{caller.registry.endpoint!r})"
    assert caller.registry.api_token not in repr(caller.registry) + str(vars(caller.registry))
    await caller.registry.close()
    assert repr(caller.registry) == f"{shown}None)"


async def test_token_not_ascii_returns_403(caller: Caller):
    assert (await caller.api("GET", "/auth/current", token="töken")).status == 403


@disk_only
async def test_access_log_hides_secrets(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    caller = await serve(access_log=logging.getLogger("access"))
    await caller.create()
    url = await caller.put_url()
    await caller.bare("PUT", url, data=b"bytes")
    assert f"PUT {urlsplit(url).path} 200" in caplog.text
    assert "signature" not in caplog.text
    assert caller.registry.api_token not in caplog.text


async def test_access_log_defaults_to_off(caller: Caller, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    await caller.create()
    await caller.api("GET", "/nowhere")
    assert [record for record in caplog.records if record.name.partition(".")[0] not in NOISY_LOGGERS] == []


# Transmission, addresses and arguments


@pytest.mark.parametrize(
    ("options", "strategy", "presigned"),
    [
        ({}, "presigned_url", True),
        ({"transmission": "presigned_url"}, "presigned_url", True),
        ({"transmission": "proxy"}, "proxy", True),
        ({"transmission": "auto"}, None, True),
        ({"transmission": None}, None, True),
        ({"transmission": "auto", "presign": False}, None, False),
        ({"transmission": "proxy", "presign": False}, "proxy", False),
    ],
)
async def test_transmission_sets_strategy(serve: Serve, options: dict[str, Any], strategy: str | None, presigned: bool):
    caller = await serve(**options)
    await caller.create()
    assert (await caller.get())["transmission_strategy"] == strategy
    await caller.upload(b"bytes")
    assert bool(await caller.put_url()) == presigned
    assert bool(await caller.get_url()) == presigned


async def test_transmission_per_repository(serve: Serve):
    caller = await serve(transmission="proxy", strategies={"iris": "presigned_url", "rose": None})
    for name in ("iris", "rose", "oak"):
        await caller.create(name)
        await caller.about(MODELS).create(name)
    for kind in (caller, caller.about(MODELS)):
        items = (await kind.list())["items"]
        strategies = {item["repository"]["name"]: item["transmission_strategy"] for item in items}
        assert strategies == {"iris": "presigned_url", "rose": None, "oak": "proxy"}


@pytest.mark.parametrize(
    "options",
    [
        {"transmission": "smoke signals"},
        {"strategies": {"iris": ""}},
        {"presign": False},
        {"transmission": "auto", "strategies": {"iris": "presigned_url"}, "presign": False},
        {"api_token": ""},
        {"api_token": " "},
        {"api_token": "a\nb"},
        {"url_expiry": 0},
        {"public_url": "no url"},
    ],
)
def test_invalid_argument_raises(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(ConfigError):
        LocalRegistry(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the registry has no directory"),
        ({"database": "postgresql://db.example/bentos"}, "the registry has no directory"),
        ({"bucket": S3Bucket("bucket")}, "the registry has no directory"),
        ({"root": S3Bucket("bucket")}, "a bucket holds no records"),
    ],
)
def test_missing_place_raises(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        LocalRegistry(**options)


@pytest.mark.parametrize(
    ("host", "reachable"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]"), ("localhost", "localhost")]
)
def test_endpoint_is_reachable_url(host: str, reachable: str):
    assert _endpoint(host, 3000) == f"http://{reachable}:3000"


async def test_only_host_is_listened_on(tmp_path):
    async with LocalRegistry(tmp_path, host="127.0.0.2") as registry:
        parts = urlsplit(registry.endpoint)
        assert parts.hostname == "127.0.0.2"
        _, writer = await asyncio.open_connection("127.0.0.2", parts.port)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", parts.port)


@pytest.mark.parametrize("name", ["bentos", "models", ".yatai.yaml"])
async def test_local_store_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"cannot use .*: its {name} belongs to a local store of BentoML"):
        async with LocalRegistry(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_missing_extra_named_in_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "async_bento.registry.backend", None)
    with pytest.raises(ConfigError, match=r'cannot start the registry: .* Run: pip install "async-bento\[registry\]"'):
        await LocalRegistry(tmp_path).start()
