from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento._core.concurrency import Threads, shielded
from async_bento.config import GiB, KiB, MiB
from async_bento.errors import ArchiveError, ClosedError, SourceChangedError, TransferError, UnsafeArchiveError
from async_bento.transfer.tar import reader as reader_module
from async_bento.transfer.tar.digests import digest_files
from async_bento.transfer.tar.plan import TarPlan, header
from async_bento.transfer.tar.reader import UNSENT, AsyncTarReader, TarReader
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, names_memory
from async_bento.transfer.tar.scan import Entry
from tests.platforms import IS_ROOT, IS_WINDOWS, link_if_possible

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

NOBODY = 65534
random_bytes = random.Random(20240229).randbytes


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(4)
    yield threads
    threads.executor.shutdown()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bento"
    root.mkdir()
    return root


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory of an ordinary user, and act as this user, since root can read everything."""
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


async def read(
    plan: TarPlan, threads: Threads, start: int = 0, stop: int | None = None, io_chunk: int = 64 * KiB
) -> bytes:
    stop = plan.size if stop is None else stop
    return b"".join([chunk async for chunk in chunks_of(plan, threads, start, stop, io_chunk)])


async def chunks_of(
    plan: TarPlan, threads: Threads, start: int, stop: int, io_chunk: int = MiB
) -> AsyncGenerator[bytes, None]:
    """Return the chunks of a range as a request reads them."""
    reader = TarReader(plan, start, stop, io_chunk=io_chunk)
    tar = AsyncTarReader(reader, asyncio.get_running_loop(), threads.executor)
    try:
        while chunk := await tar.read():
            yield chunk
    finally:
        await shielded(tar.close())


def written_by_tarfile(root: Path, exclude: str | None = None) -> bytes:
    """Return the same tar by `tarfile.add`, like BentoML, without the values that depend on the machine."""

    def clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if exclude is not None and (info.name == f"./{exclude}" or info.name.startswith(f"./{exclude}/")):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if IS_WINDOWS else info.mode
        info.mtime = (root / info.name).lstat().st_mtime_ns // 10**9
        return info

    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
            tar.add(root, arcname="./", filter=clean)
        return file.getvalue()


def fill(root: Path) -> None:
    """Make a tree with all features that a tar supports."""
    (root / "bento.yaml").write_text("name: iris\n")
    (root / "src").mkdir()
    for size in (0, 1, 511, 512, 513, 10_240, 200 * KiB + 7):
        (root / "src" / f"{size}.bin").write_bytes(random_bytes(size))
    (root / "empty").mkdir()
    (root / "empty" / "within").mkdir(mode=0o700)
    (root / "run.sh").write_text("true")
    (root / "run.sh").chmod(0o751)
    link_if_possible(root / "latest", "src/1.bin")
    link_if_possible(root / "src" / "up", "../empty/./within/")
    link_if_possible(root / "nowhere", "missing")
    (root / "src" / "zz_same.bin").hardlink_to(root / "src" / "513.bin")
    (root / ("n" * 120)).write_bytes(b"long")
    (root / ("n" * 97)).mkdir()
    (root / ("n" * 98)).mkdir()
    link_if_possible(root / ("n" * 98) / "target", "t" * 150)
    deep = root / ("d" * 150) / ("e" * 150)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    (root / "grüße 模型.txt").write_text("non-ASCII")
    link_if_possible(root / "to grüße", "grüße 模型.txt")
    (root / "sticky").write_bytes(b"")
    (root / "sticky").chmod(0o4755)
    os.utime(root / "run.sh", ns=(1, 1_600_000_000_999_999_999))
    os.utime(root / "bento.yaml", ns=(1, -1_500_000_000))


async def test_plan_bytes_equal_tarfile(root: Path, threads: Threads) -> None:
    fill(root)
    plan = await threads.run(TarPlan.scan, root)
    expected = written_by_tarfile(root)
    assert plan.size == len(expected)
    assert await read(plan, threads) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
async def test_plan_name_not_utf8_kept(root: Path, threads: Threads) -> None:
    (root / "caf\udce9").write_text("latin-1")
    (root / "link").symlink_to("caf\udce9")
    data = await read(await threads.run(TarPlan.scan, root), threads)
    assert data == written_by_tarfile(root)
    assert b"path=./caf\xe9\n" in data


FILE = Entry("a", tarfile.REGTYPE, 0o644, 1, 10**18, "", 0, 0)
PLAIN = [
    FILE,
    FILE._replace(name="n" * 97),
    FILE._replace(name="n" * 97, type=tarfile.DIRTYPE, size=0),
    FILE._replace(link="t" * 98, type=tarfile.SYMTYPE, size=0),
    FILE._replace(link="t" * 98, type=tarfile.LNKTYPE, size=0),
    FILE._replace(size=8**11 - 1),
    FILE._replace(mtime_ns=0),
    FILE._replace(mtime_ns=8**11 * 10**9 - 1),
]
EXTENDED = [
    FILE._replace(name="n" * 98, type=tarfile.DIRTYPE, size=0),
    FILE._replace(link="t" * 101, type=tarfile.SYMTYPE, size=0),
    FILE._replace(link="t" * 99, type=tarfile.LNKTYPE, size=0),
    FILE._replace(size=8**11),
    FILE._replace(mtime_ns=-1),
    FILE._replace(mtime_ns=8**11 * 10**9),
    FILE._replace(name="é"),
    FILE._replace(link="é", type=tarfile.SYMTYPE, size=0),
]


@pytest.mark.parametrize("entry", PLAIN + EXTENDED)
def test_header_at_limit_equals_tarfile(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo(f"./{entry.name}")
    info.type, info.mode, info.size, info.mtime = entry.type, entry.mode, entry.size, entry.mtime_ns // 10**9
    info.linkname = f"./{entry.link}" if entry.type == tarfile.LNKTYPE else entry.link
    expected = info.tobuf(tarfile.PAX_FORMAT, "utf-8")
    if entry in PLAIN:  # which tarfile would make in ten times the time
        monkeypatch.setattr(tarfile, "TarInfo", None)
    assert header(entry) == expected


async def test_member_names_equal_bentoml(root: Path, threads: Threads) -> None:
    (root / "src").mkdir()
    (root / "src" / "a.py").write_bytes(b"")
    (root / "bento.yaml").write_bytes(b"")
    data = await read(await threads.run(TarPlan.scan, root), threads)
    names = [data[begin : begin + 100].rstrip(b"\0") for begin in range(0, 4 * 512, 512)]
    assert names == [b"./", b"./bento.yaml", b"./src/", b"./src/a.py"]


@pytest.mark.posix("file modes")
async def test_exclude_applies_at_top_only(root: Path, threads: Threads) -> None:
    for directory in ("models", "models/iris", "src", "src/models", "models-too"):
        (root / directory).mkdir()
        (root / directory / "file").write_bytes(b"x")
    plan = await threads.run(TarPlan.scan, root, exclude={"models"})
    assert await read(plan, threads) == written_by_tarfile(root, exclude="models")
    assert plan.members == 7


def test_ds_store_left_out(root: Path) -> None:
    below = root / "src" / "data"
    below.mkdir(parents=True)
    before = TarPlan.scan(root)
    for directory in (below, root):
        modified = directory.stat().st_mtime_ns
        (directory / ".DS_Store").write_bytes(b"Bud1")
        os.utime(directory, ns=(modified, modified))
    plan = TarPlan.scan(root)
    assert [entry.name for entry in plan.entries] == [entry.name for entry in before.entries]
    assert (plan.size, plan.fingerprint()) == (before.size, before.fingerprint())


def test_check_tree_ignores_ds_store(root: Path) -> None:
    plan = TarPlan.scan(root)
    (root / ".DS_Store").touch()
    plan.check_tree()
    (root / "DS_Store").touch()
    with pytest.raises(SourceChangedError):
        plan.check_tree()


async def test_bytes_ignore_creation_order(tmp_path: Path, threads: Threads) -> None:
    names = [f"file{number}" for number in range(30)]
    tars: list[bytes] = []
    for order in (names, names[::-1]):
        tree = tmp_path / f"tree{len(tars)}"
        tree.mkdir()
        for name in order:
            (tree / name).write_text(name)
            os.utime(tree / name, (len(tars), 1000))
        os.utime(tree, (0, 1000))
        tars.append(await read(await threads.run(TarPlan.scan, tree), threads))
    assert tars[0] == tars[1]


def test_plan_counts_without_reading(root: Path) -> None:
    (root / "a").write_bytes(bytes(700))
    (root / "b").hardlink_to(root / "a")
    (root / "c").symlink_to("a")
    plan = TarPlan.scan(root)
    assert (plan.members, plan.size) == (4, 10_240)


def test_memory_per_member_bounded(root: Path) -> None:
    for number in range(3000):
        (root / f"a_name_of_usual_length_{number}").touch()
    tracemalloc.start()
    try:
        plan = TarPlan.scan(root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / plan.members < 400


@pytest.mark.posix("file modes")
async def test_file_over_8_gib_has_pax_header(root: Path, threads: Threads) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(9 * GiB)
        file.write(b"begin")
        file.seek(-3, os.SEEK_END)
        file.write(b"end")
    os.utime(root / "huge", (0, 1000))
    plan = await threads.run(TarPlan.scan, root)
    info = tarfile.TarInfo("./huge")
    info.size, info.mtime, info.mode = 9 * GiB, 1000, (root / "huge").stat().st_mode
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    begin = 512 + len(header)
    assert len(header) == 3 * 512
    assert await read(plan, threads, 512, begin + 5) == header + b"begin"
    assert await read(plan, threads, begin + 9 * GiB - 4, begin + 9 * GiB + 512) == b"\0end" + bytes(512)
    assert plan.size == -(-(begin + 9 * GiB + 1024) // 10_240) * 10_240


@pytest.mark.parametrize("io_chunk", [1000, 4096, 10_240, MiB])
async def test_chunks_bounded_by_io_chunk(root: Path, threads: Threads, io_chunk: int) -> None:
    fill(root)
    plan = await threads.run(TarPlan.scan, root)
    chunks = [chunk async for chunk in chunks_of(plan, threads, 0, plan.size, io_chunk=io_chunk)]
    assert max(map(len, chunks)) <= io_chunk
    assert b"".join(chunks) == written_by_tarfile(root)


async def test_small_files_share_chunk(root: Path, threads: Threads) -> None:
    for number in range(200):
        (root / f"{number}").write_bytes(b"small")
    plan = await threads.run(TarPlan.scan, root)
    assert len([chunk async for chunk in chunks_of(plan, threads, 0, plan.size)]) == 1


async def test_large_file_bounded_memory(root: Path, threads: Threads) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(32 * MiB)
    plan = await threads.run(TarPlan.scan, root)
    tracemalloc.start()
    try:
        async for _ in chunks_of(plan, threads, 0, plan.size, io_chunk=256 * KiB):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MiB


def test_read_makes_only_its_headers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (root / f"file{number}").write_bytes(b"x")
    made: list[Entry] = []
    monkeypatch.setattr(reader_module, "header", lambda entry: made.append(entry) or header(entry))

    TarReader(TarPlan.scan(root), 0, 1024, io_chunk=1024).read()

    assert len(made) <= 2


async def test_read_concurrently(root: Path, threads: Threads) -> None:
    fill(root)
    plan = await threads.run(TarPlan.scan, root)
    expected = written_by_tarfile(root)
    bounds = range(0, plan.size, 7777)
    ranges = [(start, min(start + 7777, plan.size)) for start in bounds]
    parts = await asyncio.gather(*(read(plan, threads, *bounds, io_chunk=4096) for bounds in ranges * 2))
    assert b"".join(parts) == expected * 2


def test_plan_md5_needs_no_security(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenSSL in FIPS mode refuses MD5 otherwise."""
    plan, md5 = TarPlan.scan(root), hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda *data, usedforsecurity=True: None if usedforsecurity else md5(*data))
    reader = TarReader(plan, 0, plan.size, io_chunk=MiB, digest=True)
    assert reader.md5 is not None
    assert md5(reader.read()).digest() == reader.md5.digest()


