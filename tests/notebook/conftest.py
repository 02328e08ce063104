"""A real kernel. Where ipykernel and nbclient are not installed, these tests are not collected."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.manager import AsyncKernelManager

if find_spec("nbclient") is None or find_spec("ipykernel") is None:
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""Seconds; the timeout of all waits for a kernel."""


@dataclass
class Cell:
    """The outcome of a cell.

    Attributes:
        error: The name of the exception; empty for success.
        traceback: The displayed traceback of that exception.
        text: The text on standard output and standard error.
        shown: The displayed objects and the result, by MIME type.
    """

    error: str = ""
    traceback: str = ""
    text: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Kernel:
    """A kernel in a separate process."""

    manager: AsyncKernelManager
    client: AsyncKernelClient

    async def run(self, code: str) -> Cell:
        """Run a cell until it ends."""
        asked = self.client.execute(code)
        cell = Cell()
        while True:
            message = await asyncio.wait_for(self.client.get_iopub_msg(), SECONDS)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                cell.text += content["text"]
            elif kind in {"display_data", "execute_result"}:
                cell.shown.append(content["data"])
            elif kind == "error":
                cell.error = content["ename"]
                cell.traceback = "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return cell

    async def kill(self) -> None:
        """Kill the kernel by SIGKILL."""
        await self.manager.shutdown_kernel(now=True)


@pytest.fixture(autouse=True)
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that write nothing into the user's home, and import the code under test."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.fixture
async def start_kernel() -> AsyncIterator[Callable[[], Awaitable[Kernel]]]:
    """Start kernels, which end with the test."""
    from jupyter_client.manager import AsyncKernelManager

    async with AsyncExitStack() as stack:

        async def start() -> Kernel:
            manager = AsyncKernelManager(kernel_name="python3")
            await manager.start_kernel()
            stack.push_async_callback(manager.shutdown_kernel, now=True)
            client = manager.client()
            client.start_channels()
            stack.callback(client.stop_channels)
            await client.wait_for_ready(timeout=SECONDS)
            return Kernel(manager, client)

        yield start


@pytest.fixture
async def kernel(start_kernel: Callable[[], Awaitable[Kernel]]) -> Kernel:
    """A kernel."""
    return await start_kernel()
