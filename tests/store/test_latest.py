"""The `latest` file names the version with the newest creation time, as BentoML writes it."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from async_bento._core import platform
from async_bento.store.latest import LatestFiles, write_latest
from async_bento.store.store import BentoStore
from tests.store.stores import MIDDLE, NEW, OLD, latest, put


def test_equal_age_last_commit_wins(store):
    put(store, "iris:b", OLD)
    put(store, "iris:a", OLD)
    assert latest(store) == "a"


def test_repair_of_equal_age_finds_highest(store):
    put(store, "iris:b", OLD)
    put(store, "iris:a", OLD)
    (store.path / "iris" / "latest").unlink()
    assert store.get("iris").tag.version == "b"
    assert latest(store) == "b"


def test_older_commit_is_ignored(store):
    put(store, "iris:a", NEW)
    put(store, "iris:b", OLD)
    assert latest(store) == "a"


def test_older_replace_moves_latest(store):
    put(store, "iris:a", NEW)
    put(store, "iris:b", MIDDLE)
    put(store, "iris:a", OLD, replace=True)
    assert latest(store) == "b"


@pytest.fixture(params=[False, True], ids=["deleted", "broken"])
def unreadable(store, monkeypatch, request):
    """`iris:v1`, and a latest version that is broken, or that another process deletes once it is read."""
    put(store, "iris:v1", OLD)
    if request.param:
        (store.path / "iris" / "v0").mkdir()
    (store.path / "iris" / "latest").write_text("v0")
    monkeypatch.setattr(LatestFiles, "read", lambda _self, _name: "v0")
    return store


def test_commit_replaces_unreadable_latest(unreadable):
    assert unreadable._latest.after_commit(unreadable.get("iris:v1")) is None  # all versions must be read


def test_repair_replaces_unreadable_latest(unreadable):
    assert unreadable._latest.repair("iris") == "v1"
    assert latest(unreadable) == "v1"


@pytest.mark.parametrize("created", [OLD, NEW])
def test_repair_keeps_newer_latest(store, monkeypatch, created):
    """Another process has committed a version of the same time, or a newer one, since the versions were read."""
    put(store, "iris:v1", OLD)
    item = store.get("iris:v1")
    put(store, "iris:v2", created)
    monkeypatch.setattr(LatestFiles, "newest", lambda _self, _name: item)
    assert store._latest.repair("iris") == "v2"
    assert latest(store) == "v2"


@pytest.mark.parametrize("content", [None, "", "gone", "../iris/v1", "V1 V2", "\xff"])
def test_invalid_latest_is_repaired(store, content):
    put(store, "iris:v1", NEW)
    put(store, "iris:v2", OLD)
    file = store.path / "iris" / "latest"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="latin-1")
    assert store.get("iris").tag.version == "v1"
    assert latest(store) == "v1"


def test_latest_with_newline_is_read(store):
    put(store, "iris:v1", OLD)
    put(store, "iris:v2", NEW)
    (store.path / "iris" / "latest").write_text("v1\n")
    assert store.get("iris").tag.version == "v1"


def test_latest_in_read_only_store(store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def read_only(path, flags, *arguments, **options):
        return refuse() if flags & (os.O_WRONLY | os.O_RDWR) else opened(path, flags, *arguments, **options)

    put(store, "iris:v1")
    (store.path / "iris" / "latest").unlink()
    store = BentoStore(store.path)
    opened = os.open
    monkeypatch.setattr("os.open", read_only)  # root may write where permissions forbid it
    monkeypatch.setattr(Path, "touch", refuse)
    assert store.get("iris").tag.version == "v1"
    assert not (store.path / "iris" / "latest").exists()


def test_latest_read_only_is_found(store, monkeypatch):
    """The staging area is writable, and the directory of the name is not."""

    def replace(source, target):
        if Path(target).parent == store.path / "iris":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        replaced(source, target)

    put(store, "iris:v1")
    (store.path / "iris" / "latest").unlink()
    replaced = platform.replace
    monkeypatch.setattr(platform, "replace", replace)
    assert store.get("iris").tag.version == "v1"
    assert not (store.path / "iris" / "latest").exists()


def test_latest_has_bentoml_format(store):
    put(store, "iris:v1")
    assert (store.path / "iris" / "latest").read_bytes() == b"v1"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSPC])
def test_latest_on_mount_is_written_there(tmp_path, monkeypatch, number):
    """A temporary file of another filesystem cannot be renamed; other errors are raised."""
    written = []

    def write(path, content, *, mode, durable, temp_path=None):
        written.append((temp_path, durable))
        if temp_path is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("async_bento.store.latest.atomic_write", write)
    with nullcontext() if number == errno.EXDEV else pytest.raises(OSError, match="No space left"):
        write_latest(tmp_path, "v1", tmp_path / "temp")
    assert written == [(tmp_path / "temp", True), (None, True)][: 2 if number == errno.EXDEV else 1]