@pytest.mark.posix("sendfile")
@pytest.mark.parametrize("digest", [True, False])
def test_send_leaves_end_to_read(root: Path, digest: bool) -> None:
    content = random_bytes(MiB)
    (root / "large").write_bytes(content)
    reader = TarReader(TarPlan.scan(root), 1024, 1024 + MiB, io_chunk=64 * KiB, digest=digest)
    assert reader.sendable == 0
    received = reader.read(1000)
    assert reader.sendable == MiB - UNSENT - 1000
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        while reader.sendable:
            is_full = reader.send(ours.fileno(), MiB)
            assert is_full is bool(reader.sendable)
            received += theirs.recv(MiB)
        ours.close()
        while more := theirs.recv(MiB):
            received += more
    rest = b"".join(iter(reader.read, b""))

    assert received + rest == content
    assert len(rest) == UNSENT
    if digest:
        assert reader.md5 is not None
        assert reader.md5.digest() == hashlib.md5(content).digest()


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 10_241)])
async def test_read_invalid_range_raises(root: Path, threads: Threads, start: int, stop: int) -> None:
    plan = await threads.run(TarPlan.scan, root)
    with pytest.raises(ValueError, match="no range"):
        await read(plan, threads, start, stop)


async def test_read_empty_range(root: Path, threads: Threads) -> None:
    plan = await threads.run(TarPlan.scan, root)
    assert await read(plan, threads, plan.size, plan.size) == b""


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
async def test_tar_command_restores_tree(root: Path, tmp_path: Path, threads: Threads) -> None:
    fill(root)
    packed, restored = tmp_path / "bento.tar", tmp_path / "restored"
    packed.write_bytes(await read(await threads.run(TarPlan.scan, root), threads))
    restored.mkdir()
    await asyncio.to_thread(subprocess.run, ["tar", "-xpf", packed, "-C", restored], check=True)
    assert written_by_tarfile(restored) == written_by_tarfile(root)


