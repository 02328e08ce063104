"""A bento with models on the Hub: the records of bentoml and async-bento are the same, and pulls fetch the files."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
import yaml

from tests.builders import random_bytes
from tests.integrations.huggingface import conftest as with_the_hub
from tests.integrations.huggingface.hub import COMMIT, Repo
from tests.interop.homes import Home, tree

pytestmark = pytest.mark.interop

cache, hub = with_the_hub.cache, with_the_hub.hub

TAG = "hub_service:v1"

SERVICE = """
import bentoml


@bentoml.service(name="hub_service")
class HubService:
    whole = bentoml.models.HuggingFaceModel("org/bert")
    part = bentoml.models.HuggingFaceModel("org/bert", "main", include=["*.bin", "*.json"], exclude=["large*"])
    capital = bentoml.models.HuggingFaceModel("Org/Capital")

    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
"""

FILES = {
    "config.json": b"{}",
    "large.bin": random_bytes(200_000, 1),
    "small.bin": random_bytes(1000, 2),
    "weights.h5": random_bytes(20_000, 3),
}
EXCEPTIONS = {  # All accepted differences, with reasons. The test also fails if one of them no longer differs.
    "build_at": "The field has the time of the push: in local time by BentoML, in UTC by async-bento.",
    "created_at": "The registry's time.",
    "updated_at": "The registry's time.",
    "uid": "The registry generates it.",
    "model_uid": "The registry generates it.",
}


@pytest.fixture
def elsewhere(tmp_path):
    """Another home, for pulls."""
    return Home(tmp_path / "elsewhere")


@pytest.fixture
async def with_hub_models(hub, there):
    """A home with `hub_service:v1`, built by bentoml; the Hub has its models."""
    hub.repos.update({name: Repo(FILES) for name in ("org/bert", "Org/Capital", "org/capital")})
    project = there.path / "project"
    project.mkdir()
    (project / "service.py").write_text(SERVICE)
    (project / "bentofile.yaml").write_text(
        "service: service:HubService\nname: hub_service\npython: {lock_packages: false}\n"
    )
    await there.calls(["build", {"project": "project", "version": "v1"}])
    return there


def forget_metadata(home, name):
    """Remove the metadata of a model from bento.yaml, which older releases of BentoML did not write."""
    file = home.path / "bentos" / "hub_service" / "v1" / "bento.yaml"
    info = yaml.safe_load(file.read_text())
    places = [info, *info["services"]]
    forgotten = [model for place in places for model in place.get("models", []) if model["tag"].startswith(name)]
    assert forgotten
    for model in forgotten:
        model["metadata"] = None
    file.write_text(yaml.safe_dump(info))


async def records(registry):
    """Return the records of all models of a registry, by tag."""
    headers = {"X-YATAI-API-TOKEN": registry.api_token}
    async with (
        aiohttp.ClientSession(registry.endpoint, headers=headers) as session,
        session.get("/api/v1/models", params={"count": "100"}) as listed,
    ):
        found = {}
        for model in (await listed.json())["items"]:
            name, version = model["repository"]["name"], model["version"]
            async with session.get(f"/api/v1/model_repositories/{name}/models/{version}") as got:
                record = await got.json()
            # Two models of one repository are registered at the same time: either may be its latest.
            assert record["repository"].pop("latest_model")
            found[f"{name}:{version}"] = record
        return found


def differing(one, other, name=""):
    """Return the names of the fields that differ in two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key, ...), other.get(key, ...)) for key in one.keys() | other.keys()]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(name, *pair) for pair in zip(one, other, strict=True)]
    else:
        return {name} if one != other else set()
    return set().union(*(differing(ones, others, key) for key, ones, others in pairs))


def created(registry):
    """Return the bodies of the POST requests, sorted: models are pushed concurrently."""
    return {
        request: sorted(bodies, key=lambda body: body.get("version") or body["name"])
        for request, bodies in registry.bodies.items()
        if request.startswith("POST")
    }


@pytest.mark.parametrize("forgetful", [False, True], ids=["built", "built-by-an-older-one"])
async def test_hub_records_equal_bentoml(with_hub_models, theirs, ours, hub, forgetful):
    if forgetful:
        forget_metadata(with_hub_models, "org--capital")
    await with_hub_models.calls(["push", {"tag": TAG}], registry=theirs)
    async with with_hub_models.api(ours) as api:
        await api.push(TAG)

    assert differing(created(ours), created(theirs)) == {"build_at"}, EXCEPTIONS
    kept, expected = await records(ours), await records(theirs)
    assert differing(kept, expected) == EXCEPTIONS.keys()

    manifests = [record["manifest"] for record in kept.values()]
    models = [(one["metadata"]["model_id"], one["metadata"]["include"], one["size_bytes"]) for one in manifests]
    assert sorted(models, key=str) == [
        ("org/bert", None, 221_002),
        ("org/bert", ["*.bin", "*.json"], 1002),
        ("org/capital", None, 221_002),
    ]
    assert {one["metadata"]["revision"] for one in manifests} == {COMMIT}
    assert not hub.asked("/resolve/")  # no file was fetched


async def test_hub_push_pulled_by_bentoml(with_hub_models, registry, elsewhere):
    async with with_hub_models.api(registry) as api:
        await api.push(TAG)

    await elsewhere.calls(["pull", {"tag": TAG, "with_models": True}], registry=registry)

    bento = "bentos/hub_service/v1"
    assert tree(elsewhere.path / bento, modes=False) == tree(with_hub_models.path / bento, modes=False)
    assert snapshots(elsewhere.path / "hf" / "hub") == FETCHED


async def test_hub_pull_of_bentoml_push(with_hub_models, registry, elsewhere, cache):
    await with_hub_models.calls(["push", {"tag": TAG}], registry=registry)

    async with elsewhere.api(registry) as api:
        await api.pull(TAG, with_models=True)

    bento = "bentos/hub_service/v1"
    assert tree(elsewhere.path / bento) == tree(with_hub_models.path / bento)
    assert await asyncio.to_thread(snapshots, cache) == FETCHED


FETCHED = {f"models--org--{name}/snapshots/{COMMIT}": FILES for name in ("bert", "capital")}


def snapshots(hf_cache):
    """Return the files of each snapshot in the Hub cache."""
    return {
        str(snapshot.relative_to(hf_cache)): {file.name: file.read_bytes() for file in snapshot.iterdir()}
        for snapshot in hf_cache.glob("models--*/snapshots/*")
    }
