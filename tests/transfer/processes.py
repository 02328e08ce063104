"""A client in a separate process, and a virtual tar of any size."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.builders import MiB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fault_proxy import Exchange, Fault, FaultProxy

    Run = Callable[..., Awaitable["Client"]]

ROOT = Path(__file__).parents[2]

ALLOWANCE = 8 * MiB
"""Noise of the allocator, the sockets and the interpreter, in bytes, after a small transfer as warm-up."""

PRELUDE = """
import asyncio, json, os, signal, sys
from pathlib import Path
from async_bento import AsyncBentoAPI, Config

HOME = Path(os.environ["BENTOML_HOME"])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs

def api(listen=False, where={}, **transfer):
    retry = {"attempts": 2, "wait_initial": 0, "wait_max": 0}
    config = Config(retry=retry, transfer={"range_size": 2**20, "window": 2**22, "part_size": 5 * 2**20} | transfer)
    return AsyncBentoAPI(config=config, progress=listen, **where)

def target(**transfer):  # of a copy
    return api(where=dict(endpoint=os.environ["TARGET"], api_token=os.environ["TARGET_TOKEN"]), **transfer)

def report(**values):
    print(json.dumps(values), flush=True)

def most_memory():
    # Not `ru_maxrss`, which starts with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""


def of_target(proxy: FaultProxy) -> dict[str, str]:
    """Return the variables with which `target` uses the registry of a proxy."""
    return {"TARGET": proxy.endpoint, "TARGET_TOKEN": proxy.registry.api_token}


@dataclass
class Client:
    """A process that runs a script against a fault proxy."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, script: str, proxy: FaultProxy, home: Path, **environment: str) -> Client:
        home.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ASYNC_BENTO", "BENTO"))}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PRELUDE + script,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=kept
            | {
                "BENTOML_HOME": str(home),
                "BENTO_CLOUD_API_KEY": proxy.registry.api_token,
                "BENTO_CLOUD_API_ENDPOINT": proxy.endpoint,
                "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)]),
            }
            | environment,
        )
        return cls(process)

    async def ended(self) -> tuple[int | None, list[Any], str]:
        """Wait for the end; return the exit code, the reports, and the standard error."""
        out, err = await self.process.communicate()
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


class VirtualTar:
    """The tar of a model of any size, whose bytes are computed and not stored.

    Args:
        size: The size of the weights, in bytes.
    """

    def __init__(self, size: int) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("model.yaml")
            text = (
                b"name: mod\nversion: m1\nmodule: ''\napi_version: v1\ncreation_time: 2024-01-01 00:00:00\n"
                b"context: {framework_name: '', framework_versions: {}}\n"
            )
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
            info = tarfile.TarInfo("weights")
            info.size = size
            buffer.write(info.tobuf())
            self._head = buffer.getvalue()
        self.size = -(-(len(self._head) + size + 1536) // 512) * 512

    def read(self, start: int, stop: int) -> bytes:
        head = self._head[start:stop]
        return head + bytes(stop - start - len(head))

    def checksums(self) -> dict[str, object]:
        """Describe the tar as the registry does, in parts of 8 MiB."""
        pieces = (self.read(start, min(start + 8 * MiB, self.size)) for start in range(0, self.size, 8 * MiB))
        parts = [(len(piece), hashlib.md5(piece).hexdigest()) for piece in pieces]
        return {"size": self.size, "etag": '"virtual"', "parts": parts}

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Answer a ranged GET."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.request.headers["Range"])
        assert match
        start, stop = int(match[1]), min(int(match[2]) + 1, self.size)
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{self.size}", "ETag": '"virtual"'}
        return web.Response(status=206, body=self.read(start, stop), headers=headers)

    async def stream(self, exchange: Exchange) -> web.StreamResponse:
        """Answer with all bytes, without a length."""
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(exchange.request)
        with suppress(ConnectionError):
            for start in range(0, self.size, MiB):
                await response.write(self.read(start, min(start + MiB, self.size)))
            await response.write_eof()
        return response


def swallow() -> Fault:
    """Read and discard a part."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async for _ in exchange.request.content.iter_any():
            pass
        return web.Response(headers={"ETag": '"swallowed"'})

    return fault
