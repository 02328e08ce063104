"""What differs between Linux, macOS and Windows, for all other modules.

Everything here blocks, but for the constants.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import socket
import stat
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if sys.platform == "win32":
    import _winapi
    import msvcrt
else:
    import fcntl
    import termios

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

IS_WINDOWS = sys.platform == "win32"
HAS_MODES = not IS_WINDOWS
"""Whether files have owners, groups and permission bits. Windows has a read-only attribute and access control lists."""

# Without O_BINARY, Windows converts line ends and stops at byte 0x1A.
OPEN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
"""Flags of every `os.open`: binary, and not inherited by child processes."""
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

PRIVATE_DIRECTORY = 0o777 if IS_WINDOWS else 0o700
"""Mode of a directory that is closed to other users, and whose content may move elsewhere.

On Windows, 0o700 gives an access control list that everything below inherits and keeps when it is moved
(python/cpython#118486). The directory of the user's profile is closed to others without it.
"""

_PUSHED_MODE = 0o755

_SHARE_ALL = 1 | 2 | 4  # FILE_SHARE_READ, WRITE and DELETE of CreateFile

# ERROR_ACCESS_DENIED, SHARING_VIOLATION, LOCK_VIOLATION and DIR_NOT_EMPTY, by a file that is removed once it is closed.
_IN_USE = frozenset({5, 32, 33, 145})
_RETRY_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)  # a second in all, as in Git and pip

_AT_FDCWD = -100  # fcntl.h of Linux: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_RENAME_SWAP = 2  # sys/stdio.h of macOS, for renamex_np(2)
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h, for sync_file_range(2)
_F_FULLFSYNC = 51  # sys/fcntl.h of macOS
_SO_NWRITE = 0x1024  # sys/socket.h of macOS
_BOOT_ID = 0x7FFE02C4  # KUSER_SHARED_DATA.BootId of Windows, at the same address in every process
_SYSTEM_TIME_OF_DAY = 3  # SYSTEM_INFORMATION_CLASS of Windows

# A seccomp filter answers EPERM. Where EPERM is the filesystem's own, the rename that follows fails with it again.
_EXCHANGE_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM})
_SYNCFS_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOTSUP})
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_FIRST_WINSOCK_ERROR = 10000  # WSABASEERR of winsock2.h

# Windows takes superscript digits for digits of ports (Microsoft, "Naming Files, Paths, and Namespaces").
_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"
}
_WINDOWS_FORBIDS = frozenset('<>:"|?*\\')  # and control characters, which no tag and no tar may have anyway


def patiently(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of the filesystem; on Windows, again for a second while another program holds the file.

    An antivirus program or an indexer opens what is new for some milliseconds, and what is open cannot be renamed,
    replaced or removed.
    """
    for seconds in _RETRY_SECONDS:
        try:
            return action(*args, **kwargs)
        except OSError as error:
            if not is_in_use(error):
                raise
        time.sleep(seconds)
    return action(*args, **kwargs)


def is_in_use(error: BaseException | None) -> bool:
    """Whether Windows may have refused an operation because another program holds the file."""
    winerror: int | None = getattr(error, "winerror", None)
    # `os.open` states no error of Windows.
    return winerror in _IN_USE or (IS_WINDOWS and winerror is None and isinstance(error, PermissionError))


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory; a directory replaces an empty one, as on POSIX."""
    if IS_WINDOWS and target.is_dir() and not target.is_symlink():
        with suppress(OSError):  # not empty, and the rename fails
            target.rmdir()
    patiently(source.rename, target)


def replace(source: Path, target: Path) -> None:
    """Rename a file, also onto one that exists, even if that is read-only."""
    if IS_WINDOWS:
        _make_writable(target)
    patiently(source.replace, target)


def remove(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a file or a link, even if it is read-only."""
    if IS_WINDOWS:
        _make_writable(path)
    patiently(path.unlink, missing_ok=missing_ok)


def _make_writable(path: Path) -> None:
    with suppress(OSError):
        if not path.lstat().st_mode & stat.S_IWRITE:
            path.chmod(stat.S_IWRITE)


def long_path(path: Path) -> Path:
    """Return a path that Windows does not limit to 260 characters, since staged files have long ones."""
    text = os.path.abspath(path)  # noqa: PTH100 - as text
    if not IS_WINDOWS or text.startswith("\\\\?\\"):
        return path
    return Path(f"\\\\?\\UNC{text[1:]}" if text.startswith("\\\\") else f"\\\\?\\{text}")


def remove_directory(path: Path) -> None:
    """Remove a directory and all below it, on Windows also read-only files."""
    path = long_path(path)
    if not IS_WINDOWS:
        shutil.rmtree(path)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=_remove_refused)
    else:
        shutil.rmtree(path, onerror=_remove_refused)


