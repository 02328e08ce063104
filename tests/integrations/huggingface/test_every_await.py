"""Pushes and pulls of a bento with a model on the Hub, cancelled at every await."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.builders import left_in_scratch, make_bento, random_bytes
from tests.integrations.huggingface.hub import Hub, Repo
from tests.integrations.huggingface.test_push import on_the_hub
from tests.transfer.cancellation import ALL, by_task, cancelled, places, settled

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import AsyncBentoAPI
    from tests.fixtures import MakeClient, StartProxy
    from tests.transfer.steps import Steps


pytestmark = pytest.mark.long


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize("direction", ["push", "pull"])
async def test_hub_call_cancelled_at_any_await(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, direction: str
) -> None:
    proxy = await start_proxy()

    async def call(api: AsyncBentoAPI, tag: str) -> object:
        return await (api.push(tag) if direction == "push" else api.pull(tag, with_models=True))

    async def once(steps: Steps, number: int = 0) -> None:
        tag, model = f"svc{number}:v1", f"org/bert{number}"
        hub.repos[model] = Repo({"weights": random_bytes(200_000, number)})
        make_bento(home, tag, models=[on_the_hub(hub.endpoint, model)])
        api = make_client(proxy)
        await cancelled(api, lambda: call(api, tag), steps, by_task, proxy, home)

        async with make_client(proxy) as other:
            if direction == "push":
                found = await settled(other, {tag: "bento"})
                assert not {*found.values()} & {"pending", "uploading"}, steps.at
            await call(other, tag)
            assert direction == "pull" or (await other.get(tag)).upload_status == "success"
        assert not left_in_scratch(home)

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)
