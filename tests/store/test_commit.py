"""A commit moves a staged item into the store in one step, after a sync."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from async_bento._core import platform
from async_bento._core.tag import Tag
from async_bento.errors import InvalidTagError, StoreError
from async_bento.store.items import Bento
from async_bento.store.store import BentoStore
from tests.store.stores import OLD, fill, put, staging_of


@pytest.fixture
def synced(monkeypatch):
    """Record the synced paths (`everything` for the disk), and the renames into the store, in order."""
    done = []
    fsync, sync_filesystem, rename = os.fsync, platform.flush_filesystem, Path.rename

    def note_fsync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(self, target):
        if target.name not in {".async-bento-probe", "commit.json"}:
            done.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(
        platform, "flush_filesystem", lambda path: sync_filesystem(path) and not done.append("everything")
    )
    return done


def test_commit_moves_without_copy(store):
    with store.stage() as staged:
        fill(staged, "iris:v1")
        inode = (staged / "text").stat().st_ino
        item = store.commit(staged, "iris:v1")
        assert not staged.exists()
    assert item == Bento.from_path(store.path / "iris" / "v1")
    assert (item.path / "text").stat().st_ino == inode
    assert staging_of(store) == []


def test_commit_keeps_existing_item(store):
    put(store, "iris:v1", text="first")
    with store.stage() as staged:
        fill(staged, "iris:v1", text="second")
        item = store.commit(staged, "iris:v1")
        assert staged.exists()
    assert (item.path / "text").read_text() == "first"
    assert staging_of(store) == []


def test_commit_replaces_item(store):
    put(store, "iris:v1", text="first", labels={"n": "1"})
    item = put(store, "iris:v1", text="second", replace=True)
    assert (item.path / "text").read_text() == "second"
    assert item.labels == {}
    assert staging_of(store) == []


def test_commit_replace_removes_old(store):
    put(store, "iris:v1", text="first")
    with store.stage() as staged:
        fill(staged, "iris:v1", text="second")
        store.commit(staged, "iris:v1", replace=True)
        assert not staged.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is Linux's")
def test_commit_syncs_around_rename(store, synced):
    put(store, "iris:v1", OLD)
    assert sorted(synced[:3]) == ["bento.yaml", "item", "text"]
    assert synced[3:] == ["bentos", "rename to v1", "latest", "iris"]
    synced.clear()
    put(store, "iris:v2", OLD)
    assert synced[3:] == ["rename to v2", "latest", "iris"]


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_replace_syncs_record_first(store, synced):
    """After a power failure between two renames, only the record names the place of the moved old item."""
    put(store, "iris:v1", OLD)
    synced.clear()
    put(store, "iris:v1", replace=True)
    record, aside, place = synced[-3:]
    assert record.startswith("commit.json")
    assert aside.startswith("async-bento-")
    assert place == "iris"


def put_many(store, tag):
    """Commit an item with more files than are synced one by one."""
    with store.stage() as staged:
        fill(staged, tag)
        for number in range(100):
            (staged / str(number)).touch()
        store.commit(staged, tag, replace=True)


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is Linux's")
def test_commit_many_files_use_syncfs(store, synced):
    put_many(store, "iris:v1")
    assert synced == ["everything", "bentos", "rename to v1", "latest", "iris"]


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, None])
def test_commit_without_syncfs_fsyncs(store, synced, monkeypatch, number):
    def refuse(_):
        ctypes.set_errno(number)
        return -1

    libc = SimpleNamespace(renameat2=lambda *_: 0, **({} if number is None else {"syncfs": refuse}))
    with store.stage() as staged:
        fill(staged, "iris:v1")
        (staged / "sub").mkdir()
        deep = [f"deep{number}" for number in range(100)]
        for name in deep:
            (staged / "sub" / name).touch()
        (staged / "link").symlink_to("nowhere")
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: libc)
        store.commit(staged, "iris:v1")
    before = synced[: synced.index("rename to v1")]
    assert sorted(before) == sorted(["bento.yaml", "text", "item", *deep, "sub", "bentos"])


@pytest.mark.posix("sync of a directory")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_commit_sync_error_keeps_old(store, monkeypatch, number):
    def refuse(_):
        ctypes.set_errno(number)
        return -1

    put(store, "iris:v1", text="first")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace(syncfs=refuse))
    with pytest.raises(StoreError, match=f"cannot write iris:v1 to .*: {os.strerror(number)}"):
        put_many(store, "iris:v1")
    monkeypatch.undo()
    assert (BentoStore(store.path).get("iris:v1").path / "text").read_text() == "first"
    assert staging_of(store) == []


@pytest.mark.posix("sync of a directory")
def test_delete_syncs_before_removal(store, synced):
    put(store, "iris:v1")
    put(store, "iris:v2")
    synced.clear()
    store.delete("iris:v1")
    assert synced[:2] == ["rename to item", "iris"]


def test_replace_without_exchange_works(store, monkeypatch):
    monkeypatch.setattr("async_bento._core.platform.exchange", lambda *_: False)
    put(store, "iris:v1", text="first")
    item = put(store, "iris:v1", text="second", replace=True)
    assert (item.path / "text").read_text() == "second"
    assert staging_of(store) == []


def test_failed_replace_restores_old(store, monkeypatch):
    monkeypatch.setattr("async_bento._core.platform.exchange", lambda *_: False)
    put(store, "iris:v1", text="first")
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if self.joinpath("text").exists() and (self / "text").read_text() == "second":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(StoreError, match="Input/output error"):
        put(store, "iris:v1", text="second", replace=True)
    assert (store.get("iris:v1").path / "text").read_text() == "first"


def test_broken_item_needs_replace(store):
    (store.path / "iris" / "v1").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"has no bento\.yaml"):
        put(store, "iris:v1")
    assert put(store, "iris:v1", replace=True).tag == Tag("iris", "v1")


@pytest.mark.parametrize("tag", ["iris:v2", "rose:v1"])
def test_commit_as_other_tag_raises(store, tag):
    with store.stage() as staged:
        fill(staged, "iris:v1")
        with pytest.raises(StoreError, match=f"the file describes iris:v1, not {tag}"):
            store.commit(staged, tag)
    assert list(store.path.iterdir()) == []


def test_commit_without_yaml_raises(store):
    with store.stage() as staged, pytest.raises(StoreError, match=r"has no bento\.yaml"):
        store.commit(staged, "iris:v1")
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("tag", ["iris", "iris:latest"])
def test_commit_no_version_raises(store, tag):
    with store.stage() as staged, pytest.raises(InvalidTagError):
        store.commit(staged, tag)


@pytest.mark.posix("words of POSIX in errors")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_disk_error_is_store_error(store, monkeypatch, number):
    def fail(self, target):
        raise OSError(number, os.strerror(number), str(self))

    with store.stage() as staged:
        fill(staged, "iris:v1")
        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(StoreError, match=f"cannot write iris:v1 to .*: {os.strerror(number)}: /") as caught:
            store.commit(staged, "iris:v1")
        monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.posix("file modes")
def test_commit_delete_read_only_item(store):
    for replace in (False, True):
        with store.stage() as staged:
            fill(staged, "iris:v1", text=str(replace))
            (staged / "sub").mkdir()
            (staged / "sub" / "file").touch()
            (staged / "sub").chmod(0o500)
            staged.chmod(0o500)
            store.commit(staged, "iris:v1", replace=replace)
    assert (store.path / "iris" / "v1" / "sub").stat().st_mode & 0o777 == 0o500
    assert (store.path / "iris" / "v1").stat().st_mode & 0o777 == 0o700  # or nobody but root could move it
    assert (store.path / "iris" / "v1" / "text").read_text() == "True"
    store.delete("iris:v1")
    assert staging_of(store) == []
    assert list(store.path.iterdir()) == []