def _remove_refused(function: Callable[[str], object], path: str, _: object) -> None:
    # `shutil.rmtree` also reports directories that it cannot list, for which a repeated call is no remedy.
    if function not in {os.unlink, os.rmdir}:
        raise  # noqa: PLE0704 - the error that `shutil.rmtree` handles
    _make_writable(Path(path))
    patiently(function, path)


def user_id() -> int:
    """Return the user of this process; 0 on Windows, which states no owners of files."""
    if sys.platform != "win32":
        return os.geteuid()
    else:  # noqa: RET505 - the type checkers skip what another system would not run
        return 0


def set_owner(path: Path, user: int, group: int) -> None:
    """Change the owner and the group of a file, -1 for no change."""
    if sys.platform != "win32":
        os.chown(path, user, group)


def set_mode(descriptor: int, mode: int) -> None:
    """Change the mode of an open file."""
    if sys.platform != "win32":
        os.fchmod(descriptor, mode)


def mode_in_tar(status: os.stat_result) -> int:
    """Return the mode that a pushed file or directory has; everything is executable if pushed from Windows.

    Windows states 0o666 for files. With this mode, a script would not start on Linux; Docker does the same.
    """
    return _PUSHED_MODE if IS_WINDOWS else stat.S_IMODE(status.st_mode)


def entry_status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of an entry itself; that of Windows' directories lacks links and may be out of date."""
    return os.lstat(entry.path) if IS_WINDOWS else entry.stat(follow_symlinks=False)


def is_junction(status: os.stat_result) -> bool:
    """Whether a directory is a junction of Windows, which leads elsewhere."""
    return getattr(status, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)


def path_below(root: str, name: str) -> str:
    """Return the path of a name with slashes below a directory."""
    return f"{root}{os.sep}{name.replace('/', os.sep)}" if IS_WINDOWS else f"{root}/{name}"


def name_below(root: str, path: str) -> str:
    """Return the name, with slashes, of a path below a directory."""
    name = path[len(root) :].lstrip(os.sep)
    return name.replace(os.sep, "/") if IS_WINDOWS else name


def read_link(path: str) -> str:
    """Return the target of a symlink, with slashes."""
    target = os.readlink(path)  # noqa: PTH115 - Path normalises the target, which must stay as it is
    return target.replace(os.sep, "/") if IS_WINDOWS else target


def make_link(link: Path, target: str, *, is_directory: bool) -> None:
    """Make a symlink; Windows marks those to directories, and does not follow slashes (python/cpython#138309)."""
    link.symlink_to(target.replace("/", os.sep) if IS_WINDOWS else target, target_is_directory=is_directory)


def windows_refusal(path: str) -> str | None:
    """Return why Windows cannot store a relative path with slashes, None if it can; `..` is the caller's to check.

    Windows would drop a dot or a space at the end of a name, and open a device for one of their names (Git refuses the
    same: `is_valid_win32_path` in compat/mingw.c).
    """
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            continue
        if not _WINDOWS_FORBIDS.isdisjoint(part):
            return f"{part!r} has a character that Windows forbids in names"
        if part[-1] in ". ":
            return f"{part!r} ends in a dot or a space, which Windows drops"
        if part.partition(".")[0].rstrip(" ").lower() in _DEVICES:
            return f"{part!r} is the name of a device on Windows"
    return None


def refusal_of_name(path: str) -> str | None:
    """Return why this system cannot store a relative path with slashes, None if it can."""
    return windows_refusal(path) if IS_WINDOWS else None


if sys.platform == "win32":

    def try_lock(descriptor: int) -> bool:
        """Lock a file against other processes and other descriptors; return whether it is locked."""
        os.lseek(descriptor, 0, os.SEEK_SET)  # `locking` starts at the position of the file
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EDEADLK, errno.ENOENT, 0}:  # ENOENT, 0: Wine, of removed files
                return False
            raise
        return True

    def unlock(descriptor: int) -> None:
        """Release the lock of a file."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def try_lock(descriptor: int) -> bool:
        """Lock a file against other processes and other descriptors; return whether it is locked."""
        # Not the locks of fcntl(2): two threads of a process would share one, and closing any descriptor releases it.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Release the lock of a file."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def open_shared(path: Path) -> FileIO:
    """Open a file to read from it; the file can be renamed and removed meanwhile, on Windows as on POSIX."""
    if sys.platform != "win32":
        return path.open("rb", buffering=0)
    else:  # noqa: RET505 - as above
        name, existing = str(path), _winapi.OPEN_EXISTING
        handle = _winapi.CreateFile(name, _winapi.GENERIC_READ, _SHARE_ALL, _winapi.NULL, existing, 0, _winapi.NULL)
        return open(msvcrt.open_osfhandle(handle, os.O_RDONLY | OPEN), "rb", buffering=0)  # noqa: PTH123


# Windows has no pread(2), and threads that share a descriptor share its position. Several locks, so that reads of
# different files seldom wait for each other.
_read_locks = tuple(threading.Lock() for _ in range(16))


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes from a position of a file; threads may read one file at once."""
    if sys.platform != "win32":
        return os.pread(descriptor, size, offset)
    else:  # noqa: RET505 - as above
        with _read_locks[descriptor % len(_read_locks)]:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)


