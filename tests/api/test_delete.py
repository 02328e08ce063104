"""`delete` of the API deletes from the registry only, and reports a registry without the route."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, NotFoundError, NotSupportedError
from async_bento.errors import APIStatusError, InvalidTagError
from tests.builders import make_bento, make_model
from tests.fault_proxy import answer_json, lose_answer

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry
    from tests.fault_proxy import Fault
    from tests.fixtures import MakeClient, StartProxy


async def test_delete_returns_record(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(await start_proxy())
    bento = make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1")
    await api.push("svc:v1")
    deleted = await api.delete("svc:v1")
    assert (str(deleted.tag), [str(model.tag) for model in deleted.models]) == ("svc:v1", ["mod:m1"])
    assert not await api.exists("svc:v1")
    assert await api.models.exists("mod:m1")
    assert bento.is_dir()
    assert (await api.models.delete("mod:m1")).version == "m1"
    with pytest.raises(NotFoundError, match=r"^no bento svc:v1 in the registry at "):
        await api.delete("svc:v1")
    assert not (await api.push("svc:v1")).skipped


async def test_used_model_needs_force(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1")
    await api.push("svc:v1")
    with pytest.raises(APIStatusError, match=r"^cannot delete model mod:m1: svc:v1 uses it\. ") as caught:
        await api.models.delete("mod:m1")
    assert caught.value.status == 409
    proxy.add_fault("DELETE .*", answer_json(409, {"error": "the model is locked"}))
    with pytest.raises(APIStatusError, match=r"^DELETE .*/m1: 409 Conflict: the model is locked$"):
        await api.models.delete("mod:m1", force=True)
    await api.models.delete("mod:m1", force=True)
    assert not await api.models.exists("mod:m1")


@pytest.mark.parametrize("tag", ["svc", "svc:latest"])
async def test_delete_needs_version(start_proxy: StartProxy, make_client: MakeClient, tag: str) -> None:
    proxy = await start_proxy()
    with pytest.raises(InvalidTagError, match=r"the tag has no version\. Pass a tag like `svc:VERSION`\.$"):
        await make_client(proxy).delete(tag)
    assert proxy.requests == []


@pytest.mark.parametrize(
    "fault", [answer_json(404, "404 page not found"), answer_json(405, {"error": "Method Not Allowed"})]
)
async def test_delete_without_route_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, fault: Fault
) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_bento(home, "svc:v1")
    await api.push("svc:v1")
    proxy.add_fault(r"DELETE .*", fault)
    with pytest.raises(NotSupportedError, match=r"^cannot delete bento svc:v1: .* has no route to delete bentos\. "):
        await api.delete("svc:v1")
    assert await api.exists("svc:v1")


async def test_lost_response_is_retried(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_bento(home, "svc:v1")
    await api.push("svc:v1")
    proxy.add_fault(r"DELETE .*", lose_answer)
    assert (await api.delete("svc:v1")).version == "v1"
    assert len(proxy.matching(r"DELETE .*")) == 2


def test_blocking_delete_returns_record(served: LocalRegistry, home: Path) -> None:
    make_model(home, "mod:m1")
    with BentoAPI(endpoint=served.endpoint, api_token=served.api_token) as api:
        api.models.push("mod:m1")
        assert str(api.models.delete("mod:m1").tag) == "mod:m1"
        make_bento(home, "svc:v1")
        api.push("svc:v1")
        assert str(api.delete("svc:v1").tag) == "svc:v1"
        assert len(api.list()) == len(api.models.list()) == 0
