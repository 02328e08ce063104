"""An API is made in a coroutine as well as anywhere, so making one touches no disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, ConfigError, RestApiClient

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_contexts_are_read_by_the_first_call_and_off_the_loop(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text("contexts: []\n")
    async with AsyncBentoAPI() as api:
        with pytest.raises(ConfigError, match="no API token"):
            await api.get("svc")


async def test_a_named_context_is_found_by_the_first_call(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text("contexts: [{name: dev, endpoint: 'http://127.0.0.1:1', api_token: secret}]\n")
    async with AsyncBentoAPI(context="dev") as api:
        assert repr(api) == "AsyncBentoAPI()"
        with pytest.raises(ConfigError, match="no context 'prod'"):
            await AsyncBentoAPI(context="prod").get("svc")


def test_what_needs_no_file_is_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="is not an endpoint"):
        AsyncBentoAPI(endpoint="nowhere", api_token="token")


async def test_a_client_and_what_makes_one_are_not_given_together() -> None:
    client = RestApiClient("http://127.0.0.1:1", "token")
    with pytest.raises(ConfigError, match="either the client or endpoint and token"):
        AsyncBentoAPI(client, endpoint="http://127.0.0.1:2")
