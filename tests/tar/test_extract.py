from __future__ import annotations

import bz2
import contextlib
import ctypes
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from async_bento._core import platform
from async_bento.config import Limits, MiB
from async_bento.errors import ArchiveError, StoreError, UnsafeArchiveError
from async_bento.transfer.tar.extract import Extractor
from async_bento.transfer.tar.safety import check_links, member_path
from tests.platforms import IS_ROOT
from tests.tar.tars import END, block, directory, extract, forge, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
COMPRESS_UNSUPPORTED: dict[str, Callable[[bytes], bytes]] = {"bzip2": bz2.compress, "xz": lzma.compress}
random_bytes = random.Random(20240229).randbytes


@pytest.fixture
def there(tmp_path: Path) -> Path:
    there = tmp_path / "there"
    there.mkdir()
    return there


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory of an ordinary user, and act as this user, since root can write everywhere."""
    if not IS_ROOT:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
        return
    directory = tempfile.mkdtemp(dir="/tmp")
    os.chown(directory, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield Path(directory)
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


def names(there: Path) -> list[str]:
    return sorted(path.name for path in there.iterdir())


def target(link: Path) -> str:
    return os.readlink(link)  # noqa: PTH115 - Path would tidy it


# Extracted trees


@pytest.mark.posix("links and file modes")
def test_extract_restores_tree(there: Path) -> None:
    content = random_bytes(3000)
    extractor = extract(
        directory("./", mode=0o750, mtime=1000)
        + directory("./src/", mode=0o500, mtime=1001)
        + block("./src/a.py", content=content, mode=0o640, mtime=1002)
        + block("./src/run.sh", mode=0o700, mtime=1004)
        + symlink("./src/b.py", "./a.py", mtime=1003)
        + hard_link("./src/c.py", "./src/a.py")
        + END,
        there,
    )
    found = {path.name: path.lstat() for path in (there, *there.rglob("*"))}
    assert {name: int(status.st_mtime) for name, status in found.items()} == {
        "there": 1000,
        "src": 1001,
        "a.py": 1002,
        "b.py": 1003,
        "c.py": 1002,
        "run.sh": 1004,
    }
    modes = {name: stat.S_IMODE(found[name].st_mode) for name in ("src", "a.py", "run.sh")}
    assert modes == {"src": 0o755, "a.py": 0o644, "run.sh": 0o755}
    assert (there / "src" / "a.py").read_bytes() == content
    assert target(there / "src" / "b.py") == "./a.py"
    assert found["a.py"].st_ino == found["c.py"].st_ino
    assert (extractor.members, extractor.files, extractor.bytes_written, extractor.finished) == (6, 3, 3000, True)


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 4096])
def test_extract_any_chunk_size(there: Path, step: int) -> None:
    content = random_bytes(1500)
    extract(directory("./") + block("./" + "n" * 120, content=content) + END, there, step)
    assert (there / ("n" * 120)).read_bytes() == content


def test_extract_non_byte_memoryview(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(memoryview(block("a", content=b"x" * 512) + END).cast("I"))
        extractor.close()
    assert (there / "a").read_bytes() == b"x" * 512


def test_extract_fills_read_only_dir(ordinary_user: Path) -> None:
    there = ordinary_user / "there"
    there.mkdir()
    extract(directory("d", mode=0) + directory("d/e", mode=0) + block("d/e/f", content=b"x") + END, there)
    assert (there / "d" / "e" / "f").read_bytes() == b"x"


def test_extract_creates_parents(there: Path) -> None:
    extract(block("a/b/c", content=b"x") + END, there)
    assert (there / "a" / "b" / "c").read_bytes() == b"x"


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_extract_all_tarfile_formats(there: Path, fmt: int) -> None:
    name = "d" * 90 + "/" + "n" * 95
    extract(directory("d" * 90 + "/", fmt=fmt) + block(name, content=b"x", fmt=fmt) + END, there)
    assert (there / name).read_bytes() == b"x"


@pytest.mark.posix("links without a privilege")
@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_extract_long_unicode_names(there: Path, fmt: int) -> None:
    name = "/".join(["grüße" * 20] * 4)
    extract(
        block(name, content=b"x", fmt=fmt) + hard_link("h", name, fmt=fmt) + symlink("s", name, fmt=fmt) + END, there
    )
    assert (there / "h").read_bytes() == (there / "s").read_bytes() == b"x"


def test_extract_old_file_types(there: Path) -> None:
    extract(block("a", tarfile.AREGTYPE, b"a") + block("c", tarfile.CONTTYPE, b"c") + END, there)
    assert (there / "a").read_bytes() + (there / "c").read_bytes() == b"ac"


@pytest.mark.posix("times of a nanosecond")
def test_header_pax_records_override(there: Path) -> None:
    records = record("path", "./real") + record("mtime", "1234.5678901239") + record("comment", "ignored\0")
    data = pax(record("size", "700")) + pax(records) + block("fake", content=b"")
    extract(data + b"x" * 700 + bytes(324) + block("next") + END, there)
    assert (there / "real").read_bytes() == b"x" * 700
    assert (there / "real").stat().st_mtime_ns == 1_234_567_890_123
    assert names(there) == ["next", "real"]


@pytest.mark.posix("links without a privilege")
def test_header_pax_linkpath_override(there: Path) -> None:
    extract(pax(record("linkpath", "real")) + symlink("link", "fake") + END, there)
    assert target(there / "link") == "real"


def test_pax_empty_record_ignored(there: Path) -> None:
    extract(pax(record("path", "") + record("size", "")) + block("a", content=b"x") + END, there)
    assert (there / "a").read_bytes() == b"x"


@pytest.mark.posix("times of a nanosecond")
@pytest.mark.parametrize("given", ["-1.5", "-0", "0.000000001", "4102444800"])
def test_extract_unusual_times(there: Path, given: str) -> None:
    extract(pax(record("mtime", given)) + block("a") + END, there)
    assert (there / "a").stat().st_mtime_ns == round(float(given) * 10**9)


def test_pax_global_comment_ignored(there: Path) -> None:
    extract(pax(record("comment", "a commit"), tarfile.XGLTYPE) + block("a") + END, there)
    assert (there / "a").exists()


def test_header_size_base_256_parsed(there: Path) -> None:
    data = forge(block("a", content=b"x" * 600), 124, b"\x80" + (600).to_bytes(11, "big"))
    extract(data + END, there)
    assert (there / "a").stat().st_size == 600


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
def test_extract_name_not_utf8_kept(there: Path) -> None:
    extract(block("caf\udce9", content=b"x") + END, there)
    assert names(there) == ["caf\udce9"]


def test_hard_link_failed_raises(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, original: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    with pytest.raises(StoreError, match="cannot write b: No space left"):
        extract(block("a") + hard_link("b", "a") + END, there)
    assert names(there) == ["a"]


@pytest.mark.posix("file modes")
def test_hard_link_unsupported_copied(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, original: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    extractor = extract(block("a", content=b"x" * 700, mode=0o750) + hard_link("b", "a") + END, there)
    status = (there / "b").stat()
    assert (there / "b").read_bytes() == b"x" * 700
    assert (status.st_mtime, stat.S_IMODE(status.st_mode)) == (1_600_000_000, 0o755)
    assert extractor.bytes_written == 1400


def test_symlinks_unsupported_copied(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(platform, "make_link", refuse)
    files = b"".join(block(f"d/{name}", content=b"x" * 100) for name in "abc")
    data = directory("d") + files + symlink("one", "d") + symlink("two", "d") + END  # copies of 2 times 4 members
    assert extract(data, there, limits=Limits(members=8, size=900)).bytes_written == 900
    assert (there / "two" / "c").read_bytes() == b"x" * 100
    for limits in (Limits(members=7), Limits(size=899)):
        other = there / f"{limits.members}"
        other.mkdir()
        with pytest.raises(UnsafeArchiveError, match=r"more than (7 files|899 bytes)") as raised:
            extract(data, other, limits=limits)
        assert raised.value.member == "two"


@pytest.mark.posix("links without a privilege")
def test_symlink_valid_targets_kept(there: Path) -> None:
    extract(
        directory("a/b") + symlink("a/b/top", "../..") + symlink("x", "a/b/top/a/b/../b") + symlink("y", "a/z") + END,
        there,
    )
    assert (there / "x").resolve() == there.resolve() / "a" / "b"
    assert not (there / "y").exists()


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("./", ""),
        (".", ""),
        ("./a/b", "a/b"),
        ("a//b/", "a/b"),
        ("a/./b", "a/b"),
        ("...", "..."),
        pytest.param("./" * 200 + "a", "a", id="dots"),
        pytest.param("d/" + "m" * 255, "d/" + "m" * 255, id="longest"),
    ],
)
def test_member_path_normalised(raw: str, name: str) -> None:
    assert member_path(raw) == name


def test_symlink_chain_limited_to_40() -> None:
    chain = {f"link{number}": f"link{number + 1}" for number in range(40)}
    check_links(chain, {""})
    with pytest.raises(UnsafeArchiveError, match="more than 40 links") as raised:
        check_links({**chain, "link40": "x"}, {""})
    assert raised.value.member == "link40"


@pytest.mark.posix("links without a privilege")
def test_symlink_made_at_end_only(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(symlink("link", "x") + END)
        assert not names(there)
        extractor.close()
    assert names(there) == ["link"]


def test_extract_at_limits_accepted(there: Path) -> None:
    data = block("a", content=bytes(600)) + block("b", content=bytes(400))
    assert extract(data + END, there, limits=Limits(size=1000, members=2)).bytes_written == 1000


def test_zeros_after_end_ignored(there: Path) -> None:
    assert extract(block("a") + END + bytes(10_000), there).finished


def test_extract_html_page_refused(there: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="not a tar"):
        extract(b"<html>" + b"404 " * 500, there)


# Compression


@pytest.mark.parametrize("step", [1, 100, None])
def test_extract_gzip_any_chunk_size(there: Path, step: int | None) -> None:
    content = random_bytes(5000)
    extract(gzip.compress(block("a", content=content) + END), there, step)
    assert (there / "a").read_bytes() == content


@pytest.mark.parametrize("step", [1, None])
def test_extract_concatenated_gzip(there: Path, step: int | None) -> None:
    data = block("a", content=b"x" * 1000) + END
    parts = [gzip.compress(data[:700]), gzip.compress(b""), gzip.compress(data[700:])]
    extract(b"".join(parts) + bytes(100), there, step)
    assert (there / "a").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("step", [1, 100, None])
@pytest.mark.parametrize("name", COMPRESS_UNSUPPORTED)
def test_unsupported_compression_refused(there: Path, name: str, step: int | None) -> None:
    data = COMPRESS_UNSUPPORTED[name](block("a", content=b"x") + END)
    with pytest.raises(
        ArchiveError, match=rf"compressed with {name}, and only .* gzip .*\. Push the item again"
    ) as raised:
        extract(data, there, step)
    assert not isinstance(raised.value, UnsafeArchiveError)
    assert not names(there)


def test_empty_bzip2_refused(there: Path) -> None:
    with pytest.raises(ArchiveError, match="compressed with bzip2"):
        extract(bz2.compress(b""), there)


def test_plain_tar_with_bzip2_like_name(there: Path) -> None:
    extract(block("BZh9.txt", content=b"x") + END, there)
    assert (there / "BZh9.txt").read_bytes() == b"x"


# Memory, the disk, the end


def test_disk_full_names_member(there: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, before[1]))
    try:
        with pytest.raises(
            StoreError, match=r"cannot write src/model.bin: File too large\. Check the free space"
        ) as raised:
            extract(block("./src/model.bin", content=bytes(2 * MiB)) + END, there)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.posix("file modes")
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (directory("./"), "the root of the tar"),
        (directory("d") + directory("e"), "d"),
        (symlink("link", "d") + directory("d"), "link"),
    ],
)
def test_failed_last_steps_name_member(there: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("async_bento.transfer.tar.writer.set_times", fail)
    monkeypatch.setattr(platform, "make_link", fail)
    with pytest.raises(StoreError, match=f"^cannot write {name}: No space left"):
        extract(data + END, there)


def test_permission_denied_names_member(ordinary_user: Path) -> None:
    there = ordinary_user / "there"
    there.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot write src/a: Permission denied"):
        extract(block("src/a") + END, there)


@pytest.mark.posix("words of POSIX in errors")
def test_missing_destination_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere: No such file"):
        Extractor(tmp_path / "nowhere")


def test_nonempty_destination_refused(there: Path) -> None:
    (there / "something").touch()
    with pytest.raises(StoreError, match="not empty"):
        Extractor(there)


def open_files(there: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += descriptor.readlink().is_relative_to(there)
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("give_up", [Extractor.abort, Extractor.close, lambda it: it.feed(b"x" * 2000)])
def test_extract_abort_closes_files(there: Path, give_up: Callable[[Extractor], None]) -> None:
    extractor = Extractor(there)
    extractor.feed(block("a", content=bytes(600))[:1000])
    assert open_files(there) == 1
    if give_up is Extractor.abort:
        give_up(extractor)
    else:
        with pytest.raises(UnsafeArchiveError):
            give_up(extractor)
    assert open_files(there) == 0
    assert not extractor.finished


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone lets a file begin its way to the disk")
@pytest.mark.parametrize(("size", "times"), [(31, 0), (70, 2)])
def test_large_file_starts_write_back(there: Path, monkeypatch: pytest.MonkeyPatch, size: int, times: int) -> None:
    asked: list[tuple[str, int]] = []

    class Libc:
        def __init__(self, name: None) -> None:
            self._real = ctypes.CDLL(name)

        def sync_file_range(self, descriptor: int, *arguments: object) -> None:
            answer = self._real.sync_file_range(descriptor, *arguments)
            asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, answer))

    monkeypatch.setattr("async_bento._core.platform.ctypes", SimpleNamespace(CDLL=Libc, c_int64=ctypes.c_int64))
    head = block("before", content=bytes(MiB)) + block("large", content=bytes(size * MiB))[:512]
    with Extractor(there) as extractor:
        extractor.feed(head)
        for _ in range(size):
            extractor.feed(bytes(MiB))
        extractor.feed(END)
        extractor.close()
    assert asked == [("large", 0)] * times


def test_without_sync_file_range(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento._core.platform.ctypes", SimpleNamespace(CDLL=lambda _: object()))
    with Extractor(there) as extractor:
        extractor.feed(block("large", content=bytes(33 * MiB)) + END)
        extractor.close()
    assert (there / "large").stat().st_size == 33 * MiB


def test_extract_after_error_raises(there: Path) -> None:
    extractor = Extractor(there)
    with pytest.raises(UnsafeArchiveError):
        extractor.feed(block("../x"))
    with pytest.raises(ValueError, match="closed"):
        extractor.feed(END)
    with pytest.raises(ValueError, match="closed"):
        extractor.close()


def test_extract_after_close_raises(there: Path) -> None:
    extractor = Extractor(there)
    extractor.feed(END)
    extractor.close()
    with pytest.raises(ValueError, match="closed"):
        extractor.feed(b"")


def test_context_exit_does_not_finish(there: Path) -> None:
    with Extractor(there) as extractor:
        extractor.feed(symlink("link", "x") + END)
    assert not extractor.finished
    assert not names(there)


def test_extract_tarfile_add_output(there: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "c.txt").write_text("c")
    (source / "link").symlink_to("a/b/c.txt")
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:") as tar:  # BentoML's call, float times and owners included
            tar.add(source, arcname="./")
        extract(file.getvalue(), there)
    assert (there / "link").read_text() == "c"
    assert abs((there / "a").stat().st_mtime - (source / "a").stat().st_mtime) < 1e-5
