"""Whole directories are exchanged and removed."""

from __future__ import annotations

import errno
import os

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
