"""A registry behind a door, and clients that do not wait between their tries."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore
from async_bento.registry.server import LocalRegistry
from tests.builders import KiB, MiB
from tests.transfer.faulty import Door

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

RETRY = {"attempts": 3, "wait_initial": 0, "wait_max": 0}
TRANSFER = {"part_size": 5 * MiB, "range_size": 64 * KiB, "window": MiB}


@pytest.fixture
async def open_door(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Door]]]:
    """Start a registry with a door before it; all of them end with the test."""
    async with AsyncExitStack() as stack:

        async def start(transmission: str = "presigned_url", **options: Any) -> Door:
            root = tmp_path / f"registry-{transmission}"
            registry = LocalRegistry(root, transmission=transmission, grace=0.1, **options)
            return await stack.enter_async_context(Door(await stack.enter_async_context(registry)))

        yield start


@pytest.fixture
async def client(home: Path) -> AsyncIterator[Callable[..., AsyncBentoAPI]]:
    """Make clients; all of them are closed with the test."""
    async with AsyncExitStack() as stack:

        def make(
            door: Door,
            at: Path = home,
            *,
            retry: dict[str, Any] | None = None,
            transfer: dict[str, Any] | None = None,
            timeouts: dict[str, Any] | None = None,
            limits: dict[str, Any] | None = None,
            **options: Any,
        ) -> AsyncBentoAPI:
            config = Config(
                retry=RETRY | (retry or {}),
                transfer=TRANSFER | (transfer or {}),
                timeouts=timeouts or {"stall": 20},
                limits=limits or {},
            )
            api = AsyncBentoAPI(
                endpoint=door.endpoint,
                api_token=door.registry.api_token,
                config=config,
                bento_store=BentoStore(at / "bentos"),
                model_store=ModelStore(at / "models"),
                **({"progress": False} | options),
            )
            stack.push_async_callback(api.aclose)
            return api

        yield make


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another home, to pull into."""
    return tmp_path / "elsewhere"


@pytest.fixture
def forever() -> Iterator[asyncio.Event]:
    """What nobody sets before the test has ended."""
    event = asyncio.Event()
    yield event
    event.set()
