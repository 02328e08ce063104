"""The configurations of proxies in the guide, run by the real nginx and Caddy, which must be installed."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest

from async_bento import AsyncBentoAPI, BentoStore, RestApiClient
from async_bento.registry import LocalRegistry
from tests.builders import contents, make_bento, random_bytes
from tests.eventually import eventually
from tests.registry.proxies import CADDY, CERTIFICATE, NGINX, caddy, nginx, replaced, running
from tests.servers import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.proxies


def as_http_1_0(block: str) -> str:
    """The version that nginx speaks to the registry by default."""
    return replaced(block, {"proxy_http_version 1.1;": ""})


VARIANTS = {
    "nginx": (nginx, NGINX[0], ""),
    "nginx-http-1.0": (nginx, as_http_1_0(NGINX[0]), ""),
    "nginx-prefix": (nginx, NGINX[1], "/bentos"),
    "nginx-copies": (nginx, NGINX[2], ""),
    "caddy": (caddy, CADDY[0], ""),
    "caddy-prefix": (caddy, CADDY[1], "/bentos"),
}


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy", "auto"])
@pytest.mark.parametrize(
    ("variant", "way"),
    [(variant, way) for variant in VARIANTS for way in ("headers", "public_url")],
)
async def test_push_and_pull_through_proxy(home: Path, tmp_path: Path, variant: str, transmission: str, way: str):
    configure, block, prefix = VARIANTS[variant]
    ports = tuple(free_ports(2))
    endpoint = f"https://127.0.0.1:{ports[0]}{prefix}"
    before = contents(make_bento(home, "svc:v1", files={"weights": random_bytes(11_000_000)}))
    proxy = tmp_path / "proxy"
    proxy.mkdir()
    options = {"forwarded_allow_ips": ["127.0.0.1"]} if way == "headers" else {"public_url": endpoint}
    registry = LocalRegistry(tmp_path / "registry", port=ports[1], transmission=transmission, **options)
    async with registry, running(configure(proxy, block, ports), ports[0], proxy):
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        client = RestApiClient(endpoint, registry.api_token, ssl=trusting)
        async with client, AsyncBentoAPI(client) as api:
            await api.push("svc:v1")
            pulled = await api.pull("svc:v1", bento_store=BentoStore(tmp_path / "other"))
    assert contents(pulled.path) == before


@pytest.mark.parametrize("variant", VARIANTS)
async def test_proxy_sends_client_address(tmp_path: Path, caplog: pytest.LogCaptureFixture, variant: str):
    caplog.set_level(logging.INFO)
    configure, block, prefix = VARIANTS[variant]
    ports = tuple(free_ports(2))
    options = {"forwarded_allow_ips": ["127.0.0.1"], "access_log": logging.getLogger("access")}
    registry = LocalRegistry(tmp_path / "registry", port=ports[1], **options)
    client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), ssl=False))
    async with registry, running(configure(tmp_path, block, ports), ports[0], tmp_path), client:
        async with client.get(f"https://127.0.0.1:{ports[0]}{prefix}/healthz") as response:
            assert response.status == 200
        await eventually(lambda: "GET /healthz 200" in caplog.text)
    assert "127.0.0.2 GET /healthz 200" in caplog.text


def test_guide_covers_all_proxies():
    assert (len(NGINX), len(CADDY)) == (3, 2)