def send_file(connection: int, descriptor: int, offset: int, size: int) -> int:
    """Let the kernel send a part of a file, and return how many bytes; an OSError where the system cannot."""
    if sys.platform != "win32":
        return os.sendfile(connection, descriptor, offset, size)
    else:  # noqa: RET505 - as above
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def flush(descriptor: int, *, drive: bool = True) -> None:
    """Flush a file to its disk; a filesystem that cannot is no error.

    On macOS, fsync(2) leaves the data in the cache of the drive; with `drive`, that is flushed too, for all files.
    """
    try:
        if sys.platform == "darwin" and drive:
            with suppress(OSError):  # such as SMB, which has no such call
                fcntl.fcntl(descriptor, _F_FULLFSYNC)
                return
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def flush_filesystem(path: Path) -> bool:
    """Flush the whole filesystem of a path; return False where the system cannot."""
    if IS_WINDOWS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | OPEN)
    try:
        if libc.syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
    except AttributeError:  # a libc without the function
        return False
    finally:
        os.close(descriptor)
    if number in _SYNCFS_UNSUPPORTED:  # an old kernel, a seccomp filter, or the filesystem
        return False
    raise OSError(number, os.strerror(number), str(path))


def start_write_back(descriptor: int) -> None:
    """Ask the kernel to start writing a file to disk, so that the final sync has little left to do."""
    # It waits for nothing. Other systems lack the call, and some filesystems refuse it; the sync then does all.
    # Zero bytes from byte 0 mean the whole file.
    if not IS_WINDOWS:
        with suppress(AttributeError):
            ctypes.CDLL(None).sync_file_range(descriptor, ctypes.c_int64(), ctypes.c_int64(), _SYNC_FILE_RANGE_WRITE)


def exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; return False where the system or the filesystem cannot."""
    if IS_WINDOWS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            result = libc.renamex_np(*paths, _RENAME_SWAP)
        else:
            result = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    except AttributeError:  # a libc without the function
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _EXCHANGE_UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first))


def unacknowledged(connection: socket.socket) -> int | None:
    """Bytes in the kernel that the peer has not acknowledged (tcp(7)); None where the system does not report them."""
    try:
        if sys.platform == "darwin":
            return connection.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        elif sys.platform != "win32":  # noqa: RET505 - as above
            queued = bytearray(4)
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, queued)
            return int.from_bytes(queued, sys.byteorder)
    except (OSError, ValueError, AttributeError):  # ValueError: the socket is closed, and its descriptor is -1
        pass
    return None


@cache
def boot_id() -> str:
    """Return an identifier of the current boot of the system; where there is none, one of this process."""
    with suppress(OSError, AttributeError, ValueError):
        if sys.platform == "win32":
            found = _windows_boot_id()
        elif sys.platform == "darwin":
            found = _macos_boot_id()
        else:
            found = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        if found:
            return found
    return f"process {secrets.token_hex(16)}"


def _macos_boot_id() -> str:
    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(buffer))
    # It leaves the buffer empty where it fails.
    ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return buffer.value.decode()


def _windows_boot_id() -> str:
    if number := ctypes.c_uint32.from_address(_BOOT_ID).value:
        return str(number)
    information = (ctypes.c_int64 * 6)()  # SYSTEM_TIMEOFDAY_INFORMATION begins with BootTime
    dll = ctypes.CDLL("ntdll")
    dll.NtQuerySystemInformation(_SYSTEM_TIME_OF_DAY, information, ctypes.sizeof(information), None)
    return f"{information[0]:x}" if information[0] else ""


def reason(error: OSError) -> str:
    """Return why an operation failed, in the words of the system, without the addresses that asyncio adds."""
    number = error.errno or 0
    # Windows' own numbers, and those of resolvers, are no numbers of `os.strerror`.
    is_own = getattr(error, "winerror", None) or isinstance(error, socket.gaierror) or number >= _FIRST_WINSOCK_ERROR
    if number > 0 and not is_own:
        return os.strerror(number)
    return _of_winsock(error) or error.strerror or str(error)


def _of_winsock(error: OSError) -> str | None:
    if sys.platform == "win32" and error.winerror:
        return ctypes.FormatError(error.winerror).strip().rstrip(".")
    return None
