"""Runs nginx and Caddy, which must be installed, as the guide configures them."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TESTS = Path(__file__).parents[1]
CERTIFICATE, KEY = TESTS / "tls" / "certificate.pem", TESTS / "tls" / "key.pem"
GUIDE = (TESTS.parent / "docs" / "guides" / "registry.md").read_text()
ON_S3 = (TESTS.parent / "docs" / "registry-on-s3.md").read_text()
NGINX = [block for page in (GUIDE, ON_S3) for block in re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)]
CADDY = re.findall(r"```caddyfile\n(.*?)```", GUIDE, re.DOTALL)

NGINX_MAIN = """
{user}
pid {tmp}/pid;
error_log {tmp}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {tmp}/body;
    proxy_temp_path {tmp}/proxy;
    fastcgi_temp_path {tmp}/fastcgi;
    uwsgi_temp_path {tmp}/uwsgi;
    scgi_temp_path {tmp}/scgi;
    {server}
}}
"""

CADDY_MAIN = """
{
    admin off
    auto_https disable_redirects
    skip_install_trust
}
"""


def replaced(text: str, changes: dict[str, str]) -> str:
    """Replace each of the texts, which must occur."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def nginx(tmp: Path, block: str, ports: tuple[int, int]) -> list[str]:
    """Write the configuration of nginx, and return its command."""
    address = f"127.0.0.1:{ports[1]}"
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{ports[0]} ssl",
        "/etc/ssl/bentos.pem": str(CERTIFICATE),
        "/etc/ssl/bentos.key": str(KEY),
    }
    copies = {"10.0.0.1:3000": address, "10.0.0.2:3000": address}
    changes |= copies if "upstream" in block else {"127.0.0.1:3000": address}
    user = "user root;" if os.geteuid() == 0 else ""
    (tmp / "conf").write_text(NGINX_MAIN.format(user=user, tmp=tmp, server=replaced(block, changes)))
    return ["nginx", "-p", str(tmp), "-e", str(tmp / "error.log"), "-c", str(tmp / "conf"), "-g", "daemon off;"]


def caddy(tmp: Path, block: str, ports: tuple[int, int]) -> list[str]:
    """Write the configuration of Caddy, and return its command."""
    changes = {
        "bentos.example.com {": f"https://127.0.0.1:{ports[0]} {{\n    tls {CERTIFICATE} {KEY}",
        "127.0.0.1:3000": f"127.0.0.1:{ports[1]}",
    }
    (tmp / "conf").write_text(CADDY_MAIN + replaced(block, changes))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(tmp / "conf")]


@asynccontextmanager
async def running(command: list[str], port: int, tmp: Path) -> AsyncIterator[None]:
    """Run a proxy until the end of the block, once it accepts connections."""
    environment = os.environ | {"HOME": str(tmp), "XDG_DATA_HOME": str(tmp), "XDG_CONFIG_HOME": str(tmp)}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        for _ in range(300):
            assert process.returncode is None, (await process.communicate())[1].decode()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                break
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
