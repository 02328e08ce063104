"""Differences between systems: simulated here, real in the `windows` session and in hosted CI."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoError, StoreError, UnsafeArchiveError
from async_bento._core import platform
from async_bento._core.files import atomic_write, fsync_path, open_regular
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import remove_tree, sync_tree
from async_bento.transfer.journal import Journal, JournalEntries, Source
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.writer import TreeWriter
from tests.platforms import NO_PRIVILEGE, link_if_possible

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_BYTE = bytes(range(256)) + b"\r\n\n\x1a\r\n"


def in_use(winerror: int = 32) -> OSError:
    """Return the error of Windows for a file that another program has open."""
    error = PermissionError(errno.EACCES, "The process cannot access the file", "item")
    error.winerror = winerror  # type: ignore[attr-defined]
    return error


def denied() -> OSError:
    """Return the error of Windows for missing rights, which a retry cannot fix."""
    error = PermissionError(errno.EACCES, "Permission denied")
    error.winerror = NO_PRIVILEGE  # type: ignore[attr-defined]
    return error


def failing(times: int, error: Callable[[], OSError]) -> Callable[[], str]:
    left = [error() for _ in range(times)]

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    return call


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the seconds between attempts, without waits."""
    waited: list[float] = []
    monkeypatch.setattr(platform, "time", SimpleNamespace(sleep=waited.append))
    return waited


