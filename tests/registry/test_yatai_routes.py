"""Other routes of Yatai: lists of repositories, users of a model, labels, and routes without an implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento import __version__
from tests.registry.conftest import MODELS, records_only

if TYPE_CHECKING:
    from tests.registry.conftest import Caller

pytestmark = records_only


async def test_paging_of_repositories(either: Caller):
    for name in ("iris", "rose", "iris-2"):
        await either.create(name)
    path = f"/{either.words.repositories}"
    page = await either.list(path, start=0, count=2)
    assert (page["start"], page["count"], page["total"]) == (0, 2, 3)
    assert [repository["name"] for repository in page["items"]] == ["iris-2", "rose"]
    assert page["items"][0] == await either.ok("GET", f"{path}/iris-2")
    assert [each["name"] for each in (await either.list(path, start=2, count=2))["items"]] == ["iris"]
    found = await either.list(path, search="iris")
    assert (found["total"], [each["name"] for each in found["items"]]) == (2, ["iris-2", "iris"])
    assert (await either.list(path, q="rose"))["total"] == 1
    assert (await either.list(path, search="%"))["total"] == 0


async def test_paging_of_bentos_of_model(caller: Caller):
    models = caller.about(MODELS)
    await models.create("clf", "m1")
    await models.create("clf", "m2")
    for version in ("v1", "v2", "v3"):
        await caller.create(version=version, manifest={"models": ["clf:m1" if version != "v2" else "clf:m2"]})
    path = "/model_repositories/clf/models/{}/bentos"
    page = await caller.list(path.format("m1"), count=1)
    assert (page["total"], [bento["version"] for bento in page["items"]]) == (2, ["v3"])
    assert page["items"][0]["repository"]["name"] == "iris"
    assert [bento["version"] for bento in (await caller.list(path.format("m2")))["items"]] == ["v2"]
    assert (await caller.api("GET", path.format("m3"))).status == 404


async def test_labels_have_values(caller: Caller):
    assert await caller.ok("GET", "/labels") == []
    await caller.create(labels=[{"key": "team", "value": "b"}, {"key": "stage", "value": "x"}])
    await caller.create(version="v2", labels=[{"key": "team", "value": "b"}])
    await caller.about(MODELS).create(labels=[{"key": "team", "value": "a"}])
    stage, team = {"key": "stage", "values": ["x"]}, {"key": "team", "values": ["a", "b"]}
    assert await caller.ok("GET", "/labels") == [stage, team]
    assert await caller.ok("GET", "/labels?resource_type=model") == [{"key": "team", "values": ["a"]}]


async def test_version_is_package_version(caller: Caller):
    assert (await caller.ok("GET", "/version"))["version"] == __version__


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("/api/v1/org_secrets", "secrets"),
        ("/api/v1/api_tokens", "API tokens"),
        ("/api/v1/clusters/default/namespaces/yatai/deployments/a", "clusters"),
        ("/api/v1/deployments", "deployments"),
        ("/api/v2/deployments/a/terminate", "deployments"),
        ("/api/v1/instance_types", "instance types"),
    ],
)
async def test_other_routes_return_501(caller: Caller, path: str, subject: str):
    headers = {"X-YATAI-API-TOKEN": caller.registry.api_token}
    for method in ("GET", "POST"):
        response = await caller.bare(method, f"{caller.registry.endpoint}{path}", headers=headers)
        assert response.status == 501
        assert response.json == {"error": f"this registry has no {subject}: it keeps bentos and models only"}