def contents(root: Path) -> dict[str, object]:
    """Return the tree as BentoML restores it: no modes, no directory times, hard links as copies."""
    return {
        path.relative_to(root).as_posix(): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in root.rglob("*")
    }


@pytest.mark.interop
@pytest.mark.skipif(importlib.util.find_spec("bentoml") is None, reason="bentoml is not installed")
async def test_bentoml_restores_contents(root: Path, tmp_path: Path, threads: Threads) -> None:
    fill(root)
    packed, restored = tmp_path / "bento.tar", tmp_path / "restored"
    packed.write_bytes(await read(await threads.run(TarPlan.scan, root), threads))
    extract = (
        "import sys, tarfile; from bentoml._internal.utils.filesystem import safe_extract_tarfile as extract;"
        "extract(tarfile.open(sys.argv[1]), sys.argv[2])"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", extract, packed, restored], check=True)
    assert contents(restored) == contents(root)


@pytest.mark.posix("words of POSIX in errors")
def test_plan_root_missing_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"nothing-here: No such file"):
        TarPlan.scan(tmp_path / "nothing-here")


def test_plan_root_is_file_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot pack .*file: it is not a directory"):
        TarPlan.scan(tmp_path / "file")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [make_fifo, make_socket])
def test_plan_socket_or_fifo_named(root: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # the path of a socket must be short
    make(Path("odd"))
    with pytest.raises(ArchiveError, match=r"bento/odd: it is not a file"):
        TarPlan.scan(root)


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="needs mknod")
def test_plan_device_named(root: Path) -> None:
    try:
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no mknod here")
    with pytest.raises(ArchiveError, match=r"bento/null: it is not a file"):
        TarPlan.scan(root)


