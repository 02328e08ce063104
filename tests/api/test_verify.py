"""Comparisons of a local copy with the registry, and of two items of the registry."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import tarfile
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from async_bento import (
    BentoAPI,
    ConfigError,
    NotFoundError,
    SourceChangedError,
    StoreError,
    TransferError,
)
from async_bento._core import platform
from async_bento.api import verify as verification
from async_bento.api.compare import PERMISSIONS, Node, compare
from async_bento.api.verify import _checksums, _parts
from async_bento.rest.schemas import ChecksumsSchema
from async_bento.transfer.tar.digests import digest_files
from async_bento.transfer.tar.reader import TarReader
from tests.builders import KiB, MiB, make_bento, make_model, random_bytes
from tests.fault_proxy import DOWNLOAD, GET, Hold, answer_json
from tests.fixtures import FEW_RANGES
from tests.platforms import link_if_possible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from async_bento import DiffResult, ProgressEvent, VerifyResult
    from async_bento.registry.server import LocalRegistry
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy

WEIGHTS = random_bytes(300 * KiB + 17, 5)
FILES = {"README.md": b"# Svc\n", "src/service.py": b"pass\n", "src/lib/util.py": b"x = 1\n", "src/weights": WEIGHTS}
OLD = 1_700_000_000 * 10**9
DOWNLOADS = f"{GET}|{DOWNLOAD}"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushes."""
    return tmp_path / "origin"


