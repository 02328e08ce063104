"""Whole directories are exchanged, moved and removed."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from async_bento._core import platform
from async_bento.errors import StoreError
from async_bento.store import filesystem
from async_bento.store.errors import as_store_error


def test_remove_tree_follows_no_link(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    filesystem.remove_tree(tmp_path / "tree")
    filesystem.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.posix("permission bits")
def test_remove_tree_opens_closed_directories(tmp_path, monkeypatch):
    """As for a user who is not root: nothing is removed from a directory without write permission."""
    tree = tmp_path / "tree"
    (tree / "closed" / "below").mkdir(parents=True)
    (tree / "closed").chmod(0o500)
    tree.chmod(0o500)
    remove_directory = platform.remove_directory

    def refuse(path):
        if not all(directory.stat().st_mode & stat.S_IWUSR for directory in (path, path / "closed")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        remove_directory(path)

    monkeypatch.setattr(platform, "remove_directory", refuse)
    filesystem.remove_tree(tree)
    assert not tree.exists()


def test_remove_tree_after_removed_entry_continues(tmp_path, monkeypatch):
    """Another process removes an entry while this one removes the directory."""
    (tmp_path / "tree" / "kept").mkdir(parents=True)

    def miss(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path / "gone"))

    monkeypatch.setattr(platform, "remove_directory", miss)
    filesystem.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_remove_tree_while_entry_disappears_continues(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)

    def miss(path, **_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(platform, "remove_directory", miss)
    monkeypatch.setattr(os, "rmdir", miss)
    filesystem.remove_tree(tmp_path / "tree")


def test_remove_tree_of_link_keeps_target(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept", target_is_directory=True)
    filesystem.remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_move_aside_removes_unmovable_directory(tmp_path, monkeypatch, number):
    """Directories of a lower overlayfs layer cannot be renamed, others are kept after an error."""
    (tmp_path / "item").mkdir()

    def refuse(source, target):
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(platform, "rename", refuse)
    if number == errno.EXDEV:
        filesystem.move_aside(tmp_path / "item", tmp_path / "aside")
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(OSError, match="busy"):
            filesystem.move_aside(tmp_path / "item", tmp_path / "aside")
        assert (tmp_path / "item").is_dir()


@pytest.mark.posix("permission bits")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO])
def test_make_movable_of_other_user_is_tried(tmp_path, monkeypatch, number):
    (tmp_path / "item").mkdir(mode=0o500)

    def refuse(path, mode):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(OSError, match="error") if number == errno.EIO else nullcontext():
        filesystem.make_movable(tmp_path / "item")


@pytest.mark.posix("groups")
def test_new_directory_inherits_group(tmp_path):
    others = [1234] if os.geteuid() == 0 else [group for group in os.getgroups() if group != os.getegid()]
    if not others:
        pytest.skip("this user has one group")
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", -1, others[0])
    (tmp_path / "shared").chmod(0o2775)
    (tmp_path / "new").mkdir()
    owner = 1234 if os.geteuid() == 0 else os.geteuid()
    os.chown(tmp_path / "new", owner, os.getegid())
    filesystem.inherit_group(tmp_path / "new", tmp_path / "shared")
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & stat.S_ISGID) == (owner, others[0], stat.S_ISGID)


def test_sync_flushes_drive_once(tmp_path, monkeypatch):
    """Last, for all files and directories: on macOS, each flush of a drive takes long."""
    synced = []
    monkeypatch.setattr(filesystem, "fsync_path", lambda path, *, drive=True: synced.append((path.name, drive)))
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "file").touch()
    (tmp_path / "tree" / "sub" / "deep").touch()
    filesystem.sync_tree(tmp_path / "tree")
    assert synced == [("file", False), ("deep", False), ("tree", False), ("sub", True)]


def test_exchange_swaps_directories(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not platform.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("no exchange on this filesystem")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        platform.exchange(tmp_path / "a", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("delete iris:v1", "cannot delete iris:v1: No space left on device: /store/iris"),
        ("read /store/iris", "cannot read /store/iris: No space left on device"),  # the path is in the message already
    ],
)
def test_store_error_names_path_once(action, message):
    with pytest.raises(StoreError) as caught, as_store_error(action):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/iris")
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system. Use another directory."),
        (OSError("cannot seek"), "cannot seek"),
    ],
)
def test_store_error_without_path_has_reason(error, reason):
    with pytest.raises(StoreError) as caught, as_store_error("write iris:v1", if_refused="Use another directory."):
        raise error
    assert str(caught.value) == f"cannot write iris:v1: {reason}"