@pytest.mark.posix("file modes")
def test_plan_unreadable_file_named(ordinary_user: Path) -> None:
    (ordinary_user / "secret").write_bytes(b"x")
    (ordinary_user / "secret").chmod(0)
    with pytest.raises(ArchiveError, match=r"/secret: permission denied"):
        TarPlan.scan(ordinary_user)


@pytest.mark.posix("file modes")
def test_plan_unreadable_dir_named(ordinary_user: Path) -> None:
    (ordinary_user / "secret").mkdir(mode=0)
    with pytest.raises(ArchiveError, match=r"/secret: Permission denied"):
        TarPlan.scan(ordinary_user)


@pytest.mark.parametrize(
    ("links", "named"),
    [
        pytest.param({"out": "/etc/passwd"}, r"out.*'/etc/passwd'", id="absolute"),
        pytest.param({"out": "../x"}, r"out.*'\.\./x'", id="outside"),
        pytest.param({"a/out": "../../x"}, r"out.*'\.\./\.\./x'", id="outside-from-below"),
        pytest.param({"a/b/up": "../..", "out": "a/b/up/../x"}, r"out.*'a/b/up/\.\./x'", id="not-as-it-reads"),
        pytest.param({"one": "two", "two": "one"}, r"passes more than 40 links", id="circle"),
        pytest.param({"out": "missing/../a"}, r"out.*'missing/\.\./a'", id="climbs-out-of-nothing"),
    ],
)
def test_symlink_escape_named(root: Path, links: dict[str, str], named: str) -> None:
    (root / "a" / "b").mkdir(parents=True)
    for name, target in links.items():
        (root / name).symlink_to(target)
    remedy = r"\. Replace the link by a copy of its target \(`cp -L`\): a pull would refuse the tar\."
    with pytest.raises(ArchiveError, match=f"{named}.*{remedy}") as raised:
        TarPlan.scan(root)
    assert not isinstance(raised.value, UnsafeArchiveError)


