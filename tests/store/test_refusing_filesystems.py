"""Filesystems such as exFAT, SMB and mounts of object storage refuse modes, times, links and syncs."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, Config, Limits, UnsafeArchiveError
from async_bento.store.store import BentoStore
from async_bento.transfer.tar import writer
from async_bento.transfer.tar.writer import TreeWriter
from tests.builders import KiB, contents, left_in_scratch, make_bento, random_bytes
from tests.store.real_places import outcome, refuse
from tests.store.stores import fill, put, staging_of

if TYPE_CHECKING:
    from async_bento.registry import LocalRegistry

FILES = {"src/service.py": b"pass", "weights": random_bytes(20 * KiB)}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def bento(served: LocalRegistry, home: Path) -> Path:
    """A pushed bento with a link to a file, and a link to that link."""
    bento = make_bento(home, files=FILES)
    (bento / "z-link").symlink_to("src/service.py")
    (bento / "a-link").symlink_to("z-link")
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    return bento


def pull(there: Path) -> object:
    with BentoAPI(progress=False, bento_store=BentoStore(there / "bentos")) as api:
        return outcome(lambda: str(api.pull("svc:v1", force=True).tag))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("function", ["chmod", "fchmod", "utime", "chown"])
def test_pull_without_modes_or_times(bento, there, monkeypatch, function, number):
    refuse(monkeypatch, number, function)
    assert pull(there) == "svc:v1"
    assert pull(there) == "svc:v1"
    assert contents(there / "bentos" / "svc" / "v1") == contents(bento)
    assert left_in_scratch(there) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_pull_without_fsync_works(bento, there, monkeypatch, number):
    refuse(monkeypatch, number, "fsync")
    assert pull(there) == "svc:v1"
    assert (there / "bentos" / "svc" / "latest").read_text() == "v1"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_no_symlinks_copies_files(bento, there, monkeypatch, number, caplog):
    caplog.set_level(logging.WARNING, logger="async_bento.transfer")
    refuse(monkeypatch, number, "symlink")
    assert pull(there) == "svc:v1"
    copied = {"a-link": b"pass", "z-link": b"pass"}
    assert contents(there / "bentos" / "svc" / "v1") == contents(bento) | copied
    (warning,) = [record.getMessage() for record in caplog.records]
    assert ": 2 links are replaced by copies of their targets" in warning


def test_failed_copy_names_link(bento, there, monkeypatch):
    def copy(source, target):
        if target.name == "z-link":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shutil.copy(source, target)

    refuse(monkeypatch, errno.EPERM, "symlink")
    monkeypatch.setattr(writer, "copy_file", copy)
    assert str(pull(there)).startswith("StoreError: cannot pull svc:v1: cannot write z-link: No space left on device.")


def test_no_symlinks_copies_directories(served: LocalRegistry, home, there, monkeypatch):
    bento = make_bento(home, files={"src/a/b.py": b"b", "other/file": b"x"})
    (bento / "src" / "to-file").symlink_to("../other/file")  # first the targets of other links
    (bento / "a-link").symlink_to("src")
    (bento / "other" / "to-link").symlink_to("../a-link/a")
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    refuse(monkeypatch, errno.EPERM, "symlink")
    assert pull(there) == "svc:v1"
    found = contents(there / "bentos" / "svc" / "v1")
    assert found["a-link/to-file"] == found["src/to-file"] == b"x"
    assert found["a-link/a/b.py"] == found["other/to-link/b.py"] == b"b"


def test_hostile_link_copies_limited(tmp_path):
    """Each directory holds two links to the one before: their copies would be 2^40 empty directories."""
    writer = TreeWriter(tmp_path, Limits(members=1000))
    for number in range(40):
        writer.add_directory(f"d{number}", 0)
        for side in "ab" if number else "":
            writer.add_symlink(f"d{number}/{side}", f"../d{number - 1}", 0)
    with pytest.raises(UnsafeArchiveError, match=r"Limits\.members"):
        writer._copy_targets({**writer.symlinks}, lambda _: None)
    assert len([*tmp_path.rglob("*")]) <= 1040


@pytest.mark.parametrize(
    ("link", "target"), [("loop", "."), ("loop", "nowhere"), ("src/loop", ".."), ("src/deep/loop", "..")]
)
def test_uncopyable_link_is_named(served: LocalRegistry, home, there, monkeypatch, link, target):
    path = make_bento(home, files=FILES) / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    refuse(monkeypatch, errno.EPERM, "symlink")
    found = str(pull(there))
    assert found.startswith(f"StoreError: cannot pull svc:v1: cannot extract {link}: no symbolic links can be made in ")
    assert f", and the target {target} cannot be copied. Move the store" in found
    assert left_in_scratch(there) == []


def test_link_copies_count_as_content(served: LocalRegistry, home, there, monkeypatch):
    bento = make_bento(home, files={"weights": random_bytes(300 * KiB)})
    for number in range(5):
        (bento / f"link{number}").symlink_to("weights")
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    refuse(monkeypatch, errno.EPERM, "symlink")
    config = Config(limits={"size": 1024 * KiB})
    with BentoAPI(progress=False, bento_store=BentoStore(there / "bentos"), config=config) as api:
        found = str(outcome(lambda: str(api.pull("svc:v1").tag)))
    assert "the tar has more than 1048576 bytes of content" in found


@pytest.mark.posix("sync of a directory")
def test_small_commit_skips_syncfs(store, monkeypatch):
    """syncfs(2) also waits for the writes of other programs to the same disk."""
    called = []

    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def syncfs(self, _: int) -> int:
            called.append("syncfs")
            return 0

    monkeypatch.setattr("ctypes.CDLL", Library)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr("os.fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    put(store, "iris:v1")
    assert called == []
    assert {"text", "bento.yaml", "item", "latest", "iris"} <= {*synced}


def test_delete_without_chmod_works(store, monkeypatch):
    with store.stage() as staged:
        fill(staged, "iris:v1")
        (staged / "sub").mkdir()
        store.commit(staged, "iris:v1")
    refuse(monkeypatch, errno.EPERM, "chmod")
    (store.path / "iris" / "v1").touch()
    assert outcome(lambda: store.delete("iris:v1")) is None
    assert staging_of(store) == []
