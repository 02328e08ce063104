"""Behaviour that needs a separate process: memory, writes, and the end after signals."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.builders import KiB, MiB, contents, left_in_scratch, make_model, random_bytes
from tests.fault_proxy import FINISH, GET, PART, FaultProxy, Hold, answer_json, disconnect_while_sending
from tests.transfer.processes import ALLOWANCE, VirtualTar, swallow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy
    from tests.transfer.processes import Run

pytestmark = pytest.mark.processes

PUSH = """
import itertools

def files():
    there = {}
    for place in (HOME, Path(os.environ["TMPDIR"])):
        for path in place.rglob("*"):
            if path.is_file():
                there[str(path)] = path.stat().st_size
    return there

def deleted():
    found = []
    for link in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{link}")
        except FileNotFoundError:
            continue
        if target.startswith("/") and target.endswith("(deleted)"):
            found.append(target)
    return found

before = files()
added = {}
looks = itertools.count()

def look(event):
    if next(looks) % 2 == 0:
        added.update({name: size for name, size in files().items() if before.get(name) != size})
        added.update(dict.fromkeys(deleted(), 0))

async def main():
    async with api(look, part_size=16 * 2**20) as client:
        await client.models.push("mod:small", threads=4)
        report(peak=most_memory(), added=added)
        for name in ("mod:medium", "mod:large"):
            result = await client.models.push(name, threads=4)
            report(peak=most_memory(), added=added, sent=result.bytes_sent, looks=next(looks) // 2)

asyncio.run(main())
"""


@pytest.mark.posix("/proc")
async def test_push_memory_and_disk_constant(run: Run, start_proxy: StartProxy, home: Path, tmp_path: Path) -> None:
    for name, size in (("small", 1), ("medium", 64), ("large", 192)):
        weights = make_model(home, f"mod:{name}") / "weights"
        with weights.open("wb") as file:
            file.truncate(size * MiB)
    proxy = await start_proxy()
    proxy.add_fault(PART, swallow(), times=None)
    proxy.add_fault("complete_multipart", answer_json(200, {"version": "whatever"}), times=None)
    (tmp_path / "tmp").mkdir()

    client = await run(PUSH, proxy, home, TMPDIR=str(tmp_path / "tmp"), HOME=str(tmp_path))
    code, reports, error = await client.ended()

    assert code == 0, error
    small, medium, large = reports
    assert large["sent"] > 192 * MiB
    assert large["looks"] > 20
    assert sum(large["added"].values()) < 20 * KiB  # the journal: a line for each part
    assert not left_in_scratch(home)
    formula = 4 * 2 * MiB  # threads × 2 × io_chunk
    assert medium["peak"] - small["peak"] <= formula + ALLOWANCE
    assert large["peak"] - medium["peak"] <= ALLOWANCE


PULL = """
def written():
    return int(dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())["wchar"])

async def main():
    async with api() as client:
        for tag in ("mod:small", "mod:medium", "mod:large"):
            at = written()
            await client.models.pull("mod:m1", force=True)
            report(peak=most_memory(), written=written() - at)

asyncio.run(main())
"""


@pytest.mark.posix("/proc")
@pytest.mark.parametrize("is_verified", [True, False])
async def test_pull_memory_and_writes_bounded(
    run: Run, start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, is_verified: bool
) -> None:
    make_model(home)
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    tars = [VirtualTar(size * MiB) for size in (1, 48, 144)]
    asked = [0]

    async def next_tar(exchange: object) -> object:
        if exchange.request.headers["Range"].startswith("bytes=0-"):  # type: ignore[attr-defined]
            asked[0] += 1
        return await tars[asked[0] - 1](exchange)  # type: ignore[arg-type]

    proxy.add_fault(GET, next_tar, times=None)  # type: ignore[arg-type]
    for tar in tars:
        record = {"version": "m1", "presigned_download_url": f"{proxy.endpoint}/blobs/m1"}
        checksums = await asyncio.to_thread(tar.checksums) if is_verified else None
        proxy.add_fault("presign_download", answer_json(200, record | {"checksums": checksums}))

    puller = await run(PULL, proxy, elsewhere)
    code, reports, error = await puller.ended()

    assert code == 0, error
    small, medium, large = reports
    for tar, figures in zip(tars, reports, strict=True):
        assert tar.size - 8192 <= figures["written"] <= tar.size + 64 * 1024
    formula = (4 + 1) * MiB  # window + io_chunk
    assert medium["peak"] - small["peak"] <= formula + ALLOWANCE
    assert large["peak"] - medium["peak"] <= ALLOWANCE
    assert (elsewhere / "models/mod/m1/weights").stat().st_size == 144 * MiB
    assert not left_in_scratch(elsewhere)


PULL_ONE = """
async def main():
    async with api() as client:
        model = await client.models.pull("mod:m1")
        report(path=str(model.path))

