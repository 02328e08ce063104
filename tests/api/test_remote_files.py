"""The files of a remote item, read without a pull."""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
import tarfile
import tempfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import (
    AsyncBentoAPI,
    BentoAPI,
    Config,
    NotFoundError,
    PathExistsError,
    RemoteEntry,
    TransferError,
    UnsafeArchiveError,
)
from async_bento._core.platform import mode_in_tar
from tests.builders import KiB, MiB, contents, make_bento, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import DOWNLOAD, GET, Hold, refuse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry
    from tests.fault_proxy import Exchange, FaultProxy
    from tests.fixtures import MakeClient, StartProxy

FILES = {
    "README.md": b"# Svc\n",
    "src/service.py": b"pass\n" * 100,
    "src/lib/util.py": b"x = 1\n",
    "src/weights": random_bytes(3 * MiB + 17, 5),
    "z/last": b"end",
}
TRANSMISSIONS = ["presigned_url", "auto", "proxy"]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushes."""
    return tmp_path / "origin"


class Counted:
    """Counts the bytes that a proxy sends as the bodies of downloads."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.bytes = 0
        self._running = 0
        proxy.add_fault(f"{GET}|{DOWNLOAD}", self, times=None)

    async def reset(self) -> None:
        """Wait for the end of cancelled requests, then count from zero."""
        await eventually(lambda: not self._running)
        self.bytes = 0

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        self._running += 1
        try:
            answer = await exchange.forward()
        finally:
            self._running -= 1
        assert isinstance(answer.body, bytes)
        self.bytes += len(answer.body)
        return answer


async def push(proxy: FaultProxy, make_client: MakeClient, origin: Path, files: dict[str, bytes] | None = None) -> Path:
    bento = make_bento(origin, files=FILES if files is None else files)
    await make_client(proxy, origin).push("svc:v1", force=True)
    return bento


@pytest.mark.parametrize("transmission", TRANSMISSIONS)
async def test_list_read_and_extract(
    transmission: str, start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path
) -> None:
    proxy = await start_proxy(transmission)
    proxy.streams_downloads = False
    bento = await push(proxy, make_client, origin)
    (bento / "src/service.py").chmod(0o755)
    files = make_client(proxy).files("svc")

    entries = {entry.path: entry for entry in await files.list()}
    assert {path for path, entry in entries.items() if entry.type == "file"} == {*FILES, "bento.yaml"}
    assert [*entries] == sorted(entries)
    weights = entries["src/weights"]
    assert (weights.size, weights.type) == (3 * MiB + 17, "file")
    assert abs(weights.mtime_ns - (bento / "src/weights").stat().st_mtime_ns) < 10**9
    assert weights.mode == mode_in_tar((bento / "src/weights").stat())
    assert str(files.tag) == "svc:v1"
    for path, content in FILES.items():
        assert await files.read(path) == content

    extracted = await files.extract(["src/*.py", "README*"], tmp_path / "out", exclude="*/util.py")
    assert {entry.path for entry in extracted} == {"src/service.py", "README.md"}
    assert contents(tmp_path / "out") == {
        "README.md": FILES["README.md"],
        "src": None,
        "src/service.py": FILES["src/service.py"],
    }


