"""Behaviour that needs a kernel: a running loop, bars on a page, and an interrupt during a transfer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.store.staging import KEPT
from tests.builders import MiB, contents, left_in_scratch, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import GET, PART, FaultProxy, Hold
from tests.notebook.conftest import SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy
    from tests.notebook.conftest import Kernel

    StartKernel = Callable[[], Awaitable[Kernel]]

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(180)]  # a kernel is slow on a busy machine

BLOCKING = "BentoAPI(**settings).models.{}('mod:m1')"
AWAITED = "await AsyncBentoAPI(**settings).models.{}('mod:m1')"
BLOCKING_CLOSED = "with BentoAPI(**settings) as api: api.models.{}('mod:m1')"
AWAITED_CLOSED = "async with AsyncBentoAPI(**settings) as api: await api.models.{}('mod:m1')"


@pytest.fixture
async def proxy(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> FaultProxy:
    """A proxy of a registry with `mod:m1`, of several ranges."""
    make_model(home, files={"weights": random_bytes(4 * MiB + 3)})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    proxy.requests.clear()
    return proxy


async def ready(kernel: Kernel, proxy: FaultProxy, at: Path, **options: Any) -> None:
    """Let the kernel's cells find the registry and a store."""
    cell = await kernel.run(f"""
from async_bento import AsyncBentoAPI, BentoAPI, Config, ModelStore
settings = {{
    "endpoint": {proxy.endpoint!r},
    "api_token": {proxy.registry.api_token!r},
    "model_store": ModelStore({str(at / "models")!r}),
    "config": Config(transfer={{"range_size": 2**20, "window": 2**22, "part_size": 5 * 2**20}}),
    **{options!r},
}}
""")
    assert cell.error == ""


async def test_blocking_api_works_in_loop(kernel: Kernel, proxy: FaultProxy, home: Path, elsewhere: Path) -> None:
    await ready(kernel, proxy, elsewhere)

    loop = await kernel.run("import asyncio; asyncio.get_running_loop().is_running()")
    cell = await kernel.run(BLOCKING.format("pull") + ".tag")

    assert loop.shown[-1]["text/plain"] == "True"
    assert cell.error == ""
    assert "mod" in cell.shown[-1]["text/plain"]
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


@pytest.mark.parametrize("call", [BLOCKING, AWAITED])
async def test_ipywidgets_show_bars(kernel: Kernel, proxy: FaultProxy, elsewhere: Path, call: str) -> None:
    await ready(kernel, proxy, elsewhere)

    cell = await kernel.run(call.format("pull") + "\nNone")

    assert cell.error == ""
    assert any("application/vnd.jupyter.widget-view+json" in shown for shown in cell.shown)
    assert "pulled model mod:m1, 4.0 MiB" in cell.text
    assert "%|" not in cell.text  # no additional text bar


@pytest.mark.parametrize("call", [BLOCKING_CLOSED, AWAITED_CLOSED])
async def test_no_ipywidgets_prints_lines(kernel: Kernel, proxy: FaultProxy, elsewhere: Path, call: str) -> None:
    await kernel.run("import sys, warnings; sys.modules['ipywidgets'] = None; warnings.simplefilter('error')")
    await ready(kernel, proxy, elsewhere)

    cell = await kernel.run(call.format("pull") + "\nNone")

    assert (cell.error, cell.shown) == ("", [])
    assert "Warning" not in cell.text
    assert "\r" not in cell.text
    assert "pulled model mod:m1, 4.0 MiB" in cell.text


@pytest.mark.parametrize("call", [BLOCKING, AWAITED])
async def test_uncaught_error_is_short(kernel: Kernel, proxy: FaultProxy, elsewhere: Path, call: str) -> None:
    await ready(kernel, proxy, elsewhere, progress=False)

    cell = await kernel.run(call.format("pull").replace("mod:m1", "nothing"))

    shown = cell.traceback.splitlines()
    assert cell.error == "NotFoundError"
    assert len(shown) <= 4, cell.traceback
    assert "'nothing'" in "".join(shown[:-1])
    assert shown[-1].startswith(f"NotFoundError: no model nothing in the registry at {proxy.endpoint}.")


@pytest.mark.parametrize("call", [BLOCKING, AWAITED])
@pytest.mark.parametrize("direction", ["push", "pull"])
async def test_interrupt_cancels_transfer(
    kernel: Kernel, proxy: FaultProxy, home: Path, elsewhere: Path, direction: str, call: str
) -> None:
    at, held = elsewhere, Hold()
    if direction == "push":
        at = elsewhere.parent / "mine"
        make_model(at, files={"weights": random_bytes(11 * MiB)}, built="2025-01-01 00:00:00")
        call = call.replace("'mod:m1'", "'mod:m1', force=True")
        proxy.add_fault(PART, held, skip=1)
    else:
        proxy.add_fault(GET, held, skip=2)
    await ready(kernel, proxy, at, progress=False)

    asked = kernel.client.execute(call.format(direction), stop_on_error=False)  # or the next cell may be dropped
    await held.arrived.wait()
    await kernel.manager.interrupt_kernel()
    reply = await kernel.client.get_shell_msg(timeout=SECONDS)
    while reply["parent_header"].get("msg_id") != asked:
        reply = await kernel.client.get_shell_msg(timeout=SECONDS)
    held.released.set()

    assert reply["content"]["ename"] in {"KeyboardInterrupt", "CancelledError"}
    assert not left_in_scratch(at, kept=False)
    assert direction == "push" or not [*(at / "models").rglob("*")]
    # The forced push replaced nothing: the old item is complete.
    assert direction == "pull" or json.dumps(proxy.matching("finish_upload")[-1].json) == json.dumps(
        {"status": "success", "reason": ""}
    )

    again = await kernel.run(call.format(direction) + "\nNone")

    assert again.error == ""
    assert not left_in_scratch(at)
    if direction == "pull":
        assert contents(at / "models/mod/m1") == contents(home / "models/mod/m1")


async def test_pull_cleans_up_after_kill(
    start_kernel: StartKernel, proxy: FaultProxy, home: Path, elsewhere: Path
) -> None:
    held = Hold()
    proxy.add_fault(GET, held, skip=2)
    killed = await start_kernel()
    await ready(killed, proxy, elsewhere)

    killed.client.execute(BLOCKING.format("pull"))
    await held.arrived.wait()
    await eventually(lambda: any(name.startswith(KEPT) for name in left_in_scratch(elsewhere)))
    await killed.kill()
    held.released.set()
    left = left_in_scratch(elsewhere)
    another = await start_kernel()
    await ready(another, proxy, elsewhere)
    cell = await another.run(BLOCKING.format("pull") + "\nNone")

    assert left
    assert cell.error == ""
    assert not left_in_scratch(elsewhere)
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")
