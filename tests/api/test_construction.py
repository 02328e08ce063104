"""Constructing an API, possibly in a coroutine, touches no disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, ConfigError, RestApiClient

if TYPE_CHECKING:
    from pathlib import Path


async def test_contexts_read_at_first_call(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text("contexts: []\n")
    async with AsyncBentoAPI() as api:
        with pytest.raises(ConfigError, match="no API token"):
            await api.get("svc")


async def test_context_found_at_first_call(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text("contexts: [{name: dev, endpoint: 'http://127.0.0.1:1', api_token: secret}]\n")
    async with AsyncBentoAPI(context="dev") as api:
        assert repr(api) == "AsyncBentoAPI()"
        with pytest.raises(ConfigError, match="no context 'prod'"):
            await AsyncBentoAPI(context="prod").get("svc")


def test_constructor_checks_endpoint() -> None:
    with pytest.raises(ConfigError, match="invalid endpoint"):
        AsyncBentoAPI(endpoint="nowhere", api_token="token")


@pytest.mark.parametrize("option", ["endpoint", "api_token", "context"])
async def test_client_and_credentials_rejected(option: str) -> None:
    client = RestApiClient("http://127.0.0.1:1", "token")
    with pytest.raises(ConfigError, match="cannot use an endpoint, token or context with a client"):
        AsyncBentoAPI(client, **{option: "http://127.0.0.1:2"})  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [AsyncBentoAPI, RestApiClient])
def test_no_asyncio_states_remedy(make: type[AsyncBentoAPI | RestApiClient]) -> None:
    client = make(endpoint="http://127.0.0.1:9", api_token="t")
    call = client.get("svc") if isinstance(client, AsyncBentoAPI) else client.current_user()
    with pytest.raises(ConfigError, match=r"no running event loop of asyncio \(trio is not supported\)\. Await "):
        call.send(None)
