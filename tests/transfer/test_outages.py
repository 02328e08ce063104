"""A registry whose database, storage or own process restarts during a push, a pull or a list."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, AuthenticationError, BentoError, BentoStore, Config, ModelStore, ServerError
from async_bento.registry.server import LocalRegistry
from tests.builders import MiB, contents, make_bento, make_model, random_bytes
from tests.fault_proxy import answer_json, in_sequence, no_fault, refuse
from tests.fixtures import RETRY
from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import web

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy

WEIGHTS = random_bytes(11 * MiB, 4)
DATABASE_AWAY = [
    answer_json(403, {"message": "get api token: FATAL: terminating connection (SQLSTATE 57P01)"}),
    answer_json(403, {"message": "get api token: dial tcp 10.0.0.7:5432: connect: connection refused"}),
]
STORAGE_AWAY = answer_json(
    400, {"error": "failed to start multipart upload: dial tcp 10.0.0.8:9000: connect: connection refused"}
)


def at_first(*faults: Fault) -> Fault:
    """Answer each request of the API by these faults, and forward its repetition."""
    answers: dict[str, Fault] = {}

    async def fault(exchange: Exchange) -> web.StreamResponse:
        steps = answers.setdefault(exchange.logged.step, in_sequence(*faults, no_fault))
        return await steps(exchange)

    return fault


async def error_of(call: Awaitable[object]) -> BentoError | None:
    """Return the error of a call, or None."""
    try:
        await call
    except BentoError as error:
        return error
    return None


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_database_outage_is_survived(
    transmission: str, start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_bento(home, models=["mod:m1"])
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy(transmission)
    proxy.add_fault(r" /api/v1/", at_first(*DATABASE_AWAY), times=None)

    errors = [
        await error_of(make_client(proxy).push("svc:v1")),
        await error_of(make_client(proxy).list()),
        await error_of(make_client(proxy, elsewhere).pull("svc:v1", with_models=True)),
    ]

    assert errors == [None, None, None]
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_storage_outage_during_push(
    transmission: str, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy(transmission)
    proxy.add_fault(r"(PATCH .*_upload|PUT .*/upload)", at_first(STORAGE_AWAY), times=None)

    assert await error_of(make_client(proxy).models.push("mod:m1")) is None


async def test_endless_outage_is_no_auth_error(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(r"GET", DATABASE_AWAY[1], times=None)

    error = await error_of(make_client(proxy).list())

    assert isinstance(error, BentoError)
    assert not isinstance(error, AuthenticationError)
    assert "token from" not in str(error)
    assert len(proxy.requests) == 3


async def test_storage_outage_keeps_resume(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=3", refuse(400, code="InvalidRequest"))
    assert await error_of(make_client(proxy).models.push("mod:m1", threads=1)) is not None
    proxy.add_fault("presign_multipart", STORAGE_AWAY, times=None)
    assert await error_of(make_client(proxy).models.push("mod:m1", threads=1)) is not None
    proxy.requests.clear()
    proxy._rules.clear()

    result = await make_client(proxy).models.push("mod:m1", threads=1)

    assert proxy.steps("PUT part") == ["PUT part 3"]
    assert result.resumed


async def test_incomplete_upload_is_retried(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=1", refuse(400, code="RequestTimeout"))
    proxy.add_fault("PUT .*partNumber=2", refuse(400, code="IncompleteBody"))

    assert await error_of(make_client(proxy).models.push("mod:m1")) is None


class Restarting:
    """A registry on a fixed port that stops for a second at the first progress of a transfer."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (self._port,) = free_ports(1)
        self.restart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.registry = LocalRegistry(self._root, port=self._port, grace=0)
        await self.registry.start()

    def listener(self, event: ProgressEvent) -> None:
        if event.phase == "transferring" and event.bytes_done and self.restart is None:
            self.stop_for_a_second()

    def stop_for_a_second(self) -> None:
        self.restart = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        await self.registry.close()
        await asyncio.sleep(1)
        await self.start()

    def client(self, home: Path, listener: Callable[[ProgressEvent], None] | bool = False) -> AsyncBentoAPI:
        """A client with the default policy, with waits of a twelfth."""
        return AsyncBentoAPI(
            endpoint=self.registry.endpoint,
            api_token=self.registry.api_token,
            bento_store=BentoStore(home / "bentos"),
            model_store=ModelStore(home / "models"),
            progress=listener,
            config=Config(
                retry={"wait_initial": 0.5 / 12, "wait_max": 15 / 12},
                transfer={"part_size": 5 * MiB, "range_size": MiB // 2, "window": MiB},
            ),
        )


@pytest.mark.parametrize("shortest", [True, False])
async def test_registry_restart_is_survived(
    shortest: bool, tmp_path: Path, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, files={"weights": random_bytes(16 * MiB, 5)})
    monkeypatch.setattr(random, "uniform", (lambda low, _: low) if shortest else (lambda _, high: high))
    registry = Restarting(tmp_path / "registry")
    await registry.start()

    async with registry.client(home, registry.listener) as api:
        errors = [await error_of(api.models.push("mod:m1", threads=2))]
        assert registry.restart is not None
        await registry.restart
        registry.stop_for_a_second()
        await asyncio.sleep(0.3)
        errors.append(await error_of(api.models.list()))
        await registry.restart
    registry.restart = None
    async with registry.client(elsewhere, registry.listener) as api:
        errors.append(await error_of(api.models.pull("mod:m1")))
        assert registry.restart is not None
        await registry.restart
    await registry.registry.close()

    assert errors == [None, None, None]
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


async def test_failed_presign_retry_count(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, files={"weights": b"w"})
    proxy = await start_proxy()
    api = make_client(proxy)
    attempts = RETRY["attempts"]
    proxy.add_fault("presign_multipart", answer_json(500, {"error": "out of order"}), times=attempts)

    with pytest.raises(ServerError, match="out of order"):
        await api.models.push("mod:m1")

    assert len(proxy.matching("presign_multipart")) == attempts
    await api.models.push("mod:m1", force=True)
    proxy.add_fault("presign_download", answer_json(500, {"error": "out of order"}), times=attempts)

    with pytest.raises(ServerError, match="out of order"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert len(proxy.matching("presign_download")) == attempts
