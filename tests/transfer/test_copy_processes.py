"""Copies in separate processes: killed, interrupted and resumed; and their memory."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.builders import MiB, contents, left_in_scratch, make_model, random_bytes
from tests.fault_proxy import DOWNLOAD, FINISH, GET, PART, PUT, FaultProxy, Hold, answer_json, refuse
from tests.fixtures import FEW_RANGES
from tests.transfer.processes import ALLOWANCE, VirtualTar, of_target, swallow

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy
    from tests.transfer.processes import Run

pytestmark = pytest.mark.processes


@pytest.fixture
async def source(start_proxy: StartProxy, make_client: MakeClient, origin: Path) -> FaultProxy:
    """A registry with `mod:m1`, of three parts."""
    make_model(origin, files={"weights": random_bytes(12 * MiB + 17)})
    proxy = await start_proxy(name="source")
    await make_client(proxy, origin).models.push("mod:m1")
    proxy.requests.clear()
    return proxy


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushed."""
    return tmp_path / "origin"


@pytest.fixture
async def there(start_proxy: StartProxy) -> FaultProxy:
    """The target registry."""
    return await start_proxy(name="target")


COPY = """
async def main():
    async with api() as here, target() as there:
        result = await here.models.copy("mod:m1", there, threads=1)
        report(resumed=result.resumed, parts=result.parts)

asyncio.run(main())
"""


