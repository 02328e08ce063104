"""The commands of two releases of BentoML against the registry, on each storage, and behind nginx with TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento.registry import LocalRegistry
from tests.interop.homes import RELEASES, Home
from tests.registry.conftest import HAS_PROXIES, everywhere
from tests.registry.proxies import CERTIFICATE, NGINX, nginx, running
from tests.servers import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Serve

pytestmark = pytest.mark.interop

OWN, *OTHERS = RELEASES
newest = pytest.mark.parametrize("python", [OWN, *OTHERS[-1:]], ids=lambda python: RELEASES[python])


@everywhere
@newest
async def test_commands_work_on_storages(serve: Serve, home: Path, python: str):
    caller = await serve(strategies={"proxy": "proxy", "auto": "auto"})
    await Home(home).commands("both", caller.registry, python=python)


@newest
@pytest.mark.parametrize("proxy", [pytest.param("nginx", marks=pytest.mark.proxies)] if HAS_PROXIES else [])
async def test_commands_work_behind_nginx(tmp_path: Path, home: Path, python: str, proxy: str):
    ports = free_ports(2)
    endpoint = f"https://127.0.0.1:{ports[0]}"
    directory = tmp_path / proxy
    directory.mkdir()
    registry = LocalRegistry(
        tmp_path / "registry",
        port=ports[1],
        strategies={"proxy": "proxy", "auto": "auto"},
        forwarded_allow_ips=["127.0.0.1"],
    )
    async with registry, running(nginx(directory, NGINX[0], (ports[0], ports[1])), ports[0], directory):
        await Home(home).commands("both", registry, endpoint=endpoint, python=python, SSL_CERT_FILE=str(CERTIFICATE))
