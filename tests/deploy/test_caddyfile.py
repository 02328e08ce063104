"""The Caddyfile of compose, run by the real Caddy, which must be installed."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest

from async_bento import AsyncBentoAPI, BentoStore, RestApiClient
from async_bento.registry import LocalRegistry
from tests.builders import contents, make_bento
from tests.deploy.deployments import DEPLOY
from tests.registry.proxies import CADDY_MAIN, CERTIFICATE, KEY, replaced, running
from tests.servers import free_ports

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.proxies
async def test_push_and_pull_round_trip(home: Path, tmp_path: Path):
    ports = free_ports(2)
    endpoint = f"https://127.0.0.1:{ports[0]}"
    block = (DEPLOY / "Caddyfile").read_text().partition("\n\n")[0]
    upstream = re.search(r"dynamic a \{.*?\}", block, re.DOTALL)
    assert upstream is not None
    changes = {
        "{$DOMAIN} {": f"{endpoint} {{\n\ttls {CERTIFICATE} {KEY}",
        upstream[0]: f"to 127.0.0.1:{ports[1]}",
    }
    (tmp_path / "conf").write_text(CADDY_MAIN + replaced(block, changes))
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(tmp_path / "conf")]
    before = contents(make_bento(home, "svc:v1"))
    registry = LocalRegistry(tmp_path / "registry", port=ports[1], public_url=endpoint)
    async with registry, running(command, ports[0], tmp_path):
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        client = RestApiClient(endpoint, registry.api_token, ssl=trusting)
        async with client, AsyncBentoAPI(client) as api:
            await api.push("svc:v1")
            pulled = await api.pull("svc:v1", bento_store=BentoStore(tmp_path / "other" / "bentos"))
            assert contents(pulled.path) == before
        async with aiohttp.ClientSession() as session, session.get(f"{endpoint}/metrics", ssl=trusting) as response:
            assert response.status == 404