def make(home: Path, tag: str = "svc:v1", files: dict[str, bytes] | None = None) -> Path:
    """A bento with times that a tar cannot hold, an executable, links and an empty directory."""
    path = make_bento(home, tag, files={"README.md": b"# Svc\n", **(FILES if files is None else files)})
    (path / "run.sh").write_bytes(b"#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    link_if_possible(path / "link", "src/service.py")
    (path / "again").hardlink_to(path / "README.md")
    (path / "empty").mkdir()
    for file in path.rglob("*"):
        os.utime(file, ns=(OLD, OLD + 999_999_999), follow_symlinks=not file.is_symlink())
    return path


def words(result: VerifyResult | DiffResult) -> list[str]:
    """Return the method and the differences of a result."""
    return [
        result.method,
        *(f"{each.kind} {each.path} {' '.join(each.changes)}".strip() for each in result.differences),
    ]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def set_time(path: Path, ns: int = OLD) -> None:
    os.utime(path, ns=(ns, ns))


@pytest.mark.posix("links without a privilege")
@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_verify_compares_in_stages(
    transmission: str, start_proxy: StartProxy, make_client: MakeClient, origin: Path
) -> None:
    proxy = await start_proxy(transmission)
    make(origin)
    await make_client(proxy, origin).push("svc:v1")
    assert words(await make_client(proxy, origin).verify("svc:v1")) == ["checksums"]
    api = make_client(proxy, transfer=FEW_RANGES)
    pulled = (await api.pull("svc:v1")).path
    proxy.requests.clear()
    assert words(await api.verify("svc")) == ["checksums"]
    assert proxy.matching(DOWNLOADS) == []
    assert words(await api.verify(pulled, full=True)) == ["content"]

    (pulled / "src/lib/util.py").write_bytes(b"x = 2\n")
    set_time(pulled / "src/lib/util.py")
    assert words(await api.verify("svc:v1")) == ["index"]
    assert words(await api.verify("svc:v1", full=True)) == ["content", "changed src/lib/util.py content"]

    set_time(pulled / "src/weights", OLD + 2 * 10**9)
    (pulled / "src/service.py").write_bytes(b"more\n" * 9)
    set_time(pulled / "src/service.py")
    (pulled / "run.sh").chmod(0o644)
    (pulled / "link").unlink()
    (pulled / "link").symlink_to("README.md")
    (pulled / "README.md").unlink()
    (pulled / "empty").rmdir()
    (pulled / "new/deep").mkdir(parents=True)
    (pulled / "new/deep/file").touch()
    changed = ["changed link target", "added new/deep/file", "changed run.sh mode"]
    assert words(await api.verify("svc:v1")) == [
        "index",
        "removed README.md",
        "removed empty",
        *changed,
        "changed src/service.py size",
        "changed src/weights time",
    ]
    assert words(await api.verify("svc:v1", full=True)) == [
        "content",
        "removed README.md",
        "removed empty",
        *changed,
        "changed src/lib/util.py content",
        "changed src/service.py size",
    ]
    (pulled / "src/weights").unlink()
    os.mkfifo(pulled / "src/weights")
    assert "changed src/weights type" in words(await api.verify("svc:v1"))


@pytest.mark.posix("umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
async def test_verify_ignores_umask(mask: int, start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    with umask(0o022):
        make(origin)
    make_model(origin, "mod:m1")
    await make_client(proxy, origin).push("svc:v1")
    await make_client(proxy, origin).models.push("mod:m1")
    api = make_client(proxy)
    with umask(mask):
        await api.pull("svc:v1")
        await api.models.pull("mod:m1")
    assert words(await api.verify("svc:v1")) == ["checksums" if mask == 0o022 else "index"]
    assert (await api.models.verify("mod")).is_same


async def test_verify_uses_storage_etag(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    """Without checksums in the record, as with Yatai, the storage sends an ETag of one body or of parts."""
    proxy = await start_proxy()
    proxy.hides_checksums = True
    for tag, size in (("small:v1", 100), ("large:v1", 11 * MiB)):
        bento = make(origin, tag, {"weights": random_bytes(size, 7)})
        api = make_client(proxy, origin)
        assert (await api.push(tag)).parts == (3 if size > MiB else 1)
        assert words(await api.verify(tag)) == ["checksums"]
        with (bento / "weights").open("r+b") as weights:
            weights.write(b"other")
        set_time(bento / "weights", OLD + 999_999_999)
        assert words(await api.verify(tag)) == ["index"]
        assert len([step for step in proxy.steps(GET) if "bytes=0-" in step]) <= 2
        proxy.requests.clear()


async def test_verify_empty_tar_uses_index(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    """S3 has such an ETag for a multipart upload with one empty part."""
    proxy = await start_proxy()
    make(origin)
    api = make_client(proxy, origin)
    await api.push("svc:v1")

    async def answer(exchange: Exchange) -> web.StreamResponse:
        from aiohttp import web

        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        checksums = {"size": 0, "etag": f'"{hashlib.md5(b"").hexdigest()}-1"', "parts": []}
        return web.json_response(json.loads(answer.body) | {"checksums": checksums})

    proxy.add_fault("GET .*/svc/bentos/v1$|presign_download_url", answer, times=None)
    assert words(await api.verify("svc:v1")) == ["index"]


async def test_verify_streams_without_ranges(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start_proxy("proxy")
    proxy.hides_checksums = True
    proxy.add_fault(r"presign_download", answer_json(404, {"error": "no such route"}), times=None)
    make(origin, files={**FILES, **{f"many/{number:02}": bytes([number]) for number in range(80)}})
    await make_client(proxy, origin).push("svc:v1")
    api = make_client(proxy, transfer=FEW_RANGES)
    pulled = (await api.pull("svc:v1")).path
    assert words(await api.verify("svc:v1")) == ["index"]
    with (pulled / "src/weights").open("r+b") as weights:
        weights.write(b"other")
    (pulled / "many/66").write_bytes(b"!")
    changed = ["changed many/66 content", "changed src/weights content"]
    hashed: list[str] = []
    monkeypatch.setattr(
        verification, "digest_files", lambda root, paths: hashed.extend(paths) or digest_files(root, paths)
    )
    assert words(await api.verify("svc:v1", full=True)) == ["content", *changed]
    assert len(hashed) == len({*hashed}) > 80
    assert proxy.steps(GET) == []


async def test_verify_ignores_local_extras(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path
) -> None:
    proxy = await start_proxy()
    make_model(origin, "mod:m1")
    bento = make_bento(origin, files=FILES, models=["mod:m1"])
    api = make_client(proxy, origin)
    await api.push("svc:v1")
    pulled = await make_client(proxy).pull("svc:v1", path=tmp_path / "out", with_models=True)
    assert (pulled.path / "models/mod/m1/model.yaml").is_file()
    assert (await api.verify(pulled)).is_same  # the models change the time of the directory
    (pulled.path / ".async-bento").mkdir()
    (pulled.path / "src/.DS_Store").touch()
    (pulled.path / "src/__pycache__").mkdir()
    (pulled.path / "src/__pycache__/service.cpython-312.pyc").touch()
    assert words(await api.verify(pulled.path)) == ["index"]
    assert words(await api.verify(bento)) == ["checksums"]

    (bento / "src/__pycache__").mkdir()
    (bento / "src/__pycache__/old.pyc").touch()
    await api.push("svc:v1", force=True)
    assert words(await api.verify(pulled)) == ["index", "removed src/__pycache__/old.pyc"]


@pytest.mark.posix("links without a privilege")
async def test_verify_accepts_copied_links(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start_proxy()
    bento = make(origin)
    (bento / "src" / "inner").symlink_to("lib")
    (bento / "sources").symlink_to("src")
    await make_client(proxy, origin).push("svc:v1")
    api = make_client(proxy)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", refuse)
        patch.setattr(Path, "hardlink_to", refuse)
        pulled = (await api.pull("svc:v1")).path
    assert not (pulled / "link").is_symlink()
    assert words(await api.verify("svc:v1")) == ["index"]
    assert words(await api.verify("svc:v1", full=True)) == ["content"]
    (pulled / "sources" / "inner" / "util.py").unlink()
    set_time(pulled / "sources" / "inner")
    assert words(await api.verify("svc:v1")) == ["index", "removed sources/inner/util.py"]
    (pulled / "sources" / "inner" / "util.py").write_bytes(b"x = 1\n")
    set_time(pulled / "sources" / "inner" / "util.py")
    (pulled / "link").write_bytes(b"fail\n")
    set_time(pulled / "link")
    assert words(await api.verify("svc:v1", full=True)) == ["content", "changed link content"]


@pytest.mark.posix("file modes")
async def test_verify_works_without_modes(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On exFAT, every file is executable; on Windows, no file is."""
    proxy = await start_proxy()
    bento = make(origin)
    api = make_client(proxy, origin)
    await api.push("svc:v1")
    for path in bento.rglob("*"):
        path.chmod(0o777)
    assert words(await api.verify("svc:v1")) == ["index"]
    (bento / "src/weights").chmod(0o666)
    assert "changed src/service.py mode" in words(await api.verify("svc:v1"))
    monkeypatch.setattr(platform, "HAS_MODES", False)
    assert (await api.verify("svc:v1")).is_same


async def test_verify_unpushable_uses_index(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    proxy = await start_proxy()
    bento = make(origin)
    api = make_client(proxy, origin)
    await api.push("svc:v1")
    (bento / "outside").symlink_to("/etc/passwd")
    assert words(await api.verify("svc:v1")) == ["index", "added outside"]
    assert "its list of files is compared, since" in caplog.text


@pytest.mark.parametrize(("ns", "changes"), [(999_999_999, []), (10**9, [("time",)]), (-(10**9), [("time",)])])
def test_compare_ignores_part_of_second(ns: int, changes: list[tuple[str, ...]]) -> None:
    old, new = {"weights": Node("file", 1, OLD)}, {"weights": Node("file", 1, OLD + ns)}
    assert [each.changes for each in compare(old, new, PERMISSIONS)] == changes


@pytest.mark.parametrize(
    ("sizes", "is_valid"), [((1, 2), True), ((0, 3), False), ((-1, 4), False), ((1, 1), False), ((2, 2), False)]
)
def test_invalid_part_sizes_are_ignored(sizes: tuple[int, ...], is_valid: bool) -> None:
    parts = [(size, "0" * 32) for size in sizes]
    checksums = ChecksumsSchema(size=3, etag='"any-2"', parts=parts)
    assert [*_parts(checksums, None)] == (parts if is_valid else [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("total", "etag", "is_known"), [(3, '"any"', True), (None, '"any"', False), (3, "", False), (3, 'W/"any"', False)]
)
async def test_weak_etag_is_no_checksum(total: int | None, etag: str, is_known: bool) -> None:
    remote: Any = SimpleNamespace(record=SimpleNamespace(checksums=None))
    tar: Any = SimpleNamespace(total=total, etag=etag, load=AsyncMock())
    found = await _checksums(remote, tar)
    assert found == (ChecksumsSchema(size=3, etag=etag, parts=[]) if is_known else None)


async def test_verify_may_have_no_file_to_read(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    model = make_model(home)
    api = make_client(await start_proxy())
    await api.models.push("mod:m1")
    for file in ("model.yaml", "weights"):
        with (model / file).open("ab") as opened:
            opened.write(b"\n\n")
    assert words(await api.models.verify(model, full=True)) == [
        "content",
        "changed model.yaml size",
        "changed weights size",
    ]


async def test_failed_read_closes_its_file(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, files={"weights": random_bytes(3 * MiB)})
    api = make_client(await start_proxy("presigned_url"))
    await api.push("svc:v1")
    read, opened = TarReader.read, []

    def fail(self: TarReader) -> memoryview:
        chunk = read(self)
        if self._file is not None:
            opened.append(self._file.descriptor)
            raise RuntimeError("broken")
        return chunk

    monkeypatch.setattr(TarReader, "read", fail)
    with pytest.raises(RuntimeError, match="broken"):
        await api.verify("svc:v1")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


async def test_missing_item_is_not_found(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    with pytest.raises(NotFoundError, match=f"no bento svc:v1 in {re.escape(str(home))}"):
        await api.verify("svc:v1")
    with pytest.raises(NotFoundError, match="there is no such directory"):
        await api.verify(home / "no" / "Directory")
    with pytest.raises(NotFoundError, match="there is no such directory"):
        await api.verify(f"{home}/no/Directory")
    make_bento(home)
    with pytest.raises(NotFoundError, match="no bento svc:v1 in the registry"):
        await api.verify("svc:v1")
    await api.push("svc:v1", bare=True)
    with pytest.raises(NotFoundError, match="cannot verify svc:v1: the registry has a record of the bento, but not"):
        await api.verify("svc:v1")
    with pytest.raises(NotFoundError, match=r"cannot compare svc:v1: .*but not its files"):
        await api.diff("svc:v1", "svc")


async def test_verify_rejects_hub_model(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_model(home, "mod:m1", metadata={"registry": "huggingface"})
    await api.models.push("mod:m1")
    for verified in (api.models.verify("mod:m1"), api.models.diff("mod", "mod")):
        with pytest.raises(ConfigError, match=r"mod:m1: its files are on the Hugging Face Hub\. Pull the model"):
            await verified
    api = make_client(proxy, home / "other")
    with pytest.raises(ConfigError, match="cannot verify mod:m1: its files are on the Hugging Face Hub"):
        await api.models.verify("mod:m1")


async def test_verify_stops_at_change(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start_proxy()
    events: list[ProgressEvent] = []
    bento = make(home, files={"weights": WEIGHTS})
    api = make_client(proxy, progress=events.append)
    await api.push("svc:v1")
    events.clear()
    await api.verify("svc:v1")
    assert [(event.direction, event.phase) for event in events[:2]] == [
        ("verify", "planning"),
        ("verify", "transferring"),
    ]
    assert (events[-1].phase, events[-1].bytes_done) == ("done", events[-1].bytes_total)
    assert events[-1].bytes_done > len(WEIGHTS)
    await api.verify("svc:v1", full=True)
    assert (events[-1].phase, events[-1].bytes_done) == ("done", events[-1].bytes_total)
    (bento / "weights").write_bytes(WEIGHTS[::-1])
    events.clear()
    await api.verify("svc:v1")
    phases = [phase for phase, _ in groupby(event.phase for event in events)]
    assert phases == ["planning", "transferring", "planning", "done"]

    read = TarReader.read

    def read_and_change(self: TarReader, limit: int | None = None) -> bytes:
        (bento / "weights").write_bytes(b"new")
        return read(self, limit)

    monkeypatch.setattr(TarReader, "read", read_and_change)
    with pytest.raises(SourceChangedError, match=r"cannot verify svc:v1: .*weights changed meanwhile\. Verify again"):
        await api.verify("svc:v1")
    assert events[-1].phase == "failed"


async def test_verify_can_be_cancelled(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    proxy = await start_proxy()
    make(home)
    api = make_client(proxy)
    await api.push("svc:v1")
    held = Hold(released=forever)
    proxy.add_fault(GET, held, times=None, skip=1)
    verifying = asyncio.create_task(api.verify("svc:v1", full=True))
    await held.arrived.wait()
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert api._resources.pool.window.free == api._resources.config.transfer.window

    events: list[ProgressEvent] = []

    def cancel(event: ProgressEvent) -> None:
        events.append(event)
        if event.bytes_done and event.phase == "transferring":
            hashing.cancel()

    hashing = asyncio.create_task(make_client(proxy, progress=cancel, transfer={"io_chunk": 4 * KiB}).verify("svc:v1"))
    with pytest.raises(asyncio.CancelledError):
        await hashing
    assert (events[-1].phase, events[-1].bytes_done) == ("interrupted", 4 * KiB)


async def test_verify_unreadable_dir_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start_proxy()
    make(home)
    api = make_client(proxy)
    await api.push("svc:v1")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("src"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match=r"cannot read .*: Permission denied"):
        await api.verify("svc:v1")


async def test_verify_repushed_item_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    make(home)
    api = make_client(proxy)
    await api.push("svc:v1")
    await api.files("svc:v1").list()  # so that the list needs one request
    count = 0

    async def replaced(exchange: Exchange) -> web.StreamResponse:
        nonlocal count
        count += 1
        answer = await exchange.forward()
        answer.headers["ETag"] = f'"{count}"'
        return answer

    proxy.add_fault(GET, replaced, times=None, skip=1)
    with pytest.raises(TransferError, match=r"cannot compare svc:v1: the item was pushed again meanwhile\. Try again"):
        await api.verify("svc:v1", full=True)


@pytest.mark.posix("file modes")
async def test_diff_compares_in_stages(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> None:
    proxy = await start_proxy()
    make(origin)
    second = make(origin, "svc:v2", {**FILES, "src/new.py": b"new\n"})
    for name in ("bento.yaml", "src/lib"):  # one of them contains the version
        set_time(second / name, OLD)
    (second / "README.md").write_bytes(b"# SVC\n")
    set_time(second / "README.md", OLD)
    (second / "run.sh").chmod(0o750)
    set_time(second / "src/weights", OLD + 60 * 10**9)
    (second / "src/lib/util.py").unlink()
    (second / "src/lib").rmdir()
    api = make_client(proxy, origin)
    await api.push(["svc:v1", "svc:v2"])
    changed = ["changed run.sh mode", "removed src/lib/util.py", "added src/new.py"]
    result = await api.diff("svc:v1", "svc:v2")
    assert (str(result.tag), str(result.other), result.is_same) == ("svc:v1", "svc:v2", False)
    assert words(result) == ["index", *changed, "changed src/weights time"]
    full = await api.diff("svc:v1", "svc:v2", full=True)
    content = ["changed README.md content", "changed again content", "changed bento.yaml content"]
    assert words(full) == ["content", *content, *changed]
    back = await api.diff("svc:v2", "svc:v1")
    assert words(back) == [
        "index",
        "changed run.sh mode",
        "added src/lib/util.py",
        "removed src/new.py",
        "changed src/weights time",
    ]

    proxy.requests.clear()
    assert words(await api.diff("svc:v1", "svc:v1")) == ["checksums"]
    assert proxy.matching(DOWNLOADS) == []
    assert words(await api.diff("svc:v1", "svc:v1", full=True)) == ["content"]


def test_blocking_verify_and_diff(served: LocalRegistry, home: Path) -> None:
    make(home)
    make_model(home, "mod:m1")
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        api.models.push("mod:m1")
        assert words(api.verify("svc:v1")) == words(api.models.verify("mod:m1")) == ["checksums"]
        assert words(api.diff("svc", "svc:v1")) == words(api.models.diff("mod", "mod")) == ["checksums"]


async def test_verify_reads_foreign_tar(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    """BentoML's tar has owners and fractions of seconds; this one also lacks directories, and may be compressed."""
    proxy = await start_proxy()
    bento = make(home)
    api = make_client(proxy)
    await api.push("svc:v1")
    tar_path = home / "other.tar"
    with tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(bento.rglob("*")):
            if path.name == "empty" or not path.is_dir():
                tar.add(path, str(path.relative_to(bento)))
    bodies: list[bytes] = []

    async def serve(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        first, last = map(int, exchange.request.headers["Range"].removeprefix("bytes=").split("-"))
        body = bodies[-1]
        answer.body = body[first : last + 1]
        answer.headers.update(
            {"ETag": f'"{len(body)}"', "Content-Range": f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"}
        )
        answer.headers.pop("Content-Length", None)
        answer.set_status(206)
        return answer

    proxy.hides_checksums = True
    proxy.add_fault(GET, serve, times=None)
    plain = tar_path.read_bytes()
    for body in (plain, gzip.compress(plain)):
        bodies.append(body)
        assert words(await api.verify("svc:v1")) == ["index"]
        assert words(await api.verify("svc:v1", full=True)) == ["content"]
