"""Fixtures that several test packages share, and their types: a registry behind a fault proxy, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore
from async_bento.registry.server import LocalRegistry
from tests.builders import KiB, MiB
from tests.fault_proxy import FaultProxy
from tests.transfer.quiet import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

StartProxy = Callable[..., Awaitable[FaultProxy]]
MakeClient = Callable[..., AsyncBentoAPI]

RETRY = {"attempts": 3, "wait_initial": 0, "wait_max": 0}
TRANSFER = {"part_size": 5 * MiB, "range_size": 64 * KiB, "window": MiB}
FEW_RANGES = {"range_size": 8 * MiB, "window": 32 * MiB}
"""A range size for pulls of large items in tests of other subjects; ranges of 64 KiB take most of the time."""


@pytest.fixture
async def start_proxy(tmp_path: Path) -> AsyncIterator[StartProxy]:
    """Start a registry behind a fault proxy; both stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(transmission: str = "presigned_url", *, name: str = "", **options: Any) -> FaultProxy:
            root = tmp_path / f"registry-{name or transmission}"
            registry = LocalRegistry(root, transmission=transmission, grace=0.1, **options)
            with serving():
                return await stack.enter_async_context(FaultProxy(await stack.enter_async_context(registry)))

        yield start


@pytest.fixture
async def make_client(home: Path) -> AsyncIterator[MakeClient]:
    """Make clients that do not wait between their attempts; they are closed with the test."""
    async with AsyncExitStack() as stack:

        def make(
            proxy: FaultProxy,
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
                endpoint=proxy.endpoint,
                api_token=proxy.registry.api_token,
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
    """Another home, for pulls."""
    return tmp_path / "elsewhere"


@pytest.fixture
def forever() -> Iterator[asyncio.Event]:
    """An event that is set only after the test."""
    event = asyncio.Event()
    yield event
    event.set()
