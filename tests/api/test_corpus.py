"""A pull restores the pushed items of every release of BentoML."""

from __future__ import annotations

import asyncio

import pytest

from async_bento import AsyncBentoAPI, BentoStore, ModelStore
from async_bento.registry.server import LocalRegistry
from tests.builders import contents
from tests.corpus.hub import model_info
from tests.corpus.items import BENTOS, LINES, MODELS, copy_to, make_missing_models, tags_of


@pytest.fixture
async def registry(tmp_path):
    async with LocalRegistry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def here(line, tmp_path, monkeypatch):
    """A home with the items of a release, and a Hub that answers."""
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    copy_to(tmp_path / "here", line)
    make_missing_models(tmp_path / "here")
    return tmp_path / "here"


def api_on(home, registry):
    return AsyncBentoAPI(
        endpoint=registry.endpoint,
        api_token=registry.api_token,
        bento_store=BentoStore(home / "bentos"),
        model_store=ModelStore(home / "models"),
    )


def without_models(contents):
    """BentoML 1.0.0 put the models of a bento into the bento; a push sends them separately."""
    return {name: content for name, content in contents.items() if name.split("/")[0] != "models"}


def check_same(here, there, pulled):
    for item in pulled:
        original = here / item.path.relative_to(there)
        assert contents(item.path) == without_models(contents(original))
        assert item.info == type(item).from_path(original).info


def listed(home):
    stores = BentoStore(home / "bentos"), ModelStore(home / "models")
    return tuple([str(item.tag) for item in store.list()] for store in stores)


@pytest.mark.parametrize("line", LINES)
async def test_round_trip_is_identical(line, here, tmp_path, registry):
    there = tmp_path / "there"
    bentos, models = tags_of(line, BENTOS), tags_of(line, MODELS)
    assert bentos
    assert models
    async with api_on(here, registry) as api:
        for tag in bentos:
            await api.push(tag)
        for tag in models:  # pushes of bentos skip models of no bento
            await api.models.push(tag)

    async with api_on(there, registry) as api:
        pulled = [await api.pull(tag) for tag in bentos]
        pulled += [await api.models.pull(tag) for tag in models]

    assert [str(item.tag) for item in pulled] == [*bentos, *models]
    await asyncio.to_thread(check_same, here, there, pulled)
    assert await asyncio.to_thread(listed, there) == (bentos, models)


@pytest.mark.parametrize(
    ("line", "tag", "aliases"),
    [
        ("1.0", "conda:v1", {"pickled:v1": "loud"}),
        ("1.1", "conda.env:v1", {"pickled:v1": "loud"}),
        ("1.2", "front-_desk:v1", {"files:v2": "newest"}),
        ("1.3", "front:v1", {"files:v2": "newest"}),
        ("1.4", "front-_desk:v1", {"files:v2": "newest", "files:v1": "oldest"}),
    ],
)
async def test_bento_keeps_model_aliases(line, tag, aliases, here, tmp_path, registry):
    async with api_on(here, registry) as api:
        await api.push(tag)
    async with api_on(tmp_path / "there", registry) as api:
        bento = await api.pull(tag)

    assert {str(model.tag): model.alias for model in bento.info.models if model.alias} == aliases
