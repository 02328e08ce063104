"""Remote files with network faults, with items that change, and from servers without ranges."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoError, ClosedError, TransferError
from async_bento.transfer import adaptive
from tests.api.test_remote_files import serve
from tests.builders import KiB, MiB, contents, make_bento, random_bytes
from tests.calls import calls_of
from tests.fault_proxy import (
    DOWNLOAD,
    GET,
    Hold,
    disconnect_while_sending,
    end_early,
    ignore_range,
    refuse,
    stop_sending,
)
from tests.transfer.quiet import nothing_left
from tests.transfer.test_fallback import presign_at

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import ProgressEvent
    from async_bento.api.files import AsyncRemoteFile
    from tests.fault_proxy import FaultProxy
    from tests.fixtures import MakeClient, StartProxy

WEIGHTS = random_bytes(MiB + 17, 5)
FILES = {"README.md": b"# Svc\n", "src/service.py": b"pass\n", "src/weights": WEIGHTS, "z/last": b"end"}
RESTARTING = "restarting: a hard link leads to a file that was left out"
TREE: dict[str, Any] = {"src": None, "src/service.py": b"pass\n", "src/weights": WEIGHTS}
"""The files that `src/*` selects."""


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushes."""
    return tmp_path / "origin"


@pytest.fixture
async def ranged(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> FaultProxy:
    """A registry with `svc:v1` that presigns URLs."""
    proxy = await start_proxy()
    make_bento(origin, files=FILES)
    await make_client(proxy, origin).push("svc:v1")
    return proxy


@pytest.fixture
async def streaming(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> FaultProxy:
    """The same bento behind a proxy that streams like Yatai and presigns no URL."""
    proxy = await start_proxy("proxy")
    proxy.hides_checksums = True
    proxy.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    make_bento(origin, files=FILES)
    await make_client(proxy, origin).push("svc:v1")
    return proxy


async def test_remote_reads_survive_faults(
    ranged: FaultProxy, streaming: FaultProxy, make_client: MakeClient, tmp_path: Path, forever: asyncio.Event
) -> None:
    faults = {
        "cut": disconnect_while_sending(30_000),
        "short": end_early(30_000),
        "busy": refuse(503),
        "broken": refuse(500),
        "stalled": stop_sending(30_000, forever),
        "expired": refuse(403),
    }
    for proxy, pattern in ((ranged, GET), (streaming, DOWNLOAD)):
        for name, fault in faults.items():
            if name in {"expired", "short"} and proxy is streaming:
                continue  # no URL, and no length to detect a truncated response
            place = tmp_path / f"{name}-{proxy is ranged}"
            # On a loaded machine, any byte may be delayed.
            stall = 1 if name == "stalled" else 20
            api = make_client(proxy, timeouts={"stall": stall}, retry={"attempts": 8})
            proxy._rules[:] = proxy._rules[: int(proxy is streaming)]
            proxy.add_fault(pattern, fault, skip=2, times=2)  # the first requests read headers and detect ranges
            async with nothing_left(api):
                one, other = api.files("svc:v1"), api.files("svc:v1")
                _, read = await asyncio.gather(one.extract("src/*", place / "out"), other.read("src/weights"))
            assert read == WEIGHTS, name
            assert contents(place) == {"out": None} | {f"out/{path}": value for path, value in TREE.items()}, name
            assert proxy._rules[-1].met >= 4, name


@pytest.mark.parametrize(("status", "is_busy"), [(503, True), (429, True), (500, False)])
async def test_remote_read_is_throttled(
    ranged: FaultProxy, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, status: int, is_busy: bool
) -> None:
    ranged.add_fault(GET, refuse(status), skip=2)
    throttled = calls_of(monkeypatch, adaptive.AdaptiveRanges, "throttle")

    assert await make_client(ranged).files("svc:v1").read("src/weights") == WEIGHTS

    assert len(throttled) == is_busy


async def test_failed_extract_leaves_nothing(
    ranged: FaultProxy, streaming: FaultProxy, make_client: MakeClient, tmp_path: Path, forever: asyncio.Event
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for proxy, pattern in ((ranged, GET), (streaming, DOWNLOAD)):
        for fault in (disconnect_while_sending(30_000), refuse(503), stop_sending(30_000, forever)):
            api = make_client(proxy, timeouts={"stall": 0.2}, retry={"attempts": 2})
            proxy._rules[:] = proxy._rules[: int(proxy is streaming)]
            proxy.add_fault(pattern, fault, times=None, skip=int(proxy is ranged))
            async with nothing_left(api):
                with pytest.raises(BentoError):
                    await api.files("svc:v1").extract("src/*", place / "new" / "out")
            assert [*place.iterdir()] == []


async def test_extract_replaced_item_is_new(
    ranged: FaultProxy, streaming: FaultProxy, make_client: MakeClient, tmp_path: Path
) -> None:
    for number, proxy in enumerate((ranged, streaming)):
        files, origin = make_client(proxy).files("svc:v1"), tmp_path / f"origin{number}"
        await files.list()
        new = random_bytes(2 * MiB, number)
        make_bento(origin, files=FILES | {"src/weights": new, "src/new.py": b"new"})
        await make_client(proxy, origin).push("svc:v1", force=True)

        entries = await files.extract("src/*", tmp_path / f"out{number}")

        assert {entry.path for entry in entries} == {"src/service.py", "src/weights", "src/new.py"}
        assert contents(tmp_path / f"out{number}") == TREE | {"src/weights": new, "src/new.py": b"new"}
        make_bento(origin, files={"src/newer.py": b"newer"})
        await make_client(proxy, origin).push("svc:v1", force=True)
        assert await files.read("src/newer.py") == b"newer"
        assert "src/newer.py" in [entry.path for entry in await files.list()]


async def test_extract_never_mixes_versions(
    ranged: FaultProxy, make_client: MakeClient, origin: Path, tmp_path: Path
) -> None:
    held = Hold()
    ranged.add_fault(GET, held, skip=4)
    extracting = asyncio.create_task(make_client(ranged).files("svc:v1").extract("src/*", tmp_path / "out"))
    await held.arrived.wait()
    make_bento(origin, files={"src/weights": WEIGHTS[::-1], "src/service.py": b"new\n"})
    await make_client(ranged, origin).push("svc:v1", force=True)
    held.released.set()
    await extracting

    new = TREE | {"src/weights": WEIGHTS[::-1], "src/service.py": b"new\n"}
    assert contents(tmp_path / "out") in (TREE, new)


async def test_reads_survive_lost_ranges(ranged: FaultProxy, make_client: MakeClient, tmp_path: Path) -> None:
    """A cache on the way may drop the header."""
    for times in (1, None):
        api = make_client(ranged)
        ranged._rules.clear()
        ranged.add_fault(GET, ignore_range, skip=1, times=times)
        async with nothing_left(api):
            await api.files("svc:v1").extract("src/*", tmp_path / f"out{times}")
        assert contents(tmp_path / f"out{times}") == TREE

    api = make_client(ranged)
    ranged._rules.clear()
    async with api.files("svc:v1").open("src/weights") as file:
        ranged.add_fault(GET, ignore_range, times=None)
        file.seek(500_000)
        with pytest.raises(TransferError, match=r"the server no longer supports range requests\. Open the file again"):
            await file.read(10)


async def test_unreachable_storage_streams(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path
) -> None:
    """A Yatai in a cluster: no ranges, and a storage that only the cluster can resolve."""
    proxy = await start_proxy("proxy")
    make_bento(origin, files=FILES)
    await make_client(proxy, origin).push("svc:v1")
    proxy.add_fault("presign", presign_at("http://127.0.0.1:9"), times=None)
    files = make_client(proxy).files("svc:v1")
    for path, content in FILES.items():
        assert await files.read(path) == content
    await files.extract("src/*", tmp_path / "out")
    assert contents(tmp_path / "out") == TREE
    answer = proxy.matching(DOWNLOAD)[-1]
    assert (answer.status, answer.headers.get("Range")) == (200, "bytes=0-65535")


# Streams


def linked_tar() -> bytes:
    """Hard links, a repeated directory, and a directory after its file."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, type_: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "") -> None:
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.size, info.linkname, info.mtime = type_, len(content), target, 1_700_000_000
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(content))

        add("", tarfile.DIRTYPE)
        add("a", tarfile.DIRTYPE)
        add("a/run.sh", content=b"run" * 200)
        add("a/large", content=WEIGHTS)
        add("a", tarfile.DIRTYPE)
        add("b/" + "n" * 120, content=b"long")
        add("b", tarfile.DIRTYPE)
        add("c/hard", tarfile.LNKTYPE, target="./a/large")
        add("c/harder", tarfile.LNKTYPE, target="./c/hard")
        add("c/soft", tarfile.SYMTYPE, target="../a/run.sh")
        add("d", tarfile.DIRTYPE)
    return output.getvalue()


@pytest.mark.posix("links without a privilege")
async def test_stream_extract_needs_one_download(
    ranged: FaultProxy, streaming: FaultProxy, make_client: MakeClient, tmp_path: Path
) -> None:
    long = "b/" + "n" * 120
    cases: dict[tuple[str, ...], tuple[dict[str, Any], int]] = {
        ("a/",): ({"a": None, "a/run.sh": b"run" * 200, "a/large": WEIGHTS}, 1),
        ("b/*", "d"): ({"b": None, long: b"long", "d": None}, 1),
        ("a/l*", "c/h*"): ({"a": None, "a/large": WEIGHTS, "c": None, "c/hard": WEIGHTS, "c/harder": WEIGHTS}, 1),
        ("c/s*", "a/r*"): ({"c": None, "c/soft": "../a/run.sh", "a": None, "a/run.sh": b"run" * 200}, 1),
        ("c/hard", "c/harder"): ({"c": None, "c/hard": WEIGHTS, "c/harder": WEIGHTS}, 2),
        ("a/r*", "c/hard"): ({"a": None, "a/run.sh": b"run" * 200, "c": None, "c/hard": WEIGHTS}, 2),
        ("d",): ({"d": None}, 1),
    }
    tar = linked_tar()
    ranged.add_fault(GET, serve(tar), times=None)
    ranged.hides_checksums = True
    for body in (tar, gzip.compress(tar)):
        streaming._rules[1:] = []
        streaming.add_fault(DOWNLOAD, serve(body, etag="", ranges=False), times=None)
        for number, (patterns, (expected, downloads)) in enumerate(cases.items()):
            place = tmp_path / f"{len(body)}-{number}"
            streaming.requests.clear()
            events: list[ProgressEvent] = []
            entries = await make_client(streaming, progress=events.append).files("svc:v1").extract(patterns, place)
            assert (RESTARTING in [event.message for event in events]) == (downloads == 2), patterns
            assert [event.phase for event in events][-2:] == ["finishing", "done"], patterns
            assert contents(place) == expected, patterns
            assert len(streaming.matching(DOWNLOAD)) == downloads + 1, patterns  # and one to detect ranges
            other = place.with_name(f"{place.name}-ranges")
            events.clear()
            by_ranges = make_client(ranged, progress=events.append).files("svc:v1")
            assert await by_ranges.extract(patterns, other) == entries
            assert RESTARTING not in [event.message for event in events]
            assert contents(other) == expected, patterns
            for path in expected.keys() - {"c"}:  # the tar has no such directory
                one, same = place / path, other / path
                assert one.lstat().st_mode == same.lstat().st_mode
                assert one.lstat().st_mtime_ns == same.lstat().st_mtime_ns, path


# Open files


async def test_open_files_stall_no_others(
    ranged: FaultProxy, make_client: MakeClient, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "MIN_RANGE", 64 * KiB)
    large = random_bytes(3 * MiB, 6)
    make_bento(origin, "svc:v2", files={"large": large})
    await make_client(ranged, origin).push("svc:v2")
    api = make_client(ranged, transfer={"range_size": MiB, "window": MiB})
    async with api.files("svc:v2").open("large") as one, api.files("svc:v2").open("large") as other:
        read = [b"", b""]
        both = [one.iter_chunks(), other.iter_chunks()]
        while read != [large, large]:
            monkeypatch.setattr(adaptive, "RANGE_SECONDS", 0)  # many small ranges
            for number, chunks in enumerate(both):
                read[number] += await anext(chunks, b"")
            if len(read[0]) == len(read[1]) < MiB:
                monkeypatch.setattr(adaptive, "RANGE_SECONDS", 1000)  # ranges as large as the window
                assert await asyncio.wait_for(api.files("svc:v2").read("large"), 20) == large


async def test_iteration_may_stop_early(ranged: FaultProxy, make_client: MakeClient) -> None:
    api = make_client(ranged)
    files = api.files("svc:v1")
    async with nothing_left(api), files.open("src/weights") as file:
        async for chunk in file.iter_chunks():
            assert chunk
            break
        for _ in range(20):
            await asyncio.sleep(0)
    async with files.open("src/weights") as file:
        chunks = file.iter_chunks()
        assert await anext(chunks)
        await asyncio.wait_for(api.aclose(), 60)
        with pytest.raises(ClosedError):
            await anext(chunks)


async def test_iteration_cancels_no_caller(ranged: FaultProxy, make_client: MakeClient) -> None:
    api = make_client(ranged)
    turns: list[asyncio.Task[None]] = []

    async def iterate(file: AsyncRemoteFile) -> None:
        async for _ in file.iter_chunks():
            turns.append(asyncio.create_task(api.aclose()))
            await asyncio.sleep(0.05)  # work of the caller

    async with api.files("svc:v1").open("src/weights") as file:
        with pytest.raises(ClosedError):
            await iterate(file)
    assert len(turns) == 1
    await turns[0]
