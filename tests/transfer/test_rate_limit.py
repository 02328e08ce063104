"""Transfers with `Transfer.rate_limit` keep the rate and do not count as stalled."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.builders import KiB, contents, make_model, random_bytes
from tests.fault_proxy import GET, UPLOAD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy


@pytest.mark.parametrize("transmission", ["auto", "proxy"])
async def test_limited_transfers_share_rate(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    proxy = await start_proxy(transmission)
    for name in ("one", "two"):
        make_model(home, f"{name}:v1", {"weights": random_bytes(100 * KiB, 1)})
    options = {"transfer": {"rate_limit": 200 * KiB}, "timeouts": {"stall": 0.2}}
    started = time.monotonic()
    await make_client(proxy, **options).models.push(["one:v1", "two:v1"])
    pushed = time.monotonic()
    api = make_client(proxy, elsewhere, **options)
    await asyncio.gather(api.models.pull("one:v1"), api.models.pull("two:v1"))
    pulled = time.monotonic()
    assert contents(elsewhere / "models" / "one" / "v1") == contents(home / "models" / "one" / "v1")
    assert pushed - started > 0.8  # 200 KiB and two headers, without the first and the last step
    assert pulled - pushed > 0.8
    assert len(proxy.matching(f"{GET}|{UPLOAD}|GET .*/download$")) < 10  # no request was repeated