async def test_remote_models_have_files(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    make_model(origin, "mod:m1", {"weights": b"w" * 1000})
    await make_client(proxy, origin).models.push("mod:m1")
    files = make_client(proxy).models.files("mod")
    assert [entry.path for entry in await files.list()] == ["model.yaml", "weights"]
    assert await files.read("weights") == b"w" * 1000


async def test_warm_index_costs_one_file(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    many = {f"data/{number:03}": random_bytes(20 * KiB, number) for number in range(100)}
    await push(proxy, make_client, origin, {**many, "src/weights": FILES["src/weights"]})
    api, counted = make_client(proxy), Counted(proxy)

    assert await api.files("svc:v1").read("data/077") == many["data/077"]
    assert counted.bytes < 100 * 21 * KiB

    await counted.reset()
    listed = await api.files("svc:v1").list()
    assert len([entry for entry in listed if entry.type == "file"]) == 102
    assert counted.bytes < 3 * MiB

    await counted.reset()
    assert await api.files("svc:v1").list() == listed
    assert counted.bytes <= 64 * KiB

    await counted.reset()
    assert await api.files("svc:v1").read("data/099") == many["data/099"]
    assert counted.bytes <= 20 * KiB + 64 * KiB


async def test_list_of_small_files_reads_ahead(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    """Several concurrent requests read each byte once."""
    proxy = await start_proxy()
    await push(
        proxy, make_client, origin, {f"data/{number:03}": random_bytes(20 * KiB, number) for number in range(300)}
    )
    counted = Counted(proxy)
    assert len(await make_client(proxy).files("svc:v1").list()) == 302
    assert proxy.max_concurrent["GET"] > 1
    assert counted.bytes <= 300 * 21 * KiB


async def test_cold_index_costs_one_tar(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    tar_size = sum(-(-len(content) // 512) * 512 + 512 for content in FILES.values()) + 64 * KiB
    for path, content in FILES.items():
        counted = Counted(proxy)
        assert await make_client(proxy).files("svc:v1").read(path) == content
        assert counted.bytes <= tar_size


async def test_file_reads_seeks_iterates(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    content = FILES["src/weights"]
    counted = Counted(proxy)
    async with make_client(proxy).files("svc:v1").open("src/weights") as file:
        assert file.size == len(content)
        await counted.reset()
        assert await file.read(10) == content[:10]
        assert await file.read(0) == b""
        assert file.seek(MiB) == MiB
        assert await file.read(1000) == content[MiB : MiB + 1000]
        requests = len(proxy.matching(GET))
        assert await file.read(1000) == content[MiB + 1000 : MiB + 2000]
        assert file.seek(-2000, io.SEEK_CUR) == MiB
        assert await file.read(2000) == content[MiB : MiB + 2000]
        assert file.seek(0, io.SEEK_CUR) == MiB + 2000
        assert len(proxy.matching(GET)) == requests
        assert counted.bytes <= 2 * 256 * KiB
        file.seek(-5, io.SEEK_END)
        assert await file.read() == content[-5:]
        assert await file.read() == b""
        file.seek(len(content) + 9)
        assert await file.read(5) == b""
        file.seek(100)
        assert b"".join([chunk async for chunk in file.iter_chunks()]) == content[100:]
        assert file.seek(0, io.SEEK_CUR) == len(content)
        assert file.seek(0) == 0
        with pytest.raises(ValueError, match="cannot seek to -1: the position is negative"):
            file.seek(-1)


def tar_of(*members: tuple[str, bytes | str, bytes]) -> bytes:
    """A tar of files (content), and of links (target) by type."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, value, type_ in members:
            info = tarfile.TarInfo(f"./{name}")
            info.type = type_
            info.mode = 0o644
            if isinstance(value, str):
                info.linkname = value
                tar.addfile(info)
            else:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return output.getvalue()


LONG = "deep/" + "n" * 180 + "/ünïcode"
LINKED = tar_of(
    ("bento.yaml", b"name: svc\n", tarfile.REGTYPE),
    (LONG, b"long", tarfile.REGTYPE),
    ("data/one", random_bytes(200_000, 3), tarfile.REGTYPE),
    ("data/two", "./data/one", tarfile.LNKTYPE),
    ("data/three", "./data/two", tarfile.LNKTYPE),
    ("link", "data", tarfile.SYMTYPE),
    ("up", "link/../data/one", tarfile.SYMTYPE),
    ("loop", "loop", tarfile.SYMTYPE),
)


def serve(tar: bytes, *, etag: str = '"one"', ranges: bool = True) -> Callable[[Exchange], Any]:
    """Answer downloads with the tar of a test."""
    from aiohttp import web

    async def answer(exchange: Exchange) -> web.StreamResponse:
        headers = {"ETag": etag} if etag else {}
        asked = exchange.request.headers.get("Range")
        if asked is None or not ranges:
            return web.Response(body=tar, headers=headers)
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        if first >= len(tar):
            return web.Response(status=416)
        last = min(last, len(tar) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(tar)}"
        return web.Response(status=206, body=tar[first : last + 1], headers=headers)

    return answer


@pytest.fixture
async def served_tar(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> FaultProxy:
    """A registry without checksums, whose bytes the test replaces."""
    proxy = await start_proxy()
    proxy.hides_checksums = True
    await push(proxy, make_client, origin)
    return proxy


@pytest.mark.posix("links without a privilege")
@pytest.mark.parametrize("how", ["ranges", "gzip", "stream"])
async def test_links_and_long_names_are_read(
    how: str, served_tar: FaultProxy, make_client: MakeClient, tmp_path: Path
) -> None:
    tar = gzip.compress(LINKED) if how == "gzip" else LINKED
    served_tar.add_fault(GET, serve(tar, ranges=how != "stream"), times=None)
    files = make_client(served_tar).files("svc:v1")
    one = random_bytes(200_000, 3)
    assert await files.read(LONG) == b"long"
    for path in ("data/one", "data/two", "data/three", "link/one", "link/two", "up", "./data//one", "/data/one"):
        assert await make_client(served_tar).files("svc:v1").read(path) == one, path
    listed = {entry.path: (entry.type, entry.target) for entry in await files.list()}
    assert listed["data/three"] == ("hard link", "data/two")
    assert listed["link"] == ("symlink", "data")
    assert listed[LONG] == ("file", "")
    for path in ("data", "link", "deep", "", "nothing", "loop", "data/one/x"):
        with pytest.raises(NotFoundError, match="cannot read files of svc:v1"):
            await files.read(path)

    await files.extract(["data/t*", "link"], tmp_path / how)
    assert contents(tmp_path / how) == {"data": None, "data/two": one, "data/three": one, "link": "data"}
    async with files.open("link/three") as file:
        file.seek(50_000)
        assert await file.read(10) == one[50_000:50_010]


@pytest.mark.parametrize("how", ["ranges", "gzip", "stream"])
async def test_truncated_tar_is_rejected(how: str, served_tar: FaultProxy, make_client: MakeClient) -> None:
    tar = LINKED[:100_000]
    served_tar.add_fault(GET, serve(gzip.compress(tar) if how == "gzip" else tar, ranges=how != "stream"), times=None)
    with pytest.raises(UnsafeArchiveError, match=r"cannot list files of svc:v1: the tar is truncated"):
        await make_client(served_tar).files("svc:v1").list()


@pytest.mark.parametrize(
    ("seconds", "modified"),
    [
        (1_700_000_000, "2023-11-14T22:13:20+00:00"),
        (-1, "1969-12-31T23:59:59+00:00"),
        (10**12 - 1, "9999-12-31T23:59:59+00:00"),
        (1 - 10**12, "0001-01-01T00:00:00+00:00"),
    ],
)
def test_remote_entry_time_is_clamped(seconds: int, modified: str) -> None:
    entry = RemoteEntry("src/service.py", "file", 1, 0o644, seconds * 10**9 + 1)
    assert entry.modified.isoformat() == modified


async def test_hostile_path_is_rejected(served_tar: FaultProxy, make_client: MakeClient) -> None:
    served_tar.add_fault(GET, serve(tar_of(("../up", b"", tarfile.REGTYPE))), times=None)
    with pytest.raises(UnsafeArchiveError, match=r"its name contains '\.\.'"):
        await make_client(served_tar).files("svc:v1").list()


async def test_stream_stops_at_end_of_file(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Like a Yatai with an unreachable storage: no ranges, no length, no presigned URL."""
    caplog.set_level(logging.INFO, logger="async_bento")
    proxy = await start_proxy("proxy")
    proxy.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    bento = await push(proxy, make_client, origin)
    api = make_client(proxy)
    for path, content in FILES.items():
        assert await api.files("svc:v1").read(path) == content
    assert len(await api.files("svc:v1").list()) == len([*bento.rglob("*")])
    assert "svc:v1: the registry sends no ranges, so the tar is downloaded as far as it is needed" in caplog.text
    with pytest.raises(NotFoundError):
        await api.files("svc:v1").read("nothing")


async def test_streamed_file_is_read_in_chunks(served_tar: FaultProxy, make_client: MakeClient) -> None:
    """A file of any size needs little memory, and a pause of the reader does not keep a call of the API open."""
    weights = random_bytes(200_001, 6)
    served_tar.add_fault(GET, serve(gzip.compress(tar_of(("weights", weights, tarfile.REGTYPE)))), times=None)
    api = make_client(served_tar, transfer={"io_chunk": 64 * KiB})

    async with api.files("svc:v1").open("weights") as file:
        assert file.size == len(weights)
        assert await file.read(1) == weights[:1]
        chunks = []
        async for chunk in file.iter_chunks():
            chunks.append(chunk)
            assert not api._resources._calls

    assert b"".join(chunks) == weights[1:]
    assert [len(chunk) for chunk in chunks] == [64 * KiB] * 3 + [200_000 - 3 * 64 * KiB]


async def test_proxy_registry_uses_storage(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    """A Yatai presigns a URL whatever its strategy."""
    proxy = await start_proxy("proxy")
    await push(proxy, make_client, origin)
    proxy.requests.clear()
    assert await make_client(proxy).files("svc:v1").read("src/service.py") == FILES["src/service.py"]
    assert [step.partition("=")[0] for step in proxy.steps("GET|presign")] == [
        "GET svc/v1",
        "GET svc/v1/download",
        "PATCH svc/v1/presign_download_url",
        "GET bytes",
    ]


async def test_expired_url_is_renewed(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    proxy.requests.clear()
    proxy.add_fault(GET, refuse(403))
    assert await make_client(proxy).files("svc:v1").read("z/last") == b"end"
    assert [request.step for request in proxy.requests].count("PATCH svc/v1/presign_download_url") == 2


async def test_replaced_item_restarts_read(served_tar: FaultProxy, make_client: MakeClient) -> None:
    old = tar_of(("a", random_bytes(300_000, 1), tarfile.REGTYPE), ("b", b"old", tarfile.REGTYPE))
    new = tar_of(("a", random_bytes(300_000, 2), tarfile.REGTYPE), ("b", b"new", tarfile.REGTYPE))
    served_tar.add_fault(GET, serve(old, etag='"old"'))
    served_tar.add_fault(GET, serve(new, etag='"new"'), times=None)
    assert await make_client(served_tar).files("svc:v1").read("b") == b"new"


async def test_changing_item_fails_extract(served_tar: FaultProxy, make_client: MakeClient, tmp_path: Path) -> None:
    turn = iter(range(100))

    async def other(exchange: Exchange) -> web.StreamResponse:
        return await serve(LINKED, etag=f'"{next(turn)}"')(exchange)

    served_tar.add_fault(GET, other, times=None)
    with pytest.raises(TransferError, match=r"pushed again during the download, twice\. Try again"):
        await make_client(served_tar).files("svc:v1").extract("*", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_replaced_item_fails_open_file(served_tar: FaultProxy, make_client: MakeClient) -> None:
    served_tar.add_fault(GET, serve(LINKED, etag='"old"'))
    served_tar.add_fault(GET, serve(LINKED, etag='"new"'), times=None)
    async with make_client(served_tar).files("svc:v1").open("data/one") as file:
        file.seek(100_000)
        with pytest.raises(TransferError, match=r"pushed again during the download\. Open the file again"):
            await file.read(10)


async def test_failed_extract_is_atomic(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path
) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    files, place = make_client(proxy).files("svc:v1"), tmp_path / "place"
    place.mkdir()
    with pytest.raises(NotFoundError, match=r"no file matches \*\.txt"):
        await files.extract("*.txt", place / "out")
    (place / "full").mkdir()
    (place / "full/mine").touch()
    with pytest.raises(PathExistsError):
        await files.extract("*.py", place / "full")
    proxy.add_fault(GET, refuse(400), times=None)
    with pytest.raises(TransferError):
        await files.extract("src/weights", place / "out")
    assert contents(place) == {"full": None, "full/mine": b""}


async def test_extract_can_be_cancelled(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path, forever: asyncio.Event
) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    files, place = make_client(proxy).files("svc:v1"), tmp_path / "place"
    await files.list()
    held = Hold(released=forever)
    proxy.add_fault(GET, held, times=None)
    tasks = len(asyncio.all_tasks())
    extracting = asyncio.create_task(files.extract("src/weights", place / "out"))
    await held.arrived.wait()
    extracting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await extracting
    assert len([task for task in asyncio.all_tasks() if "read" in repr(task.get_coro())]) == 0
    assert len(asyncio.all_tasks()) <= tasks + 2  # the proxy's handlers
    assert not place.exists() or not [*place.iterdir()]


async def test_missing_item_is_not_found(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    with pytest.raises(NotFoundError, match="no bento svc:v9"):
        await make_client(proxy).files("svc:v9").list()
    bento = make_bento(origin)
    await make_client(proxy, origin).push(bento, bare=True)
    with pytest.raises(NotFoundError, match="cannot list files of svc:v1: the registry has a record of the bento"):
        await make_client(proxy).files("svc:v1").list()


async def test_errors_have_no_secrets(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    await push(proxy, make_client, origin)
    proxy.add_fault(GET, refuse(400), times=None)
    api = make_client(proxy)
    with pytest.raises(TransferError) as caught:
        await api.files("svc:v1").read("z/last")
    assert "ignature" not in str(caught.value)
    assert proxy.registry.api_token not in repr(api.files("svc:v1"))


def test_files_serve_loops_in_turn(served: LocalRegistry, home: Path) -> None:
    make_bento(home, files=FILES)
    api = AsyncBentoAPI(progress=False, config=Config(transfer={"concurrency": 1}))
    files = api.files("svc")

    async def read_at_once() -> None:
        read = await asyncio.gather(*map(files.read, FILES))
        assert read == [*FILES.values()]

    asyncio.run(api.push("svc:v1"))
    asyncio.run(read_at_once())
    asyncio.run(read_at_once())
    asyncio.run(api.aclose())


def test_blocking_files_are_file_like(served: LocalRegistry, home: Path, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("inner.txt", b"inner\n" * 100_000)
    make_bento(home, files={"data.zip": archive.getvalue(), "src/service.py": b"one\ntwo\n"})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        files = api.files("svc")
        assert "RemoteFiles('svc')" in repr(files)
        assert [entry.path for entry in files.list() if entry.type == "file"] == [
            "bento.yaml",
            "data.zip",
            "src/service.py",
        ]
        assert str(files.tag) == "svc:v1"
        assert files.read("src/service.py") == b"one\ntwo\n"
        with files.open("data.zip") as file, zipfile.ZipFile(file) as opened:
            assert opened.read("inner.txt") == b"inner\n" * 100_000
        with files.open("src/service.py") as file:
            assert [*file] == [b"one\n", b"two\n"]
            assert file.tell() == 8
        files.extract("src/", tmp_path / "out")
        assert contents(tmp_path / "out") == {"src": None, "src/service.py": b"one\ntwo\n"}


def test_blocking_open_closes_its_file(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = tempfile.SpooledTemporaryFile
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda size: made.append(make(size)) or made[-1])
    make_bento(home, files={"src/service.py": b"one"})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        with api.files("svc:v1").open("src/service.py"):
            assert [file.closed for file in made] == [False]
        assert [file.closed for file in made] == [True]


def test_open_file_block_error_outlives_api(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = tempfile.SpooledTemporaryFile
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda size: made.append(make(size)) or made[-1])
    make_bento(home, files={"src/service.py": b"one"})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")

        def fail() -> None:
            with api.files("svc:v1").open("src/service.py"):
                api.close()
                raise LookupError("of the block")

        with pytest.raises(LookupError, match="of the block"):
            fail()
    assert [file.closed for file in made] == [True]


async def test_huge_file_list_costs_little(served_tar: FaultProxy, make_client: MakeClient) -> None:
    """A server of a simulated file of 2 GiB, which generates each requested range."""
    size = 2 * 1024 * MiB
    head, tail = tar_of(("src/small", b"small", tarfile.REGTYPE))[:1024], tar_of(("z", b"end", tarfile.REGTYPE))
    info = tarfile.TarInfo("./src/model.bin")
    info.size = size
    head += info.tobuf(tarfile.PAX_FORMAT)
    total, sent = len(head) + size + len(tail), 0

    async def answer(exchange: Exchange) -> web.StreamResponse:
        nonlocal sent
        first, last = map(int, exchange.request.headers["Range"].removeprefix("bytes=").split("-"))
        last = min(last, total - 1)
        before = head[first : last + 1]
        after = tail[max(0, first - len(head) - size) : max(0, last + 1 - len(head) - size)]
        body = before + bytes(last + 1 - first - len(before) - len(after)) + after
        sent += len(body)
        headers = {"ETag": '"huge"', "Content-Range": f"bytes {first}-{last}/{total}"}
        return web.Response(status=206, body=body, headers=headers)

    served_tar.add_fault(GET, answer, times=None)
    files = make_client(served_tar).files("svc:v1")
    sizes = {entry.path: entry.size for entry in await files.list()}
    assert sizes == {"src/small": 5, "src/model.bin": size, "z": 3}
    assert sent <= MiB
    async with files.open("src/model.bin") as file:
        file.seek(-10, io.SEEK_END)
        assert await file.read() == bytes(10)
    assert sent <= MiB
