"""A registry that was never reached fails soon; a registry that has answered is retried by the policy."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from async_bento import Config, RestApiClient
from async_bento.errors import APIConnectionError, APITimeoutError
from tests.platforms import REFUSED
from tests.servers import close_server
from tests.silent import error_of, say_nothing, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = {"retry": {"attempts": 5, "wait_initial": 0.01, "wait_max": 0.02}, "timeouts": {"connect": 0.5}}


@pytest.fixture
def retries(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The retries so far, one message each."""
    caplog.set_level("INFO", logger="async_bento")
    messages: list[str] = []
    caplog.handler.addFilter(lambda record: messages.append(record.getMessage()) or True)
    yield messages
    messages.clear()


async def failing(client: RestApiClient) -> BaseException:
    async with client:
        return await error_of(client.current_user())


async def test_refusal_is_retried_once(retries: list[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        error = await failing(RestApiClient(endpoint, "token", config=Config(**QUICK)))

    assert isinstance(error, APIConnectionError)
    assert f"cannot reach the registry at {endpoint}: {REFUSED}" in str(error)
    assert sum(message.startswith("retrying") for message in retries) == 1


async def test_log_states_milliseconds(retries: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="async_bento")
    async with serving(say_nothing) as registry:
        await failing(RestApiClient(f"https://{registry}", "token", config=Config(**QUICK)))

    (milliseconds,) = [int(found[1]) for message in retries if (found := re.search(r"failed after (\d+) ms", message))]
    assert 500 <= milliseconds < 20_000


async def test_unknown_host_is_retried_once(retries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("async_bento.rest.connector._look_up", look_up)
    error = await failing(RestApiClient("https://registry.example", "token", config=Config(**QUICK)))

    assert "cannot reach the registry at https://registry.example: Name or service not known" in str(error)
    assert sum(message.startswith("retrying") for message in retries) == 1


async def test_silent_tls_is_not_retried(retries: list[str]) -> None:
    async with serving(say_nothing) as registry:
        error = await failing(RestApiClient(f"https://{registry}", "token", config=Config(**QUICK)))

    assert isinstance(error, APITimeoutError)
    assert not [message for message in retries if message.startswith("retrying")]


async def test_policy_applies_after_contact(retries: list[str]) -> None:
    async def user(_: web.Request) -> web.Response:
        return web.json_response({"name": "ada", "email": "", "first_name": "", "last_name": ""})

    app = web.Application()
    app.router.add_get("/{path:.*}", user)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with RestApiClient(runner_url(runner), "token", config=Config(**QUICK)) as client:
        await client.current_user()
        await close_server(runner)
        error = await error_of(client.current_user())

    assert isinstance(error, APIConnectionError)
    assert sum(message.startswith("retrying") for message in retries) == 4


def runner_url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"