asyncio.run(main())
"""


@pytest.fixture
async def proxy(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> FaultProxy:
    """A proxy of a registry with `mod:m1`, of several ranges."""
    make_model(home, files={"weights": random_bytes(4 * MiB + 3)})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    proxy.requests.clear()
    return proxy


async def test_two_pulls_share_one_download(run: Run, proxy: FaultProxy, home: Path, elsewhere: Path) -> None:
    held = Hold()
    proxy.add_fault(GET, held)

    clients = [await run(PULL_ONE, proxy, elsewhere) for _ in range(2)]
    await held.arrived.wait()
    await proxy.wait_for("GET mod/m1", 2)  # both processes have requested the record
    held.released.set()
    ends = [await client.ended() for client in clients]

    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1] == ends[1][1]
    asked = proxy.steps("GET bytes")
    assert len(asked) == len(set(asked)) > 1
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


async def test_failed_download_exits(run: Run, proxy: FaultProxy, elsewhere: Path) -> None:
    proxy.add_fault(GET, disconnect_while_sending(100_000), skip=1, times=None)

    code, reports, error = await (await run(PULL_ONE, proxy, elsewhere)).ended()

    assert (code, reports) == (1, [])
    assert "PartError" in error
    assert not left_in_scratch(elsewhere, kept=False)
    assert not [*(elsewhere / "models").rglob("*")]


@pytest.mark.parametrize("direction", ["pull", "push"])
async def test_interrupt_leaves_no_files(
    run: Run, proxy: FaultProxy, home: Path, elsewhere: Path, direction: str
) -> None:
    held = Hold()
    if direction == "pull":
        proxy.add_fault(GET, held, skip=2, times=None)
        script, at = PULL_ONE, elsewhere
    else:
        proxy.add_fault(PART, held, times=None)
        script, at = PULL_ONE.replace("pull", "push").replace('"mod:m1"', '"mod:m1", force=True'), home

    client = await run(script, proxy, at)
    await held.arrived.wait()
    client.process.send_signal(signal.SIGINT)
    code, reports, error = await client.ended()
    held.released.set()

    assert code not in {0, None}
    assert "KeyboardInterrupt" in error
    assert reports == []
    assert not left_in_scratch(at, kept=False)
    assert direction == "push" or not [*(elsewhere / "models").rglob("*")]
    # The interrupted forced push keeps the old item complete.
    assert direction == "pull" or proxy.matching("finish_upload")[-1].json["status"] == "success"


async def test_pull_removes_files_after_kill(run: Run, proxy: FaultProxy, home: Path, elsewhere: Path) -> None:
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    client = await run(PULL_ONE, proxy, elsewhere)
    await held.arrived.wait()
    client.process.kill()
    await client.ended()
    held.released.set()
    left = left_in_scratch(elsewhere)
    code, _, error = await (await run(PULL_ONE, proxy, elsewhere)).ended()

    assert left
    assert code == 0, error
    assert not left_in_scratch(elsewhere)
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


COMMAND = """
from async_bento.cli import main
main(json.loads(os.environ["ARGUMENTS"]))
"""


@pytest.mark.parametrize("presses", [1, 2])  # a third interrupt may hit the shutdown of Python
async def test_cli_interrupt_silent_registry(run: Run, proxy: FaultProxy, home: Path, presses: int) -> None:
    sending, telling = Hold(), Hold()
    proxy.add_fault(PART, sending, times=None)
    proxy.add_fault(FINISH, telling, times=None)

    command = await run(COMMAND, proxy, home, ARGUMENTS='["models", "push", "mod:m1", "--force"]')
    await sending.arrived.wait()
    began = time.monotonic()
    for _ in range(presses):
        with suppress(ProcessLookupError):  # the second interrupt may end the process
            command.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.3)
    code, reports, error = await command.ended()
    sending.released.set()
    telling.released.set()

    assert time.monotonic() - began < 10
    assert (code, reports) == (130, [])
    lines = [line for line in error.splitlines() if not line.startswith("pushing model mod:m1: ")]
    assert lines[-1].startswith("Interrupted.")
    assert len(lines) <= 2  # and that the registry got no report


async def test_cli_interrupt_prints_resume_hint(run: Run, proxy: FaultProxy, elsewhere: Path, home: Path) -> None:
    held = Hold()
    proxy.hides_checksums = True  # a verified pull does not resume inside a part
    proxy.add_fault(GET, held, skip=3, times=None)
    arguments = '["models", "pull", "mod:m1"]'
    measures = {"ASYNC_BENTO_TRANSFER_RANGE_SIZE": str(MiB), "ASYNC_BENTO_TRANSFER_WINDOW": str(2 * MiB)}

    command = await run(COMMAND, proxy, elsewhere, ARGUMENTS=arguments, **measures)
    await held.arrived.wait()
    command.process.send_signal(signal.SIGINT)
    code, reports, error = await command.ended()
    proxy._rules.clear()
    held.released.set()
    proxy.requests.clear()
    again, _, error_again = await (
        await run("sys.stdout = sys.stderr" + COMMAND, proxy, elsewhere, ARGUMENTS=arguments, **measures)
    ).ended()

    assert (code, reports) == (130, [])
    assert error == "Interrupted. Run the same command again to resume.\n"
    assert again == 0, error_again
    assert "GET bytes=0-1048575" not in proxy.steps("GET bytes")
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


BLOCKING = """
from async_bento import BentoAPI

with BentoAPI(progress=False) as api:
    api.models.push("mod:m1", force=True)
"""


@pytest.mark.parametrize("presses", [1, 3])
async def test_script_interrupt_silent_registry(run: Run, proxy: FaultProxy, home: Path, presses: int) -> None:
    sending, telling = Hold(), Hold()
    proxy.add_fault(PART, sending, times=None)
    proxy.add_fault(FINISH, telling, times=None)

    script = await run(BLOCKING, proxy, home)
    await sending.arrived.wait()
    began = time.monotonic()
    for _ in range(presses):
        with suppress(ProcessLookupError):
            script.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.3)
    code, _, error = await script.ended()
    sending.released.set()
    telling.released.set()

    assert time.monotonic() - began < 10
    assert code not in {0, None}
    assert error.splitlines()[-1] == "KeyboardInterrupt"
