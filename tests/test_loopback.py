"""The guard of all tests against connections to other hosts."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.loopback.sitecustomize import LeavesThisMachineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Refused

ROOT = Path(__file__).parents[1]
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

ELSEWHERE = "192.0.2.1"  # for documentation (RFC 5737), like 2001:db8::/32 (RFC 3849): no host has these addresses


def on_a_socket(family: socket.AddressFamily, kind: socket.SocketKind, call: str, *arguments: object) -> None:
    with socket.socket(family, kind) as one:
        one.settimeout(1)
        getattr(one, call)(*arguments)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (partial(socket.getaddrinfo, "example.com", 80), "socket.getaddrinfo 'example.com'"),
        (partial(socket.getaddrinfo, b"example.com", 80), "socket.getaddrinfo b'example.com'"),
        (partial(socket.gethostbyname, "example.com"), "socket.gethostbyname 'example.com'"),
        (partial(socket.gethostbyaddr, ELSEWHERE), f"socket.gethostbyaddr '{ELSEWHERE}'"),
        (partial(socket.getnameinfo, (ELSEWHERE, 80), 0), f"socket.getnameinfo '{ELSEWHERE}'"),
        (partial(on_a_socket, socket.AF_INET, TCP, "connect", (ELSEWHERE, 80)), f"socket.connect '{ELSEWHERE}'"),
        (partial(on_a_socket, socket.AF_INET, TCP, "connect_ex", (ELSEWHERE, 80)), f"socket.connect '{ELSEWHERE}'"),
        (partial(on_a_socket, socket.AF_INET6, TCP, "connect", ("2001:db8::1", 80)), "socket.connect '2001:db8::1'"),
        (partial(on_a_socket, socket.AF_INET, UDP, "sendto", b"1", (ELSEWHERE, 9)), f"socket.sendto '{ELSEWHERE}'"),
        (
            partial(on_a_socket, socket.AF_INET, UDP, "sendmsg", [b"1"], [], 0, (ELSEWHERE, 9)),
            f"socket.sendmsg '{ELSEWHERE}'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outbound_call_is_refused(refused: Refused, call: Callable[[], object], line: str) -> None:
    with pytest.raises(LeavesThisMachineError):
        call()

    assert refused.take() == [line]


@pytest.mark.parametrize(
    "host", [pytest.param(ELSEWHERE, marks=pytest.mark.posix("audit event of asyncio's connections")), "example.com"]
)
async def test_outbound_http_is_refused(refused: Refused, host: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(LeavesThisMachineError, match=host):
            await session.get(f"http://{host}/")

    assert len(refused.take()) == 1


async def test_local_call_is_allowed(refused: Refused, tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(greet, "localhost", 0, family=socket.AF_INET) as server:
        host, port = server.sockets[0].getsockname()
        for where in (host, "localhost"):
            reader, writer = await asyncio.open_connection(where, port, family=socket.AF_INET)
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
    async with await asyncio.start_unix_server(greet, tmp_path / "socket"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()

    assert refused.take() == []


def test_child_process_is_refused(refused: Refused) -> None:
    code = "import socket; socket.socket().connect(('192.0.2.1', 80))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)

    assert "LeavesThisMachineError: socket.connect '192.0.2.1'" in done.stderr
    (line,) = refused.take()
    assert line.startswith("socket.connect '192.0.2.1' by ")


TEST = """
import contextlib, socket, subprocess, sys

CODE = '''
import contextlib, socket
with contextlib.suppress(Exception):
    socket.getaddrinfo("example.com", 80)
'''

def test_catches_it():
    exec(CODE)

def test_child_refusal_fails_parent():
    subprocess.run([sys.executable, "-c", CODE], check=True)

def test_stays_here():
    pass
"""


def test_caught_refusal_fails_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider", "-rA", "--tb=no"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    reports = [line.split(" - ")[0].replace(f"{tmp_path}/", "") for line in done.stdout.splitlines()]
    assert [line.rpartition("::")[2] for line in reports if line.startswith("ERROR")] == [
        "test_catches_it",
        "test_child_refusal_fails_parent",
    ], done.stdout
    assert "3 passed, 2 errors" in done.stdout