def test_open_flags_keep_every_byte(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", EVERY_BYTE, durable=False)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY | platform.OPEN)
    try:
        assert os.read(descriptor, 1000) == EVERY_BYTE
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("winerror", [5, 32, 33])
def test_file_in_use_is_retried(pauses: list[float], winerror: int) -> None:
    assert platform.patiently(failing(3, lambda: in_use(winerror))) == "done"
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


def test_file_in_use_retry_ends(pauses: list[float]) -> None:
    with pytest.raises(PermissionError):
        platform.patiently(failing(100, in_use))
    assert 0.5 < sum(pauses) < 2


@pytest.mark.parametrize(
    "error", [denied, pytest.param(PermissionError, marks=pytest.mark.posix("errors without a number of Windows"))]
)
def test_other_error_is_not_retried(pauses: list[float], error: Callable[[], OSError]) -> None:
    with pytest.raises(PermissionError):
        platform.patiently(failing(1, error))
    assert pauses == []


def test_windows_open_is_retried(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    assert platform.patiently(failing(2, PermissionError)) == "done"
    with pytest.raises(FileNotFoundError):
        platform.patiently(failing(1, FileNotFoundError))
    assert len(pauses) == 2


def test_file_in_use_names_remedy() -> None:
    message = r"cannot delete svc:v1: The process .*: item\. Another program may have .* open"
    with pytest.raises(StoreError, match=message), as_store_error("delete svc:v1"):
        raise in_use()
    with (
        pytest.raises(StoreError, match=r"^cannot delete svc:v1: Permission denied$"),
        as_store_error("delete svc:v1"),
    ):
        raise denied()


@pytest.mark.parametrize(
    "name",
    [
        "foo.",
        "foo ",
        "a./b",
        "a/b ",
        "...",
        "NUL",
        "aux.txt",
        "dir/com1.log",
        "conin$",
        "LPT¹",
        "con .x",
        "a:b",
        "C:x",
        "a\\b",
    ]
    + [f"a{character}b" for character in '<>"|?*'],
)
def test_windows_unsafe_name_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(platform, "refusal_of_name", platform.windows_refusal)
    writer = TreeWriter(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: writer.open_file(name, 0o644),
        lambda: writer.add_directory(name, 0),
        lambda: writer.add_symlink("link", name, 0),
        lambda: writer.add_symlink(name, "target", 0),
        lambda: writer.add_hard_link("link", name, lambda _: None),
    ]
    for call in calls:
        with pytest.raises(UnsafeArchiveError, match="Windows"):
            call()
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize(
    "name", ["foo", ".foo", "a.b/c", "../x", "null", "auxiliary", "com", "com10", "console.txt", "a b"]
)
def test_windows_plain_name_accepted(name: str) -> None:
    assert platform.windows_refusal(name) is None


def test_upload_journal_is_thread_safe(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    source = Source(endpoint="http://registry", kind="bento", tag="svc:v1", part_size=1, fingerprint="f")
    journal.create(JournalEntries(source, "upload"))

    def add(first: int) -> None:
        for number in range(first, first + 25):
            journal.add(number, f'"{number}"')

    threads = [threading.Thread(target=add, args=(25 * count + 1,)) for count in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    entries = journal.read()
    assert entries is not None
    assert entries.etags == {number: f'"{number}"' for number in range(1, 201)}


def test_read_only_tree_is_removed(tmp_path: Path) -> None:
    """Windows refuses that; BentoML and shutil leave such files."""
    directory = tmp_path / "item" / "below"
    directory.mkdir(parents=True)
    (directory / "file").write_bytes(b"x")
    (directory / "file").chmod(stat.S_IREAD)
    remove_tree(tmp_path / "item")
    assert not (tmp_path / "item").exists()


def test_read_only_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.write_bytes(path.name.encode())
        path.chmod(stat.S_IREAD)
    platform.replace(new, old)
    assert old.read_bytes() == b"new"
    old.chmod(stat.S_IREAD)
    platform.remove(old)
    assert [*tmp_path.iterdir()] == []


def test_missing_file_is_not_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        platform.remove(tmp_path / "missing")


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the directories that are removed."""
    names: list[str] = []
    rmdir = Path.rmdir
    monkeypatch.setattr(Path, "rmdir", lambda path: names.append(path.name) or rmdir(path))
    return names


@pytest.mark.posix("renames that replace a directory")
def test_rename_replaces_empty_dir(tmp_path: Path, removed: list[str]) -> None:
    for name in ("source", "target", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    platform.rename(tmp_path / "source", tmp_path / "target")
    with pytest.raises(OSError, match=r"Directory not empty|WinError"):
        platform.rename(tmp_path / "target", tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "target"]
    assert removed == []


def test_windows_rename_replaces_empty_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: list[str]) -> None:
    """A rename of Windows replaces no directory, so that is removed first, but not what a link leads to."""
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    for name in ("source", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    link_if_possible(tmp_path / "link", "empty")
    with pytest.raises(OSError, match=r"[Nn]ot empty|WinError"):
        platform.rename(tmp_path / "source", tmp_path / "full")
    platform.rename(tmp_path / "source", tmp_path / "empty")
    with suppress(PermissionError):  # of Windows
        platform.rename(tmp_path / "file", tmp_path / "link")
    assert {path.name for path in tmp_path.iterdir()} >= {"empty", "full", "link"}
    assert removed == ["full", "empty"]


def test_refused_removal_makes_file_writable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o400)
    modes: list[int] = []

    def unlink(path: str) -> None:
        modes.append(Path(path).stat().st_mode & stat.S_IWUSR)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        platform._remove_refused(unlink, str(file), None)
    assert modes == [stat.S_IWUSR]


def test_refused_list_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError("cannot list")

    def rmtree(path: Path, **handlers: Callable[[object, str, object], None]) -> None:
        (handler,) = handlers.values()
        try:
            refuse(str(path))
        except PermissionError as error:
            handler(refuse, str(path), error)

    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    monkeypatch.setattr(platform.shutil, "rmtree", rmtree)
    with pytest.raises(PermissionError, match="cannot list"):
        platform.remove_directory(tmp_path)


@pytest.mark.parametrize(
    ("libc", "fails"),
    [({}, False), ({"errno": errno.ENOSYS}, False), ({"errno": errno.EPERM}, False), ({"errno": errno.EIO}, True)],
)
@pytest.mark.parametrize("function", ["exchange", "flush_filesystem"])
@pytest.mark.posix("calls of the C library")
def test_missing_system_call_is_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libc: dict[str, int], fails: bool, function: str
) -> None:
    def library(_: None, *, use_errno: bool = False) -> SimpleNamespace:
        def refuse(*_: object) -> int:
            ctypes.set_errno(libc["errno"] if use_errno else 0)
            return -1

        return SimpleNamespace(renameat2=refuse, renamex_np=refuse, syncfs=refuse) if libc else SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", library)
    arguments = (tmp_path, tmp_path) if function == "exchange" else (tmp_path,)
    if fails:
        with pytest.raises(OSError, match="Input/output error"):
            getattr(platform, function)(*arguments)
    else:
        assert getattr(platform, function)(*arguments) is False


@pytest.mark.posix("calls of the C library")
def test_successful_system_call_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = SimpleNamespace(renameat2=lambda *_: 0, renamex_np=lambda *_: 0, syncfs=lambda _: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    assert platform.exchange(tmp_path, tmp_path) is True
    assert platform.flush_filesystem(tmp_path) is True


def test_windows_lacks_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not platform.exchange(tmp_path, tmp_path)
    assert not platform.flush_filesystem(tmp_path)
    with (tmp_path / "file").open("wb") as file:
        platform.start_write_back(file.fileno())


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="win32"))


@pytest.mark.usefixtures("on_windows")
def test_windows_reads_at_position(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(EVERY_BYTE)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert platform.read_at(file.fileno(), 5, 10) == EVERY_BYTE[10:15]
        assert platform.read_at(file.fileno(), 5, 0) == EVERY_BYTE[:5]
        assert platform.read_at(file.fileno(), 9, len(EVERY_BYTE) - 2) == EVERY_BYTE[-2:]


@pytest.mark.usefixtures("on_windows")
def test_windows_lacks_sendfile_and_owners(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        platform.send_file(0, 0, 0, 1)
    assert platform.user_id() == 0
    before = tmp_path.stat()
    platform.set_owner(tmp_path, before.st_uid + 1, before.st_gid + 1)
    assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (before.st_uid, before.st_gid)
    with socket.socket() as connection:
        assert platform.unacknowledged(connection) is None


@pytest.mark.usefixtures("on_windows")
@pytest.mark.parametrize(("number", "began", "found"), [(7, 0, "7"), (0, 0x1D9, "1d9")])
def test_windows_boot_id_of_kernel(monkeypatch: pytest.MonkeyPatch, number: int, began: int, found: str) -> None:
    def query(_kind: int, information: Any, size: int, _: None) -> None:
        assert size == 48
        information[0] = began

    shared = SimpleNamespace(from_address=lambda _: SimpleNamespace(value=number))
    monkeypatch.setattr(ctypes, "c_uint32", shared)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(NtQuerySystemInformation=query))
    assert platform.boot_id.__wrapped__() == found


@pytest.mark.usefixtures("on_windows")
def test_unknown_windows_boot_is_of_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_windows_boot_id", str)
    assert platform.boot_id.__wrapped__().startswith("process ")


@pytest.mark.usefixtures("on_windows")
def test_reason_of_windows_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "FormatError", {10061: "No connection could be made. "}.get, raising=False)
    error = OSError(10061, "connect call failed")
    error.winerror = 10061  # type: ignore[attr-defined]
    assert platform.reason(error) == "No connection could be made"


def test_closed_socket_has_no_unacknowledged() -> None:
    with socket.socket() as connection:
        pass
    assert platform.unacknowledged(connection) is None


@pytest.mark.posix("ioctl")
def test_unknown_unacknowledged_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any
    with (tmp_path / "file").open("wb") as file:
        assert platform.unacknowledged(file) is None
    with socket.socket() as connection:
        monkeypatch.setattr(platform, "termios", SimpleNamespace())
        assert platform.unacknowledged(connection) is None


def test_windows_modes_are_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "script.sh").write_bytes(b"#!/bin/sh\n")
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    plan = TarPlan.scan(tmp_path)
    assert {entry.mode for entry in plan.entries} == {0o755}
    plan.check_tree()


def test_members_have_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    monkeypatch.setattr(platform, "os", SimpleNamespace(sep="\\", readlink=lambda _: "..\\a\\b"))
    assert platform.name_below("C:\\item", "C:\\item\\a\\b") == "a/b"
    assert platform.path_below("C:\\item", "a/b") == "C:\\item\\a\\b"
    assert platform.read_link("C:\\item\\link") == "../a/b"


def test_open_shared_allows_rename(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(EVERY_BYTE)

    with platform.open_shared(tmp_path / "staged") as file:
        platform.replace(tmp_path / "staged", tmp_path / "part")
        assert platform.read_at(file.fileno(), 1000, 3) == EVERY_BYTE[3:]
        platform.remove(tmp_path / "part")
        assert platform.read_at(file.fileno(), 1000, 0) == EVERY_BYTE

    assert [*tmp_path.iterdir()] == []
    with pytest.raises(FileNotFoundError):
        platform.open_shared(tmp_path / "part")


def test_threads_read_at_any_position(tmp_path: Path) -> None:
    data = os.urandom(1 << 16)
    (tmp_path / "file").write_bytes(data)
    wrong: list[int] = []

    def read(descriptor: int, seed: int) -> None:
        for step in range(200):
            offset = seed * 7919 * step % (len(data) - 100)
            if platform.read_at(descriptor, 100, offset) != data[offset : offset + 100]:
                wrong.append(offset)

    with (tmp_path / "file").open("rb", buffering=0) as file:
        threads = [threading.Thread(target=read, args=(file.fileno(), seed)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_reason_comes_from_system() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)")
    if not platform.IS_WINDOWS:  # Windows has another number for it
        assert platform.reason(refused) == os.strerror(errno.ECONNREFUSED)
    assert platform.reason(socket.gaierror(11001, "getaddrinfo failed")) == "getaddrinfo failed"
    assert platform.reason(OSError(10060, "timed out")) == "timed out"
    assert platform.reason(OSError(10000, "no number")) == "no number"
    assert platform.reason(OSError(errno.EPERM, "refused")) == os.strerror(errno.EPERM)
    assert platform.reason(OSError(0, "Error")) == "Error"  # of asyncio
    assert platform.reason(OSError("no data")) == "no data"
    on_proactor = OSError(errno.EINVAL, "The remote computer refused the network connection")
    if not hasattr(on_proactor, "winerror"):
        on_proactor.winerror = 1225  # type: ignore[attr-defined]
        assert platform.reason(on_proactor) == "The remote computer refused the network connection"


@pytest.mark.posix("sync of a directory")
def test_macos_flushes_drive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c").mkdir()
    fcntl = SimpleNamespace(fcntl=lambda _, command: calls.append(f"drive {command}"))
    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(platform, "fcntl", fcntl, raising=False)
    monkeypatch.setattr(platform.os, "fsync", lambda _: calls.append("file"))
    sync_tree(tmp_path)
    assert calls[-1] == "drive 51"
    assert calls.count("drive 51") == 1
    assert calls.count("file") == 3


def test_macos_durable_write_flushes_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[int] = []
    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(platform, "fcntl", SimpleNamespace(fcntl=lambda _, code: commands.append(code)), raising=False)
    atomic_write(tmp_path / "file", b"x", durable=True)
    fsync_path(tmp_path / "file")
    assert commands == [51, 51]


def test_macos_falls_back_to_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMB has no such call."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    synced: list[int] = []
    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(platform, "fcntl", SimpleNamespace(fcntl=refuse), raising=False)
    monkeypatch.setattr(platform.os, "fsync", synced.append)
    platform.flush(7)
    assert synced == [7]


def test_macos_unacknowledged_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def getsockopt(level: int, option: int) -> int:
        asked.append((level, option))
        return 4096

    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="darwin"))
    connection: Any = SimpleNamespace(getsockopt=getsockopt)
    assert platform.unacknowledged(connection) == 4096
    assert asked == [(socket.SOL_SOCKET, 0x1024)]


def test_macos_boot_id_of_session(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def sysctlbyname(self, name: bytes, buffer: Any, _: object, new: None, new_size: Any) -> int:
            assert (name, new, new_size.value) == (b"kern.bootsessionuuid", None, 0)
            buffer.value = b"5E2B7F1C-0000-4000-8000-000000000001"
            return 0

    monkeypatch.setattr(platform, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda *_, **__: Libc())
    platform.boot_id.cache_clear()
    try:
        assert platform.boot_id() == "5E2B7F1C-0000-4000-8000-000000000001"
    finally:
        platform.boot_id.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("error", [OSError, AttributeError, ValueError])
def test_unreadable_boot_id_is_of_process(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(Path, "read_text", refuse)
    assert platform.boot_id.__wrapped__().startswith("process ")


def test_boot_id_shared_by_processes() -> None:
    assert not platform.boot_id().startswith("process")


def test_windows_paths_are_unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_WINDOWS", True)
    monkeypatch.setattr(platform.os.path, "abspath", str)
    for path, expected in [
        ("C:\\home\\item", "\\\\?\\C:\\home\\item"),
        ("\\\\host\\share\\item", "\\\\?\\UNC\\host\\share\\item"),
        ("\\\\?\\C:\\home", "\\\\?\\C:\\home"),
    ]:
        assert str(platform.long_path(Path(path))) == expected


def test_extract_uses_long_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows limits paths to 260 characters, unless they have the prefix for long paths."""
    used: list[Path] = []
    long_path = platform.long_path
    monkeypatch.setattr(platform, "long_path", lambda path: used.append(path) or long_path(path))
    name = "/".join(["directory" * 5] * 8)
    writer = TreeWriter(tmp_path)
    writer.open_file(f"{name}/file", 0o644)
    writer.close_file(0)
    sync_tree(tmp_path)
    remove_tree(tmp_path)
    assert not tmp_path.exists()
    assert used.count(tmp_path) >= 3


def test_windows_open_directory_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(platform.os, "open", refuse)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_case_collision_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and Windows, `readme` is `README`."""
    writer = TreeWriter(tmp_path)
    writer.open_file("README", 0o644)
    writer.close_file(0)
    with pytest.raises(BentoError, match="an earlier member has the same name"):
        writer.open_file("README", 0o644)
    if not (tmp_path / "readme").exists():  # a case-sensitive disk: simulated by a refusal

        def refuse(*_: object) -> int:
            raise FileExistsError(errno.EEXIST, "File exists")

        monkeypatch.setattr("async_bento.transfer.tar.writer.os.open", refuse)
    with pytest.raises(BentoError, match="differs only in case or in its Unicode form"):
        writer.open_file("readme", 0o644)
