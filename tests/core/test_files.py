"""Atomic writes: content, mode, durability and leftovers of failures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from async_bento._core.files import atomic_write, copy_tree, fsync_path, open_regular


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each file at its fsync."""
    sizes: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    return sizes


@pytest.mark.parametrize("data", ["naïve", "naïve".encode()])
@pytest.mark.parametrize("temp_name", [None, "elsewhere/temp"])
def test_write_replaces_content(tmp_path: Path, data: bytes | str, temp_name: str | None) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "file"
    path.write_text("a longer, older content")

    atomic_write(path, data, durable=False, temp_path=temp_name and tmp_path / temp_name)

    assert path.read_bytes() == "naïve".encode()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "elsewhere", path]


@pytest.mark.posix("file modes")
@pytest.mark.parametrize(("mode", "expected"), [(None, 0o600), (0o666, 0o640)])
def test_write_mode_follows_umask(tmp_path: Path, mode: int | None, expected: int) -> None:
    path = tmp_path / "file"
    path.touch(0o777)
    umask = os.umask(0o027)
    try:
        if mode is None:
            atomic_write(path, b"", durable=False)
        else:
            atomic_write(path, b"", durable=False, mode=mode)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == expected


@pytest.mark.parametrize(("durable", "expected"), [(True, [7]), (False, [])])
def test_durable_write_syncs_file(tmp_path: Path, synced: list[int], durable: bool, expected: list[int]) -> None:
    atomic_write(tmp_path / "file", b"content", durable=durable)
    assert synced == expected


def test_failed_write_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new", durable=True)

    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_write_replaces_left_temp_file(tmp_path: Path) -> None:
    path, temp_path, target = tmp_path / "file", tmp_path / "temp", tmp_path / "target"
    target.write_text("not ours")
    temp_path.symlink_to(target)

    atomic_write(path, b"new", durable=False, temp_path=temp_path)

    assert (path.read_text(), path.is_symlink(), target.read_text()) == ("new", False, "not ours")
    assert not temp_path.is_symlink()


def test_write_replaces_link_itself(tmp_path: Path) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_text("not ours")
    path.symlink_to(target)

    atomic_write(path, b"new", durable=False)

    assert (path.read_text(), path.is_symlink(), target.read_text()) == ("new", False, "not ours")


@pytest.mark.posix("FIFOs")
@pytest.mark.parametrize(("make", "why"), [("mkfifo", "not a regular file"), ("mkdir", "Is a directory")])
def test_open_regular_refuses_others(tmp_path: Path, make: str, why: str) -> None:
    getattr(os, make)(tmp_path / "it")
    with pytest.raises(OSError, match=why) as raised:
        open_regular(tmp_path / "it")
    assert raised.value.filename == str(tmp_path / "it")


@pytest.mark.posix("file modes")
def test_copy_tree_keeps_all_but_owner(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "run.sh").write_text("true")
    (source / "d" / "run.sh").chmod(0o700)
    (source / "link").symlink_to("d/run.sh")
    for number, path in enumerate([source / "d" / "run.sh", source / "d", source]):
        os.utime(path, ns=(0, 10**18 + number))

    copy_tree(source, tmp_path / "copy")

    times = [(tmp_path / "copy" / name).stat().st_mtime_ns for name in ("d/run.sh", "d", ".")]
    assert times == [10**18, 10**18 + 1, 10**18 + 2]
    assert (tmp_path / "copy" / "link").readlink() == Path("d/run.sh")
    assert (tmp_path / "copy" / "link").read_text() == "true"
    assert os.access(tmp_path / "copy" / "d" / "run.sh", os.X_OK)
    with pytest.raises(FileExistsError):
        copy_tree(source / "d", tmp_path / "copy" / "d")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_fsync_unsupported_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    fsync_path(tmp_path)


@pytest.mark.posix("sync of a directory")
def test_fsync_path_failed_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        fsync_path(tmp_path)
