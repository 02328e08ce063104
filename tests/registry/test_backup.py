"""Backups of a registry that runs, and their restore."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.cli import main
from async_bento.registry import backup
from async_bento.registry.loading import load_backend
from async_bento.registry.server import LocalRegistry
from tests.cli_runner import make_runner
from tests.platforms import IS_WINDOWS
from tests.registry.conftest import Caller, disk_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Serve

pytestmark = disk_only

DATA = os.urandom(50_000)


async def run(*arguments: object) -> Any:
    words = ["registry", *map(str, arguments)]
    return await asyncio.to_thread(make_runner().invoke, main, words)


async def push(caller: Caller, version: str, body: bytes) -> None:
    await caller.create(version=version)
    assert (await caller.upload(body, version)).status == 200


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


async def test_backup_under_load_restores(serve: Serve, tmp_path: Path):
    caller = await serve()
    bodies = {f"v{number}": os.urandom(20_000) for number in range(40)}
    for version in ("v0", "v1"):
        await push(caller, version, bodies[version])

    async def pushes(versions: list[str]) -> None:
        for number, version in enumerate(versions):
            await push(caller, version, bodies[version])
            if number % 5 == 4:
                await caller.ok("DELETE", f"{caller.items()}/{version}")

    load = [asyncio.create_task(pushes([f"v{number}" for number in range(start, 40, 4)])) for start in range(2, 6)]
    await asyncio.sleep(0.1)
    backed_up = await run("backup", tmp_path / "backup", "--root", tmp_path / "registry")
    assert backed_up.exit_code == 0, backed_up.stderr
    await asyncio.gather(*load)
    token = caller.registry.api_token

    restored = await run("restore", tmp_path / "backup", "--root", tmp_path / "new")
    assert (restored.exit_code, restored.stdout) == (0, ""), restored.stderr
    assert restored.stderr.startswith(f"Restored {tmp_path / 'backup'} into {tmp_path / 'new'}. Run: ")
    assert (await run("check", "--root", tmp_path / "new")).exit_code == 0
    async with LocalRegistry(tmp_path / "new") as registry:
        assert registry.api_token == token
        there = Caller(registry, caller.session, caller.words)
        items = (await there.list())["items"]
        found = {item["version"]: item["upload_status"] for item in items}
        assert {"v0", "v1"} <= found.keys()
        for version, status in found.items():
            if status == "success":
                assert (await there.download(version)).body == bodies[version]


async def test_next_backup_is_incremental(caller: Caller, tmp_path: Path):
    root, target = tmp_path / "registry", tmp_path / "backup"
    await push(caller, "v1", DATA)
    await push(caller, "v2", DATA)
    first = await run("backup", target, "--root", root)
    assert "Backed up 2 items" in first.stderr
    assert "97.7 KiB copied" in first.stderr
    await caller.ok("DELETE", f"{caller.items()}/v1")
    await push(caller, "v3", DATA[:1024])
    second = await run("backup", target, "--root", root)
    assert "Backed up 2 items" in second.stderr
    assert "1.0 KiB copied" in second.stderr
    assert sum(len(body) for name, body in files(target).items() if name.startswith("blobs")) == len(DATA) + 1024
    assert sorted(path.name for path in target.iterdir()) == ["api_token", "blobs", "registry.sqlite3", "signing_key"]


async def test_backup_counts_copied_bytes(caller: Caller, tmp_path: Path):
    root, target = tmp_path / "registry", tmp_path / "backup"
    backend = await load_backend(root=root, database=None, bucket=None)
    await push(caller, "v1", DATA)
    await push(caller, "v2", DATA[:7])
    for sizes in ([len(DATA), 7], [0, 0]):
        copied: list[int] = []
        async with backend.attached() as opened:
            result = await backup.back_up(root, target, opened.records.database, copied.append)
        assert (result, copied) == ((2, sum(sizes), []), sizes)


async def test_cancelled_backup_stops(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    caller = await serve(min_part_size=0)
    await caller.create()
    upload_id = await caller.start_multipart()
    etags = [(number, await caller.put_part(upload_id, number, b"part")) for number in (1, 2)]
    assert (await caller.complete(upload_id, etags)).status == 200
    await caller.finish()
    copied: list[Path] = []
    is_cancelled, loop = threading.Event(), asyncio.get_running_loop()

    def cancel() -> None:
        backing_up.cancel()
        loop.call_soon(loop.call_soon, is_cancelled.set)

    def copy(_: Path, target: Path) -> None:
        copied.append(target)
        target.touch()
        loop.call_soon_threadsafe(cancel)
        is_cancelled.wait(20)

    monkeypatch.setattr(backup.shutil, "copyfile", copy)
    backend = await load_backend(root=tmp_path / "registry", database=None, bucket=None)
    async with backend.attached() as opened:
        database = opened.records.database
        backing_up = asyncio.create_task(backup.back_up(tmp_path / "registry", tmp_path / "backup", database, print))
        await asyncio.wait([backing_up])
    assert backing_up.cancelled()
    assert len(copied) == 1


async def test_backup_syncs_each_part(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power failure must not leave a damaged part under the name by which the next backup takes it as complete."""
    await push(caller, "v1", DATA)
    synced: list[str] = []
    monkeypatch.setattr(backup, "fsync_path", lambda path: synced.append(path.name))
    result = await run("backup", tmp_path / "backup", "--root", tmp_path / "registry")
    assert result.exit_code == 0, result.stderr
    parts = [path.name for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file()]
    assert parts
    assert {*synced} == {f".{name}" for name in [*parts, "registry.sqlite3"]}
    synced.clear()
    await run("restore", tmp_path / "backup", "--root", tmp_path / "new" / "root")
    assert {*synced} == {*parts, ".restoring-registry.sqlite3"}