@pytest.mark.parametrize("streams", [False, True], ids=["ranges", "whole"])
async def test_copy_resumed_after_kill(
    run: Run,
    source: FaultProxy,
    start_proxy: StartProxy,
    there: FaultProxy,
    make_client: MakeClient,
    home: Path,
    origin: Path,
    elsewhere: Path,
    streams: bool,
) -> None:
    if streams:
        source = await start_proxy("proxy", name="stream")
        await make_client(source, origin).models.push("mod:m1")
        source.hides_checksums = True
        source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    held = Hold()
    there.add_fault(f"{PART}3", held)

    client = await run(COPY, source, home, **of_target(there))
    await held.arrived.wait()  # by the only thread, so the earlier parts are in the journal
    client.process.kill()
    await client.ended()
    held.released.set()
    status = (await make_client(there).models.get("mod:m1")).upload_status
    assert there.steps("PUT part") == ["PUT part 1", "PUT part 2", "PUT part 3"]
    there.requests.clear()
    code, words, error = await (await run(COPY, source, home, **of_target(there))).ended()

    assert status == "uploading"
    assert code == 0, error
    assert words == [{"resumed": True, "parts": 1}]
    assert there.steps("PUT part") == ["PUT part 3"]
    assert (await make_client(there).models.get("mod:m1")).upload_status == "success"
    await make_client(there, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")
    assert contents(elsewhere / "models/mod/m1") == contents(origin / "models/mod/m1")
    assert not left_in_scratch(home)


COMMAND = """
from async_bento.cli import main
main(["models", "copy", "mod:m1", "--from", "here", "--to", "there", "--threads", "1"])
"""


@pytest.mark.posix("signals between processes")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_copy_command_interrupted_resumes(
    run: Run,
    source: FaultProxy,
    there: FaultProxy,
    make_client: MakeClient,
    home: Path,
    origin: Path,
    elsewhere: Path,
    number: signal.Signals,
    expected: int,
) -> None:
    contexts = [
        {"name": name, "endpoint": proxy.endpoint, "api_token": proxy.registry.api_token}
        for name, proxy in (("here", source), ("there", there))
    ]
    home.mkdir()
    (home / ".yatai.yaml").write_text(json.dumps({"contexts": contexts, "current_context_name": "here"}))
    part_size = {"ASYNC_BENTO_TRANSFER_PART_SIZE": str(5 * MiB)}
    held = Hold()
    there.add_fault(f"{PART}3", held)

    client = await run(COMMAND, source, home, **part_size)
    await held.arrived.wait()
    client.process.send_signal(number)
    code, words, error = await client.ended()
    held.released.set()

    assert (code, words) == (expected, []), error
    assert "Run the same command again to resume." in error
    assert [request.json["status"] for request in there.matching(FINISH)] == ["failed"]
    assert (await make_client(there).models.get("mod:m1")).upload_status == "failed"
    there.requests.clear()
    code, _, error = await (await run("sys.stdout = sys.stderr" + COMMAND, source, home, **part_size)).ended()

    assert code == 0, error
    assert there.steps("PUT part") == ["PUT part 3"]
    await make_client(there, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")
    assert contents(elsewhere / "models/mod/m1") == contents(origin / "models/mod/m1")


COPY_LARGE = """
measures = json.loads(os.environ["MEASURES"])

async def main():
    async with api(**measures) as here, target(**measures) as there:
        for _ in range(3):
            result = await here.models.copy("mod:m1", there, force=True, threads=4)
            report(peak=most_memory(), sent=result.bytes_sent, parts=result.parts)

asyncio.run(main())
"""

THREADS, WINDOW, RANGE = 4, 16 * MiB, 8 * MiB
IN_ORDER = WINDOW + RANGE  # the ranges read ahead, and the range being sent

# The downloads of the source, the strategy of the target, the part size, and the memory of a copy in bytes.
LARGE = {
    "parts of the source": ("ranges", "presigned_url", 8 * MiB, THREADS * 8 * MiB),
    "parts of another size": ("ranges", "presigned_url", 5 * MiB, THREADS * 5 * MiB),
    "one PUT": ("ranges", "auto", 8 * MiB, IN_ORDER),
    "through the registry": ("ranges", "proxy", 8 * MiB, IN_ORDER),
    "parts of a stream": ("stream", "presigned_url", 8 * MiB, 8 * MiB),
    "a stream in one PUT": ("stream", "auto", 8 * MiB, MiB),
}
LONG = {*LARGE} - {"parts of the source", "parts of a stream"}


@pytest.mark.posix("/proc")
@pytest.mark.parametrize(
    "large", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in LARGE]
)
async def test_copy_memory_is_constant(
    run: Run, start_proxy: StartProxy, make_client: MakeClient, home: Path, origin: Path, large: str
) -> None:
    kind, transmission, part_size, formula = LARGE[large]
    make_model(origin)
    source = await start_proxy("presigned_url" if kind == "ranges" else "proxy", name="source")
    there = await start_proxy(transmission, name="target")
    await make_client(source, origin).models.push("mod:m1")
    source.hides_checksums = kind == "stream"
    tars = [VirtualTar(size * MiB) for size in (1, 64, 192)]
    for tar in tars:
        record = {"version": "m1", "presigned_download_url": f"{source.endpoint}/blobs/m1"}
        checksums = await asyncio.to_thread(tar.checksums)
        answer = answer_json(200, record | {"checksums": checksums}) if kind == "ranges" else refuse(400)
        source.add_fault("presign_download", answer)
    copies = [0]

    async def send(exchange: Exchange) -> web.StreamResponse:
        if exchange.request.headers["Range"] == "bytes=0-0":  # the first request of a copy
            copies[0] += 1
        tar = tars[copies[0] - 1]
        return await (tar(exchange) if kind == "ranges" else tar.stream(exchange))

    source.add_fault(f"{GET}|{DOWNLOAD}", send, times=None)
    there.add_fault(f"{PUT}|PUT .*/upload", swallow(), times=None)
    there.add_fault("complete_multipart", answer_json(200, {"version": "whatever"}), times=None)
    there.add_fault(FINISH, answer_json(200, {"version": "whatever"}), times=None)

    measures = {"MEASURES": json.dumps({"part_size": part_size, "window": WINDOW, "range_size": RANGE})}
    code, words, error = await (await run(COPY_LARGE, source, home, **of_target(there), **measures)).ended()

    assert code == 0, error
    small, medium, large_copy = words
    assert [word["sent"] for word in words] == [tar.size for tar in tars]
    assert large_copy["parts"] == (-(-tars[-1].size // part_size) if transmission == "presigned_url" else 1)
    assert medium["peak"] - small["peak"] <= formula + ALLOWANCE
    assert large_copy["peak"] - medium["peak"] <= ALLOWANCE