def test_plan_symlinks_inside_kept(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "top").symlink_to("../..")
    (root / "again").symlink_to("a/b/top/a/b/../b")
    (root / "dangling").symlink_to("a/nothing")
    assert TarPlan.scan(root).members == 6


@pytest.mark.posix("control characters or colons in names")
@pytest.mark.parametrize("name", ["new\nline", "esc\x1b[31m", "del\x7f", "C:\\x"])
def test_plan_unpullable_name_named(root: Path, name: str) -> None:
    (root / name).touch()
    with pytest.raises(ArchiveError, match=r"cannot pack .*a pull would refuse the tar"):
        TarPlan.scan(root)


@pytest.mark.parametrize(("setting", "limit"), [("members", 4), ("names", names_memory("a") + names_memory("b", "a"))])
def test_tree_above_pull_limit_refused(root: Path, setting: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT_LIMITS.__dict__, setting, limit)
    (root / "a").mkdir()
    (root / "a" / "file").touch()
    (root / "b").symlink_to("a")
    TarPlan.scan(root)
    (root / "c").symlink_to("b")

    with pytest.raises(ArchiveError, match=rf"^cannot pack {root}: it has more than .*\(Limits.{setting}\)"):
        TarPlan.scan(root)


def test_plan_tree_too_deep_named(root: Path) -> None:
    deepest = root / "/".join("d" * 128)
    deepest.mkdir(parents=True)
    assert TarPlan.scan(root).members > 128
    (deepest / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot pack .*more than 128 levels deep.*a pull would refuse the tar"):
        TarPlan.scan(root)


def write_more(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def write_less(path: Path) -> None:
    status = path.stat()
    os.truncate(path, status.st_size // 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_more_unnoticed(path: Path) -> None:
    status = path.stat()
    write_more(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_again(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def replace_with_same_size_and_time(path: Path) -> None:
    """As `cp -p`, `rsync -t` and builds with SOURCE_DATE_EPOCH do."""
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(random_bytes(status.st_size))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def write_with_same_size_and_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(random_bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = [
    (write_more, r"the file had (5000|500000) bytes and now has (5001|500001)"),
    (write_more_unnoticed, r"the file had (5000|500000) bytes and now has (5001|500001)"),
    (write_less, r"the file had (5000|500000) bytes and now has 2500"),
    (write_again, r"the file was written to"),
    (replace_with_same_size_and_time, "the file was replaced, or its attributes were changed"),
    (write_with_same_size_and_time, "the file was replaced, or its attributes were changed"),
    (Path.unlink, "the file was removed or replaced by a link"),
    (replace_by_link, "the file was removed or replaced by a link"),
    (replace_by_fifo, "it is no longer a file"),
    (replace_by_directory, "it is no longer a file"),
]


@pytest.mark.posix("time of the last change of a file")
@pytest.mark.parametrize("size", [5000, 500_000], ids=["small", "large"])
@pytest.mark.parametrize(("change", "why"), CHANGES)
async def test_read_changed_file_named(
    root: Path, threads: Threads, change: Callable[[Path], None], why: str, size: int
) -> None:
    path = root / "model.bin"
    path.write_bytes(random_bytes(size))
    plan = await threads.run(TarPlan.scan, root)
    change(path)
    with pytest.raises(SourceChangedError, match=rf"model.bin changed during the push: {why}") as raised:
        await read(plan, threads)
    assert raised.value.path == str(path)
    assert isinstance(raised.value, TransferError)


def add_file(root: Path) -> None:
    (root / "src" / "more").touch()


def add_file_and_reset_time(root: Path) -> None:
    status = root.stat()
    (root / "more").touch()
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_file(root: Path) -> None:
    (root / "src" / "file").unlink()


def change_mode(root: Path) -> None:
    (root / "src").chmod(0o700)


def replace_dir_by_link(root: Path) -> None:
    (root / "src").rename(root / "models" / "src")
    (root / "src").symlink_to("models/src")


def change_target(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("src/copy")


def replace_link_by_file(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").write_bytes(b"x")


def break_hard_link(root: Path) -> None:
    (root / "src" / "copy").unlink()
    (root / "src" / "copy").write_bytes(b"y")


@pytest.fixture
def tree(root: Path) -> Path:
    """A directory, a symlink and a hard link."""
    (root / "src").mkdir()
    (root / "src" / "copy").write_bytes(b"x")
    (root / "src" / "file").hardlink_to(root / "src" / "copy")
    (root / "link").symlink_to("src/file")
    (root / "models").mkdir()
    return root


@pytest.mark.parametrize(
    ("change", "named", "why"),
    [
        (add_file, "src", "files were added to the directory or removed from it"),
        (add_file_and_reset_time, "", "files were added to the directory or removed from it"),
        (remove_file, "src/file", "the file was removed"),
        (change_mode, "src", "the mode of the directory was changed"),
        (replace_dir_by_link, "src", "it is no longer a directory"),
        (change_target, "link", "the link has another target"),
        (replace_link_by_file, "link", "it is no longer a link"),
        (break_hard_link, "src/file", "it is no longer a hard link to .*copy"),
    ],
)
async def test_read_changed_tree_raises(
    tree: Path, threads: Threads, change: Callable[[Path], None], named: str, why: str
) -> None:
    plan = await threads.run(TarPlan.scan, tree, exclude=["models"])
    await read(plan, threads, 0, plan.size - 1024)  # all members
    await threads.run(change, tree)
    with pytest.raises(SourceChangedError, match=f"changed during the push: {why}") as raised:
        await read(plan, threads, plan.size - 1024)
    assert raised.value.path == str(tree / named)


def test_check_tree_of_linked_root(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tree)
    TarPlan.scan(tmp_path / "linked").check_tree()


async def test_read_after_harmless_changes(tree: Path, threads: Threads) -> None:
    plan = await threads.run(TarPlan.scan, tree, exclude=["models"])

    def change() -> None:
        (tree / "src" / ".service.py.swp").touch()
        (tree / "src" / ".service.py.swp").unlink()
        (tree / "models" / "not in the tar").touch()
        os.utime(tree / "models")
        os.utime(tree)
        (tree / "models" / "backup").hardlink_to(tree / "src" / "copy")

    await threads.run(change)

    assert len(await read(plan, threads)) == plan.size


@pytest.mark.parametrize("size", [0, 5000, 500_000])
async def test_read_with_fstat_unlike_lstat(
    root: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """GlusterFS may answer from another brick; sshfs requests the status by handle instead of by path."""
    (root / "model.bin").write_bytes(random_bytes(size))
    fstat = os.fstat

    def other_times(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        later = {name: getattr(status, name) + 1 for name in ("st_mtime_ns", "st_ctime_ns")}
        return os.stat_result((*status[:1], status.st_ino + 1, *status[2:]), later)

    monkeypatch.setattr(os, "fstat", other_times)
    plan = await threads.run(TarPlan.scan, root)
    changed: SourceChangedError | None = None

    try:
        await read(plan, threads)
    except SourceChangedError as error:
        changed = error

    assert changed is None


@pytest.mark.parametrize("change", [write_more, replace_by_fifo])
async def test_read_grown_empty_file_raises(root: Path, threads: Threads, change: Callable[[Path], None]) -> None:
    (root / "log").touch()
    os.utime(root / "log", (0, 1000))
    plan = await threads.run(TarPlan.scan, root)
    change(root / "log")
    os.utime(root / "log", (0, 1000))
    with pytest.raises(SourceChangedError):
        await read(plan, threads)


@pytest.mark.posix("time of the last change of a file")
@pytest.mark.parametrize("change", [write_more, write_less, write_again])
async def test_file_changed_during_read_raises(root: Path, threads: Threads, change: Callable[[Path], None]) -> None:
    path = root / "model.bin"
    path.write_bytes(random_bytes(10_000))
    plan = await threads.run(TarPlan.scan, root)

    async def read_on() -> None:
        changed = False
        async for _ in chunks_of(plan, threads, 1024, 1024 + 10_000, io_chunk=1000):
            if not changed:
                change(path)
                changed = True

    with pytest.raises(SourceChangedError):
        await read_on()


async def test_small_file_changed_during_read(root: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "config.yaml"
    path.write_bytes(b"a: 1")
    plan = await threads.run(TarPlan.scan, root)
    read_bytes = os.pread

    def read_and_change(descriptor: int, count: int, offset: int) -> bytes:
        data = read_bytes(descriptor, count, offset)
        write_again(path)
        return data

    monkeypatch.setattr(os, "pread", read_and_change)
    with pytest.raises(SourceChangedError):
        await read(plan, threads)


@pytest.mark.parametrize(("size", "calls"), [(1, 3), (2, 2), (3, 1)])
async def test_read_continues_short_reads(
    root: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, size: int, calls: int
) -> None:
    """A network filesystem may return less than is asked for."""
    (root / "config.yaml").write_bytes(b"a: 1")
    plan = await threads.run(TarPlan.scan, root)
    pread, offsets = os.pread, list[int]()

    def read_less(descriptor: int, count: int, offset: int) -> bytes:
        offsets.append(offset)
        return pread(descriptor, min(count, size), offset)

    monkeypatch.setattr(os, "pread", read_less)
    assert await read(plan, threads, 1024, 1027) == b"a: "
    assert len(offsets) == calls


@pytest.mark.posix("time of the last change of a file")
async def test_range_of_changed_file_raises(root: Path, threads: Threads) -> None:
    path = root / "model.bin"
    path.write_bytes(random_bytes(10_000))
    chunks = chunks_of(await threads.run(TarPlan.scan, root), threads, 1024, 4024, io_chunk=1000)
    for _ in range(2):
        await anext(chunks)
    write_again(path)
    with pytest.raises(SourceChangedError):
        await anext(chunks)


@pytest.mark.posix("file modes")
@pytest.mark.parametrize("io_chunk", [1000, MiB], ids=["large", "small"])
async def test_read_unreadable_file_named(ordinary_user: Path, threads: Threads, io_chunk: int) -> None:
    (ordinary_user / "model.bin").write_bytes(bytes(5000))
    plan = await threads.run(TarPlan.scan, ordinary_user)
    (ordinary_user / "model.bin").chmod(0)
    with pytest.raises(ArchiveError, match=r"cannot read .*model.bin: Permission denied") as raised:
        await read(plan, threads, io_chunk=io_chunk)
    assert not isinstance(raised.value, SourceChangedError)


def open_files(root: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += descriptor.readlink().is_relative_to(root)
    return count


def test_plan_read_after_close(root: Path) -> None:
    """A thread may start only after the end of the request."""
    (root / "model.bin").write_bytes(bytes(10_000))
    plan = TarPlan.scan(root)
    reader = TarReader(plan, 0, plan.size, io_chunk=1000)
    reader.read()
    reader.close()

    with pytest.raises(ClosedError, match="its request has ended"):
        reader.read()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_read_abandoned_closes_file(root: Path, threads: Threads) -> None:
    (root / "model.bin").write_bytes(bytes(10_000))
    plan = await threads.run(TarPlan.scan, root)
    chunks = chunks_of(plan, threads, 1024, plan.size, io_chunk=1000)
    await anext(chunks)
    assert open_files(root) == 1
    await chunks.aclose()
    assert open_files(root) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_read_cancelled_closes_file(root: Path, threads: Threads) -> None:
    (root / "model.bin").write_bytes(bytes(100_000))
    plan = await threads.run(TarPlan.scan, root)
    cancelled = 0
    for turns in range(60):
        task = asyncio.create_task(read(plan, threads, io_chunk=4096))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        cancelled += task.cancelled()
        assert open_files(root) == 0
    assert cancelled > 10


@pytest.mark.parametrize("work", [TarPlan.scan, lambda root: digest_files(root, ["model.bin"])], ids=["scan", "digest"])
async def test_cancelled_work_stops(root: Path, threads: Threads, work: Callable[[Path], object]) -> None:
    (root / "model.bin").write_bytes(b"x")
    started, is_cancelled, results = threading.Event(), threading.Event(), list[object]()

    def start_late() -> None:
        started.set()
        assert is_cancelled.wait(30)
        results.append(work(root))

    call = asyncio.ensure_future(threads.run(start_late))
    await asyncio.to_thread(started.wait, 30)
    call.cancel()
    await asyncio.sleep(0)
    is_cancelled.set()
    await asyncio.wait([call])

    assert call.cancelled()
    assert results == []


class SlowDisk:
    """A slow `os.pread` that records the highest number of concurrent reads."""

    def __init__(self) -> None:
        self.running = self.peak = 0
        self._pread = os.pread

    def __call__(self, *args: Any) -> bytes:
        self.running += 1
        self.peak = max(self.peak, self.running)
        time.sleep(0.003)
        try:
            return self._pread(*args)
        finally:
            self.running -= 1


async def test_read_cancelled_waits_for_thread(root: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "model.bin").write_bytes(bytes(30_000))
    plan = await asyncio.to_thread(TarPlan.scan, root)
    disk = SlowDisk()
    monkeypatch.setattr(os, "pread", disk)
    for wait in range(25):
        task = asyncio.create_task(read(plan, threads, io_chunk=4096))
        await asyncio.sleep(wait / 1000)
        task.cancel()
        await asyncio.wait([task])
        assert disk.running == 0
    assert disk.peak == 1


def touch_name(root: Path) -> None:
    (root / "file").rename(root / "elif")


def touch_content(root: Path) -> None:
    write_more(root / "file")
    os.utime(root / "file", (0, 1000))


def touch_time(root: Path) -> None:
    os.utime(root / "file", ns=(0, 1_000_000_000_001))


def touch_mode(root: Path) -> None:
    (root / "file").chmod(0o755)


def touch_target(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    os.utime(root / "link", (0, 1000), follow_symlinks=False)


def touch_content_only(root: Path) -> None:
    (root / "file").write_bytes(b"y")
    os.utime(root / "file", (0, 1000))


def touch_inode(root: Path) -> None:
    (root / "new").write_bytes(b"x")
    (root / "new").chmod(0o644)
    os.utime(root / "new", (0, 1000))
    (root / "new").replace(root / "file")


def touch_nothing(root: Path) -> None:
    (root / "file").read_bytes()
    (root / "link").readlink()


@pytest.mark.parametrize(
    ("touch", "differs"),
    [
        (touch_name, True),
        (touch_content, True),
        (touch_time, True),
        (touch_mode, True),
        (touch_target, True),
        (touch_content_only, True),
        (touch_inode, True),
        (touch_nothing, False),
    ],
)
def test_fingerprint_changes_with_tree(root: Path, touch: Callable[[Path], None], differs: bool) -> None:
    (root / "file").write_bytes(b"x")
    (root / "file").chmod(0o644)
    (root / "link").symlink_to("file")
    for name in ("file", "link", "."):
        os.utime(root / name, (0, 1000), follow_symlinks=False)
    before = TarPlan.scan(root).fingerprint()
    touch(root)
    os.utime(root, (0, 1000))
    assert len(before) == 64
    assert (TarPlan.scan(root).fingerprint() != before) is differs
