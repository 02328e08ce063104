"""The stored bytes: checksums, the check, the cleanup, and the layout of older releases."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from async_bento import AsyncBentoAPI, BentoStore, ModelStore
from async_bento._core import platform
from async_bento._core.concurrency import run_in_new_thread
from async_bento.cli import main
from async_bento.registry.blobs.base import Content, Part
from async_bento.registry.blobs.disk_files import DiskFiles
from async_bento.registry.check import Damage, find_damage
from async_bento.registry.records.blobs import Blob
from tests.builders import contents, make_bento
from tests.cli_runner import make_runner
from tests.registry.conftest import clean_up, disk_only
from tests.registry.test_downloads import changed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve, Stored

DATA = os.urandom(100_000)
PART = os.urandom(5 * 2**20)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


async def push_in_parts(caller: Caller, *parts: bytes, version: str = "v1") -> None:
    """Upload and finish an item."""
    upload_id = await caller.start_multipart(version)
    etags = [(n, await caller.put_part(upload_id, n, part, version)) for n, part in enumerate(parts, start=1)]
    assert (await caller.complete(upload_id, etags, version)).status == 200
    await caller.finish(version)


# Checksums


async def test_checksums_have_md5_per_part(either: Caller):
    await either.create()
    assert (await either.get())["checksums"] is None
    await push_in_parts(either, PART, DATA)
    whole = hashlib.md5(bytes.fromhex(md5(PART)) + bytes.fromhex(md5(DATA))).hexdigest()
    expected = {
        "size": len(PART + DATA),
        "etag": f'"{whole}-2"',
        "parts": [[len(PART), md5(PART)], [len(DATA), md5(DATA)]],
    }
    presigned = await either.ok("PATCH", f"{either.items()}/v1/presign_download_url")
    assert (await either.get())["checksums"] == presigned["checksums"] == expected
    assert "checksums" not in (await either.list())["items"][0]


@pytest.mark.parametrize("way", ["proxy", "presigned_put"])
async def test_checksum_of_one_body_is_md5(caller: Caller, way: str):
    await caller.create()
    if way == "proxy":
        await caller.upload(DATA)
    else:
        await caller.bare("PUT", await caller.put_url(), data=DATA)
        await caller.finish()
    found = (await caller.get())["checksums"]
    assert found == {"size": len(DATA), "etag": f'"{md5(DATA)}"', "parts": [[len(DATA), md5(DATA)]]}


# Publication of uploaded bytes


async def test_failed_upload_keeps_bytes(caller: Caller):
    await caller.create()
    await caller.upload(b"old")
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, b"new")
    await caller.complete(upload_id, [(1, etag)])
    await caller.finish(status="failed")
    assert (await caller.download()).body == b"old"
    await caller.finish()
    assert (await caller.download()).body == b"new"


async def test_download_url_keeps_bytes(caller: Caller):
    await caller.create()
    await caller.upload(b"old")
    url = await caller.get_url()
    await caller.upload(b"new")
    assert (await caller.bare("GET", url)).body == b"old"
    await clean_up(caller, hours=0.9)
    assert (await caller.bare("GET", url, headers={"Range": "bytes=1-2"})).body == b"ld"
    await clean_up(caller, hours=1.1)
    assert (await caller.bare("GET", url)).status == 404
    assert (await caller.download()).body == b"new"


async def test_replaced_bytes_outlive_urls(serve: Serve, stored_files: Stored):
    caller = await serve(url_expiry=7200)
    await caller.create()
    await caller.upload(b"old")
    await caller.upload(b"new")
    await clean_up(caller, hours=1.9)
    assert stored_files.has_count(disk=2, s3=2)
    await clean_up(caller, hours=2.1)
    assert stored_files.has_count(disk=1, s3=1)


@disk_only
async def test_upload_url_ends_at_finish(caller: Caller, stored_files: Stored):
    await caller.create()
    older, used = await caller.put_url(), await caller.put_url()
    for url, body in ((older, b"older"), (used, DATA)):
        assert (await caller.bare("PUT", url, data=body)).status == 200
    await caller.finish()
    for url in (older, used):
        late = await caller.bare("PUT", url, data=b"late")
        assert late.status == 404
        assert b"<Code>NoSuchUpload</Code>" in late.body
    await caller.finish()
    assert (await caller.download()).body == DATA
    await clean_up(caller, hours=2)
    assert len(stored_files()) == 1


async def test_other_upload_url_stays_open(caller: Caller):
    await caller.create()
    other, mine = await caller.put_url(), await caller.put_url()
    await caller.bare("PUT", mine, data=b"mine")
    await caller.finish()
    assert (await caller.bare("PUT", other, data=b"other")).status == 200
    assert (await caller.download()).body == b"mine"
    await caller.finish()
    assert (await caller.download()).body == b"other"


async def test_multipart_upload_stays_open(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    first = await caller.put_part(upload_id, 1, PART)
    await caller.upload(b"other")
    etags = [(1, first), (2, await caller.put_part(upload_id, 2, b"end"))]
    assert (await caller.complete(upload_id, etags)).status == 200
    await caller.finish()
    assert (await caller.download()).body == PART + b"end"


@disk_only
async def test_lost_key_invalidates_urls(caller: Caller, tmp_path: Path):
    await caller.create()
    await caller.upload(DATA)
    get, put = await caller.get_url(), await caller.put_url()
    before = caller.registry.endpoint
    await caller.registry.close()
    (tmp_path / "registry" / "signing_key").unlink()
    await caller.registry.start()
    for method, url in (("GET", get), ("PUT", put)):
        there = changed(url.replace(before, caller.registry.endpoint))
        assert (await caller.bare(method, there, data=b"x" if method == "PUT" else None)).status == 403


@disk_only
async def test_part_upload_again_replaces(caller: Caller, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    url = await caller.part_url(upload_id, 1)
    for number in range(5):
        assert (await caller.bare("PUT", url, data=b"body %d" % number)).status == 200
    assert len(stored_files()) == 1


# Cleanup of bytes without a record


async def test_orphaned_bytes_are_removed(
    caller: Caller, stored_files: Stored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "async_bento.registry")
    await caller.create()
    await caller.upload(DATA)
    await caller.create(version="v2")

    async def forget(*_: object) -> None:
        """The registry is killed after the upload of the bytes."""

    with monkeypatch.context() as patch:
        patch.setattr("async_bento.registry.records.sql.publish", forget)
        await caller.upload(b"killed", "v2")
    await clean_up(caller, hours=23)
    assert stored_files.has_count(disk=2, s3=2)
    await clean_up(caller, hours=25)
    assert stored_files.has_count(disk=1, s3=1)
    assert "removed bytes without a record: bentos/iris/v2/" in caplog.text
    assert (await caller.download()).body == DATA


async def test_lost_database_keeps_bytes(
    caller: Caller, stored_files: Stored, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    await caller.create()
    await caller.upload(b"one")
    for version in ("v2", "v3"):
        await caller.create(version=version)
        with monkeypatch.context() as patch:
            patch.setattr("async_bento.registry.records.sql.publish", lambda *_: asyncio.sleep(0))
            await caller.upload(b"lost", version)
    await clean_up(caller, hours=25)
    assert "2 objects without a record, but only 1 with one, so none is removed" in caplog.text
    assert "the first is bentos/iris/v2/" in caplog.text
    assert stored_files.has_count(disk=3, s3=3)


# The check


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def check(*options: str) -> Any:
    result = make_runner().invoke(main, ["registry", "check", "--json", *options])
    return result.exit_code, json.loads(result.stdout)


@disk_only
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"!" + path.read_bytes()[1:]), "part 2 of 2 has the MD5 "),
        (lambda path: os.truncate(path, 9), f"part 2 of 2 has 9 bytes instead of {len(DATA)}"),
        (lambda path: path.unlink(), "part 2 of 2 is missing"),
    ],
)
async def test_check_names_damaged_items(
    caller: Caller, tmp_path: Path, stored_files: Stored, damage: Any, reason: str
):
    root = tmp_path / "registry"
    for version in ("v1", "v2"):
        await caller.create(version=version)
        await push_in_parts(caller, PART, DATA, version=version)
    assert await asyncio.to_thread(check, "--root", str(root)) == (0, {"n_checked": 2, "damaged": []})
    (name,) = [name for name in stored_files() if "/v2/" in name and "/00002." in name]
    damage(root / "blobs" / name)
    code, found = await asyncio.to_thread(check, "--root", str(root))
    assert (code, found["n_checked"], len(found["damaged"])) == (1, 2, 1)
    (one,) = found["damaged"]
    assert (one["kind"], one["tag"]) == ("bento", "iris:v2")
    assert one["reason"].startswith(reason)
    assert name.startswith(one["key"])


@disk_only
async def test_check_prints_text(caller: Caller, tmp_path: Path, stored_files: Stored):
    root = tmp_path / "registry"
    await caller.create()
    await caller.upload(DATA)
    result = await asyncio.to_thread(make_runner().invoke, main, ["registry", "check", "--root", str(root)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Checked 1 objects, 97.7 KiB: all are as they were pushed." in result.stderr
    (name,) = stored_files()
    (root / "blobs" / name).unlink()
    result = await asyncio.to_thread(make_runner().invoke, main, ["registry", "check", "--root", str(root)])
    assert result.exit_code == 1
    assert result.stdout.startswith("bento iris:v1: part 1 of 1 is missing (in bentos/iris/v1/")
    assert "1 damaged. Push these again with --force, or restore them from a backup." in result.stderr


@disk_only
async def test_terminal_shows_checked_bytes(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = Terminal()
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm, file=drawn, mininterval=0))
    await caller.create()
    await caller.upload(DATA)
    for command in ("check", "backup"):
        words = ["registry", command, *([str(tmp_path / "backup")] if command == "backup" else [])]
        result = await asyncio.to_thread(make_runner().invoke, main, [*words, "--root", str(tmp_path / "registry")])
        assert result.exit_code == 0, result.stderr
    frames = [frame.strip() for frame in drawn.getvalue().split("\r") if frame.strip()]
    assert any(frame.startswith("checking: 100%|") and "97.7k/97.7k" in frame for frame in frames), frames
    assert any(frame.startswith("copying: 97.7kB [") for frame in frames), frames
    assert drawn.getvalue().endswith("\r")  # the bar is removed


@pytest.mark.parametrize(("state", "n_damaged"), [("current", 1), ("unused", 0), (None, 0)])
async def test_check_ignores_replaced_bytes(state: Any, n_damaged: int):
    """The bytes were replaced or deleted after the check has read their record."""
    blob = Blob(1, "models/clf/m1/id", 1, None, "current", Content(4, '"x"'), datetime.now(timezone.utc))
    pages = {0: [blob], 1: []}

    class Records:
        async def page_of_current(self, after: int, _: int) -> list[Blob]:
            return pages[after]

        async def find(self, _: str) -> Blob | None:
            return state and replace(blob, state=state)

    class Blobs:
        async def find_damage(self, *_: object) -> str:
            return "part 1 of 1 is missing"

    checked: list[int] = []
    records: Any = Records()
    blobs: Any = Blobs()
    expected = [Damage("model", "clf:m1", blob.key, "part 1 of 1 is missing")] * n_damaged
    assert await find_damage(records, blobs, checked.append) == expected
    assert checked == [4]


async def test_cancelled_check_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = (Part(4, md5(b"data")), Part(4, md5(b"data")))
    (tmp_path / "key").mkdir()
    for number in (1, 2):
        (tmp_path / "key" / f"0000{number}.{md5(b'data')}").write_bytes(b"data")
    opened: list[Path] = []
    is_cancelled, loop, open_shared = threading.Event(), asyncio.get_running_loop(), platform.open_shared

    def cancel() -> None:
        checking.cancel()
        loop.call_soon(loop.call_soon, is_cancelled.set)

    def note(path: Path) -> Any:
        opened.append(path)
        loop.call_soon_threadsafe(cancel)
        is_cancelled.wait(20)
        return open_shared(path)

    monkeypatch.setattr(platform, "open_shared", note)
    files = DiskFiles(tmp_path, min_part_size=1)
    checking = asyncio.create_task(run_in_new_thread(files.find_damage, "key", Content(8, '"x"', parts)))
    await asyncio.wait([checking])
    assert checking.cancelled()
    assert len(opened) == 1


def test_check_works_in_fips_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There, OpenSSL refuses MD5 except for purposes that are not security."""
    found = Content(4, f'"{md5(b"data")}"', (Part(4, md5(b"data")),))
    part = tmp_path / "key" / f"00001.{md5(b'data')}"
    part.parent.mkdir()
    part.write_bytes(b"data")
    permitted = hashlib.md5

    def refuse(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        assert not usedforsecurity
        return permitted(data, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "md5", refuse)
    assert DiskFiles(tmp_path, min_part_size=1).find_damage("key", found) is None


def test_check_creates_no_registry(tmp_path: Path):
    result = make_runner().invoke(main, ["registry", "check", "--root", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "it holds no registry" in result.stderr
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    result = make_runner().invoke(main, ["registry", "check", "--root", str(tmp_path / "file")])
    assert (result.exit_code, "is a file" in result.stderr) == (2, True)


# Directories of older releases


def to_old_layout(root: Path, caller_files: list[str]) -> None:
    """Turn the bytes of a registry into those of the first release."""
    blobs = root / "blobs"
    for directory in {(blobs / name).parent for name in caller_files}:
        items, name, version, upload_id = directory.relative_to(blobs).parts
        parts = sorted(path.name for path in directory.iterdir())
        sizes = [(directory / part).stat().st_size for part in parts]
        md5s = [part[6:] for part in parts]
        whole = md5(b"".join(map(bytes.fromhex, md5s)))
        etag = f'"{whole}-{len(parts)}"' if len(parts) > 1 else f'"{md5s[0]}"'
        (blobs / "data").mkdir(exist_ok=True)
        directory.rename(blobs / "data" / upload_id)
        pointer = blobs / "objects" / items / name / f"{version}.tar.json"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(json.dumps({"id": upload_id, "etag": etag, "parts": parts, "sizes": sizes}))


async def old_registry(caller: Caller, root: Path, stored_files: Stored) -> None:
    """Fill a registry with two items, and stop it in the layout of the first release."""
    await caller.create()
    await push_in_parts(caller, PART, DATA)
    await caller.create(version="v2")
    await caller.upload(b"two", "v2")
    await caller.registry.close()
    await asyncio.to_thread(to_old_layout, root, stored_files())
    with sqlite3.connect(root / "registry.sqlite3") as database:
        database.execute("DELETE FROM blobs")
    database.close()


@disk_only
async def test_old_layout_is_migrated(caller: Caller, tmp_path: Path, stored_files: Stored):
    root = tmp_path / "registry"
    before = [PART + DATA, b"two"]
    await old_registry(caller, root, stored_files)
    killed = root / "blobs" / "data" / ("0" * 32)
    killed.mkdir()
    (killed / "upload").write_text("bentos/iris/v3.tar")
    (complete,) = [part.parent for part in (root / "blobs/data").rglob("00002.*")]
    (complete / "upload").write_text("bentos/iris/v1.tar")  # a completion that was killed at its end
    await caller.registry.start()
    assert [(await caller.download(version)).body for version in ("v1", "v2")] == before
    assert [part[0] for part in (await caller.get())["checksums"]["parts"]] == [len(PART), len(DATA)]
    assert sorted(path.name for path in (root / "blobs").iterdir()) == ["bentos"]
    assert [*(root / "blobs").rglob("upload")] == []
    await clean_up(caller, hours=48)
    await caller.registry.close()
    await caller.registry.start()
    assert [(await caller.download(version)).body for version in ("v1", "v2")] == before


@disk_only
async def test_damaged_old_layout_starts(
    caller: Caller, tmp_path: Path, stored_files: Stored, caplog: pytest.LogCaptureFixture
):
    root = tmp_path / "registry"
    await old_registry(caller, root, stored_files)
    await asyncio.to_thread(shutil.rmtree, root / "blobs/bentos")  # the first release had no such directories
    pointer = root / "blobs/objects/bentos/iris/v2.tar.json"
    pointer.write_text("")
    files = sum(1 for path in (root / "blobs").rglob("*") if path.is_file())
    await caller.registry.start()
    assert f"left {pointer}, which is no object" in caplog.text
    assert (await caller.download()).body == PART + DATA
    assert (await caller.download("v2")).status == 404
    await clean_up(caller, hours=48)
    assert sum(1 for path in (root / "blobs").rglob("*") if path.is_file()) == files - 1  # the pointer of v1
    assert (await caller.upload(b"again", "v2")).status == 200
    assert (await caller.download("v2")).body == b"again"


@disk_only
async def test_start_without_blobs_is_safe(caller: Caller, tmp_path: Path, stored_files: Stored):
    await caller.create()
    await caller.upload(DATA)
    await caller.registry.close()
    blobs, elsewhere = tmp_path / "registry/blobs", tmp_path / "elsewhere"
    blobs.rename(elsewhere)
    await caller.registry.start()
    assert (await caller.get())["upload_status"] == "success"
    assert (await caller.download()).status == 404
    await clean_up(caller, hours=48)
    await caller.registry.close()
    await asyncio.to_thread(blobs.rmdir)
    elsewhere.rename(blobs)
    await caller.registry.start()
    assert (await caller.download()).body == DATA


@disk_only
async def test_stale_files_are_removed(caller: Caller, tmp_path: Path, stored_files: Stored):
    await caller.create()
    await caller.upload(DATA)
    (name,) = stored_files()
    staged = (tmp_path / "registry/blobs" / name).with_name(".half")
    staged.write_bytes(b"half")
    await clean_up(caller, hours=1)
    assert staged.exists()
    os.utime(staged, (time.time() - 90_000,) * 2)
    await clean_up(caller, hours=1)
    assert not staged.exists()
    assert (await caller.download()).body == DATA


# A whole pull


async def test_pull_during_push_is_atomic(caller: Caller, home: Path, tmp_path: Path):
    endpoint, token = caller.registry.endpoint, caller.registry.api_token
    bento = make_bento(home, "svc:v1", files={"weights.bin": os.urandom(12_000_000)})
    old = contents(bento)
    async with AsyncBentoAPI(endpoint=endpoint, api_token=token) as api:
        await api.push("svc:v1")
        (bento / "weights.bin").write_bytes(os.urandom(12_000_000))
        new = contents(bento)
        pulled: list[Any] = []

        async def pull(number: int) -> None:
            home = tmp_path / f"there{number}"
            async with AsyncBentoAPI(
                endpoint=endpoint,
                api_token=token,
                bento_store=BentoStore(home / "bentos"),
                model_store=ModelStore(home / "models"),
            ) as there:
                pulled.append(contents((await there.pull("svc:v1")).path))

        await asyncio.gather(api.push("svc:v1", force=True), *(pull(number) for number in range(3)))
    assert all(found in (old, new) for found in pulled)
