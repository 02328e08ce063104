"""The commands of two releases of BentoML against the registry, wherever its data are, and behind nginx with TLS."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.registry import LocalRegistry
from tests.interop.homes import Home
from tests.registry.conftest import HAS_PROXIES, everywhere
from tests.registry.proxies import CERTIFICATE, NGINX, nginx, running
from tests.registry.seaweed import free_ports

if TYPE_CHECKING:
    from tests.registry.conftest import Serve

pytestmark = pytest.mark.interop

COMMANDS = Path(__file__).parents[1] / "interop" / "commands.py"
OTHERS = [path for path in os.environ.get("BENTOML_PYTHONS", "").split(os.pathsep) if path]
"""The Pythons that have other releases of BentoML than the one that runs the tests."""

every_release = pytest.mark.parametrize(
    "python", [sys.executable, *OTHERS], ids=["own", *(Path(path).parents[1].name for path in OTHERS)]
)


async def run_commands(home: Path, python: str, endpoint: str, token: str, **variables: Any) -> None:
    empty = Home(home)
    environment = {
        name: value for name, value in empty.environment().items() if not name.startswith("BENTO_CLOUD_")
    } | variables
    await empty.python(str(COMMANDS), endpoint, token, interpreter=python, environment=environment)


@everywhere
@every_release
async def test_bentoml_commands_work_on_every_storage(serve: Serve, home: Path, python: str):
    caller = await serve(strategies={"proxy": "proxy", "auto": "auto"})
    await run_commands(home, python, caller.registry.endpoint, caller.registry.api_token)


@every_release
@pytest.mark.parametrize("proxy", [pytest.param("nginx", marks=pytest.mark.proxies)] if HAS_PROXIES else [])
async def test_bentoml_commands_work_behind_nginx(tmp_path: Path, home: Path, python: str, proxy: str):
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
        await run_commands(home, python, endpoint, registry.api_token, SSL_CERT_FILE=str(CERTIFICATE))
