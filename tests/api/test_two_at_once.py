"""Two clients push the same bento, with many models in few repositories, at the same time."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.builders import contents, make_bento, make_model, random_bytes
from tests.fault_proxy import FaultProxy, Hold

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import AsyncBentoAPI
    from tests.fixtures import MakeClient, StartProxy


REPOSITORIES = ["one", "three", "two"]
MODELS = [f"{name}:m{number}" for name in REPOSITORIES for number in range(4)]


@pytest.fixture(autouse=True)
def pushed(home: Path) -> None:
    """A bento and its twelve models in three repositories."""
    for number, tag in enumerate(MODELS):
        make_model(home, tag, {"weights": random_bytes(10_000 + number, number)}, built=f"2024-05-06 07:08:{number:02}")
    make_bento(home, files={"src/data": random_bytes(20_000, 99)}, models=MODELS)


def let_them_meet(proxy: FaultProxy, pattern: str, count: int) -> None:
    """Hold requests until `count` have arrived, so that each client asks before the other creates."""
    meeting = Hold(count=count)
    meeting.released = meeting.arrived
    proxy.add_fault(pattern, meeting, times=count)


async def push_both(proxy: FaultProxy, make_client: MakeClient, home: Path) -> AsyncBentoAPI:
    """Push from two homes: in one home, the second push would wait for the first."""
    another = home.with_name("another")
    shutil.copytree(home, another)
    one, other = make_client(proxy), make_client(proxy, another)
    await asyncio.gather(one.push("svc:v1"), other.push("svc:v1"))
    return one


async def test_repositories_created_once(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    let_them_meet(proxy, r"GET .*/model_repositories/\w+$", 2 * len(REPOSITORIES))

    api = await push_both(proxy, make_client, home)

    asked = [(request.json["name"], request.status) for request in proxy.matching("POST .*/model_repositories$")]
    assert Counter(asked) == {(name, status): 1 for name in REPOSITORIES for status in (200, 400)}
    uids = {model.repository.uid: model.repository.name async for model in api.models.iter() if model.repository}
    assert sorted(map(str, uids.values())) == REPOSITORIES


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_two_pushes_upload_all(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    proxy = await start_proxy(transmission)
    let_them_meet(proxy, r"GET .*/models/m\d$", 2 * len(MODELS))
    let_them_meet(proxy, r"GET .*/bentos/v1$", 2)

    api = await push_both(proxy, make_client, home)

    assert [bento.upload_status for bento in (await api.list()).items] == ["success"]
    models = (await api.models.list()).items
    assert sorted(f"{model.repository.name}:{model.version}" for model in models if model.repository) == MODELS
    assert {model.upload_status for model in models} == {"success"}
    pulled = await make_client(proxy, elsewhere).pull("svc:v1", with_models=True)
    assert contents(pulled.path) == contents(home / "bentos" / "svc" / "v1")
    latest = {f"{name}/latest": b"m3" for name in REPOSITORIES}
    assert contents(elsewhere / "models") == contents(home / "models") | latest
