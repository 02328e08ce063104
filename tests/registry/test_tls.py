"""The registry over TLS, without a proxy."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from async_bento import AsyncBentoAPI, BentoStore, RestApiClient
from async_bento.errors import ConfigError
from async_bento.registry import LocalRegistry, connections
from tests.builders import contents, make_bento

CERTIFICATE = Path(__file__).parents[1] / "tls" / "certificate.pem"
KEY = CERTIFICATE.with_name("key.pem")


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_push_and_pull_over_tls(home: Path, tmp_path: Path, transmission: str):
    before = contents(make_bento(home, "svc:v1"))
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with LocalRegistry(tmp_path / "r", tls_cert=CERTIFICATE, tls_key=KEY, transmission=transmission) as registry:
        assert registry.endpoint.startswith("https://127.0.0.1:")
        client = RestApiClient(registry.endpoint, registry.api_token, ssl=trusting)
        async with client, AsyncBentoAPI(client) as api:
            await api.push("svc:v1")
            pulled = await api.pull("svc:v1", bento_store=BentoStore(tmp_path / "other"))
        assert contents(pulled.path) == before


async def test_close_without_tls_handshake(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")

    async with LocalRegistry(tmp_path / "r", tls_cert=CERTIFICATE, tls_key=KEY, grace=0.2) as registry:
        port = registry.endpoint.rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        _, plain = await asyncio.open_connection("127.0.0.1", port)
        plain.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    plain.close()
    assert "a connection was closed before its first request: " in caplog.text


async def test_connection_limit_counts_handshakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "connection_limit", lambda: 1)
    async with LocalRegistry(tmp_path / "r", tls_cert=CERTIFICATE, tls_key=KEY, grace=0) as registry:
        port = registry.endpoint.rpartition(":")[2]
        replaced, first = await asyncio.open_connection("127.0.0.1", port)
        _, second = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(replaced.read(), 20) == b""
        for writer in (first, second):
            writer.close()


def test_cert_and_key_in_one_file(tmp_path: Path):
    both = tmp_path / "both.pem"
    both.write_bytes(CERTIFICATE.read_bytes() + KEY.read_bytes())
    with LocalRegistry(tmp_path / "r", tls_cert=both) as registry:
        assert registry.endpoint.startswith("https://")


def test_key_without_cert_raises(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is a TLS key, but no certificate"):
        LocalRegistry(tmp_path, tls_key=KEY)


def check_refused(root: Path, cert: Path, key: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message), LocalRegistry(root, tls_cert=cert, tls_key=key):
        pass


def test_certificate_unusable_raises(tmp_path: Path):
    missing, text = tmp_path / "none", tmp_path / "text"
    text.write_text("no PEM")
    for cert, key, message in (
        (missing, KEY, "cannot read the TLS certificate .*none: No such file"),
        (CERTIFICATE, missing, "cannot read the TLS key .*none: No such file"),
        (text, KEY, "cannot use the TLS certificate .*text: it is not a PEM file"),
    ):
        check_refused(tmp_path / "r", cert, key, message)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_key_mismatch_raises(tmp_path: Path):
    other, locked = tmp_path / "other.pem", tmp_path / "locked.pem"
    subprocess.run(["openssl", "genrsa", "-out", other, "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", other, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    for key, reason in ((other, r"[A-Z_]+\."), (locked, "")):
        message = f"cannot use the TLS certificate .* with the key .*{key.name}: {reason}"
        check_refused(tmp_path / "r", CERTIFICATE, key, message)
