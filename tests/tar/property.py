"""Properties of the extractor for any input."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import Literal

from async_bento._core.platform import read_link
from async_bento.errors import ArchiveError, StoreError
from async_bento.transfer.tar.decompress import MAGIC_SIZE, decompressor_for
from tests.platforms import IS_WINDOWS, link_if_possible
from tests.tar.tars import extract


class Surroundings:
    """A directory to extract into, and a canary next to it that must not change.

    Args:
        base: An empty directory.

    Attributes:
        there: The directory of the extractions.
        canary: The directory that must not change.
        found: The tree of the last accepted tar.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.there = base / "there"
        self.canary = base / "canary"
        self.found: dict[str, tuple[bytes, bytes | str]] = {}
        (self.canary / "below").mkdir(parents=True)
        (self.canary / "file").write_bytes(b"sings")
        link_if_possible(self.canary / "link", "file")
        self._before = snapshot(self.canary)

    def check(self) -> None:
        """Fail if anything but `there` has changed."""
        assert {path.name for path in self.base.iterdir()} <= {"canary", "there"}
        assert snapshot(self.canary) == self._before

    def feed(self, data: bytes, step: int | None = None, **limits) -> ArchiveError | StoreError | None:
        """Extract, check the properties, and remove the extracted files.

        Args:
            data: A tar, possibly damaged.
            step: The size of the pieces; None for one.
            limits: The limits of the extractor.

        Returns:
            The error of a refused tar; None for an accepted one.
        """
        self.there.mkdir()
        try:
            extract(data, self.there, step, **limits)
        except (ArchiveError, StoreError) as error:
            return error
        else:
            self.stays_inside()
            _open_up(self.there)
            self.found = as_extracted(self.there)
            return None
        finally:
            self.check()
            _open_up(self.there)
            shutil.rmtree(self.there)

    def stays_inside(self) -> None:
        """Fail if a path in `there` leads out of it, or is open to more than the umask allows."""
        real = self.there.resolve()
        for path in self.there.rglob("*"):
            mode = path.lstat().st_mode
            assert path.resolve().is_relative_to(real), path
            assert stat.S_IFMT(mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}, path
            assert IS_WINDOWS or stat.S_ISLNK(mode) or not stat.S_IMODE(mode) & ~0o755, path


def snapshot(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return the modes, times, sizes and contents of a directory and all entries below it."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


def as_tarfile_reads_it(data: bytes) -> dict[str, tuple[bytes, bytes | str]]:
    """Return the type, and content or target, of all members and their parents, as read by tarfile."""
    found: dict[str, tuple[bytes, bytes | str]] = {}
    mode: Literal["r:", "r:*"] = "r:" if decompressor_for(data[:MAGIC_SIZE]) is None else "r:*"
    with tarfile.open(fileobj=io.BytesIO(data), mode=mode, errorlevel=2) as tar:
        for member in tar:
            name = str(PurePosixPath(member.name))
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                found[name] = (tarfile.REGTYPE, file.read())
            elif member.islnk():
                found[name] = found[str(PurePosixPath(member.linkname))]
            elif member.issym():
                found[name] = (tarfile.SYMTYPE, member.linkname)
            elif name != ".":
                found[name] = (tarfile.DIRTYPE, b"")
    on_the_way = {str(parent) for name in found for parent in PurePosixPath(name).parents} - {"."}
    return dict.fromkeys(on_the_way, (tarfile.DIRTYPE, b"")) | found


def as_extracted(there: Path) -> dict[str, tuple[bytes, bytes | str]]:
    """Return the same for the files on the disk."""
    found: dict[str, tuple[bytes, bytes | str]] = {}
    for path in there.rglob("*"):
        name = path.relative_to(there).as_posix()
        if path.is_symlink():
            found[name] = (tarfile.SYMTYPE, read_link(str(path)))
        elif path.is_dir():
            found[name] = (tarfile.DIRTYPE, b"")
        else:
            found[name] = (tarfile.REGTYPE, path.read_bytes())
    return found


def _open_up(there: Path) -> None:
    """Make all extracted entries readable and removable for users other than root."""
    there.chmod(0o700)
    for parent, directories, _ in os.walk(there):
        for path in (Path(parent, name) for name in directories):
            if not path.is_symlink():
                path.chmod(0o700)