async def test_backup_is_private_registry(caller: Caller, tmp_path: Path):
    await push(caller, "v1", DATA)
    await run("backup", tmp_path / "backup", "--root", tmp_path / "registry")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "backup").iterdir()}
    assert sorted(modes) == ["api_token", "blobs", "registry.sqlite3", "signing_key"]
    assert IS_WINDOWS or {name for name, mode in modes.items() if mode == 0o700} == {"blobs"}
    assert IS_WINDOWS or {name for name, mode in modes.items() if mode == 0o600} == {*modes} - {"blobs"}
    assert IS_WINDOWS or (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    (tmp_path / "backup" / "blobs").chmod(0o755)
    await run("restore", tmp_path / "backup", "--root", tmp_path / "new")
    assert IS_WINDOWS or {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == modes
    async with LocalRegistry(tmp_path / "backup") as registry:
        assert (await Caller(registry, caller.session, caller.words).download()).body == DATA


async def test_failed_backup_keeps_earlier(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, target = tmp_path / "registry", tmp_path / "backup"
    await push(caller, "v1", DATA)
    await run("backup", target, "--root", root)
    await push(caller, "v2", DATA)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backup.shutil, "copyfile", fail)
        failed = await run("backup", target, "--root", root)
    assert failed.exit_code == 1
    assert f"cannot back up into {target}: No space left on device" in failed.stderr
    assert (await run("restore", target, "--root", tmp_path / "new")).exit_code == 0
    assert (await run("check", "--root", tmp_path / "new")).exit_code == 0


async def test_failed_restore_can_be_repeated(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    await push(caller, "v1", DATA)
    await run("backup", tmp_path / "backup", "--root", tmp_path / "registry")
    copy, copies = shutil.copyfile, iter(range(100))

    def fail(*args: object) -> object:
        if next(copies) == 1:
            raise OSError(28, "No space left on device")
        return copy(*args)

    arguments = ("restore", tmp_path / "backup", "--root", tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(backup.shutil, "copyfile", fail)
        failed = await run(*arguments)
    assert failed.exit_code == 1
    assert f"cannot restore into {tmp_path / 'new'}: No space left on device" in failed.stderr
    assert not (tmp_path / "new" / "registry.sqlite3").exists()
    assert (await run(*arguments)).exit_code == 0
    assert files(tmp_path / "new") == files(tmp_path / "backup")
    assert (await run(*arguments)).exit_code == 2


async def test_backup_names_missing_bytes(caller: Caller, tmp_path: Path):
    root = tmp_path / "registry"
    await push(caller, "v1", DATA)
    await push(caller, "v2", DATA)
    shutil.rmtree(root / "blobs" / "bentos" / "iris" / "v1")
    failed = await run("backup", tmp_path / "backup", "--root", root)
    assert failed.exit_code == 1
    assert "the bytes of 1 items are missing: bentos/iris/v1/" in failed.stderr
    assert "async-bento registry check" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("backup", "registry/backup", "--root", "registry"), "it is in the directory of the registry"),
        (("backup", "other", "--root", "registry"), "it holds something else"),
        (("backup", "backup", "--root", "other"), "it holds no registry"),
        (("restore", "other", "--root", "new"), "it holds no complete backup"),
        (("restore", "registry", "--root", "other"), "it is not empty"),
    ],
)
async def test_backup_to_wrong_dir_fails(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
):
    await push(caller, "v1", DATA)
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    refused = await run(*arguments)
    assert (refused.exit_code, reason in refused.stderr) == (2, True), refused.stderr
    assert files(other) == {"photo": b"x"}
