"""async-bento and bentoml read each other's stores with the same results."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from async_bento.errors import NotFoundError

pytestmark = pytest.mark.interop

BENTO_TAGS = ["my_service", "my_service:latest", "my_service:v1", "my_service:v2", "my_service:v", "my_service:x", "no"]
MODEL_TAGS = ["other", "other:latest", "other:abc1", "other:abc", "other:ab", "other:x", "small", "large", "large:m"]


def seen_by_us(home):
    """Return the lists and items of a home by our stores, in the form of `seen_by_bentoml`."""

    def bento_of(tag):
        bento = home.bentos.get(tag)
        return {
            **common(bento),
            "models": [str(model.tag) for model in bento.models],
            "size_bytes": home.models.total_size(bento),
        }

    def model_of(tag):
        model = home.models.get(tag)
        return {**common(model), "metadata": model.info.metadata, "size_bytes": model.size()}

    def common(item):
        return {
            "tag": str(item.tag),
            "path": str(item.path),
            "labels": item.labels,
            "creation_time": item.creation_time.isoformat(),
        }

    def found(get, tag):
        try:
            return get(tag)
        except NotFoundError:
            return None

    return {
        "bentos": [str(bento.tag) for bento in home.bentos.list()],
        "models": [str(model.tag) for model in home.models.list()],
        **{tag: found(bento_of, tag) for tag in BENTO_TAGS},
        **{tag: found(model_of, tag) for tag in MODEL_TAGS},
    }


def seen_by_bentoml(results):
    listed, *gotten = results
    # `get` raises different errors for missing and for ambiguous tags.
    items = [None if "error" in item else item for item in gotten]
    return {**listed, **dict(zip(BENTO_TAGS + MODEL_TAGS, items, strict=True))}


def latest_in(home):
    """Return the content of the `latest` files. Call this before any read of the store, which repairs wrong files."""
    return {file.parent.name: file.read_text() for file in home.path.glob("*/*/latest")}


LOOK = [
    ["list_all", {}],
    *(["get", {"tag": tag}] for tag in BENTO_TAGS),
    *(["get_model", {"tag": tag}] for tag in MODEL_TAGS),
]


async def test_bentoml_store_reads_equal(with_bento):
    writing = [
        ["create_model", {"tag": "other:abc1", "files": {"text": "1"}, "labels": {"a": "b"}, "metadata": {"n": 1}}],
        ["create_model", {"tag": "other:abd2", "files": {"text": "22", "more": "333"}}],
        ["create_model", {"tag": "other:newest", "files": {}}],
        ["delete_model", {"tag": "other:newest"}],  # the previous model becomes the latest
        ["create_model", {"tag": "small:gone", "files": {}}],
        ["delete_model", {"tag": "small:gone"}],
        ["create_model", {"tag": "gone:entirely", "files": {}}],
        ["delete_model", {"tag": "gone:entirely"}],
        ["build", {"project": "project", "version": "v2"}],
    ]
    results = await with_bento.try_calls(*writing, *LOOK)
    assert results[: len(writing)] == [
        "other:abc1",
        "other:abd2",
        "other:newest",
        None,
        "small:gone",
        None,
        "gone:entirely",
        None,
        "my_service:v2",
    ]

    ours = await asyncio.to_thread(seen_by_us, with_bento)

    assert ours == seen_by_bentoml(results[len(writing) :])
    assert ours["bentos"] == ["my_service:v1", "my_service:v2"]
    assert ours["models"] == ["large:m2", "other:abc1", "other:abd2", "small:m1"]
    assert {tag: seen and seen["tag"] for tag, seen in ours.items() if tag not in {"bentos", "models"}} == {
        "my_service": "my_service:v2",
        "my_service:latest": "my_service:v2",
        "my_service:v1": "my_service:v1",
        "my_service:v2": "my_service:v2",
        "my_service:v": None,  # an ambiguous prefix
        "my_service:x": None,
        "no": None,
        "other": "other:abd2",
        "other:latest": "other:abd2",
        "other:abc1": "other:abc1",
        "other:abc": "other:abc1",
        "other:ab": None,  # an ambiguous prefix
        "other:x": None,
        "small": "small:m1",
        "large": "large:m2",
        "large:m": "large:m2",
    }


async def test_pulled_store_reads_equal(with_bento, there, registry):
    await with_bento.calls(
        ["create_model", {"tag": "other:abc1", "files": {"text": "1"}, "labels": {"a": "b"}}],
        ["create_model", {"tag": "other:abd2", "files": {"text": "22"}}],
        ["create_model", {"tag": "other:newest", "files": {}}],
        *(["push_model", {"tag": f"other:{version}"}] for version in ("abc1", "abd2", "newest")),
        ["build", {"project": "project", "version": "v2"}],
        ["build", {"project": "project", "version": "v3"}],
        *(["push", {"tag": f"my_service:{version}"}] for version in ("v1", "v2", "v3")),
        registry=registry,
    )

    async with there.api(registry) as api:
        for version in ("v3", "v1", "v2"):  # the newest is pulled first and must stay the latest
            await api.pull(f"my_service:{version}", with_models=True)
        for version in ("newest", "abd2", "abc1"):
            await api.models.pull(f"other:{version}")
        assert latest_in(there) == {"my_service": "v3", "large": "m2", "small": "m1", "other": "newest"}
        before = await there.try_calls(*LOOK)
        assert seen_by_bentoml(before) == await asyncio.to_thread(seen_by_us, there)
        assert [seen_by_bentoml(before)[name]["tag"] for name in ("my_service", "other")] == [
            "my_service:v3",
            "other:newest",
        ]
        await api.pull("my_service:v1", force=True)
    await asyncio.to_thread(there.bentos.delete, "my_service:v3")
    await asyncio.to_thread(there.models.delete, "other:newest")
    await asyncio.to_thread(there.models.delete, "small:m1")

    assert latest_in(there) == {"my_service": "v2", "large": "m2", "other": "abd2"}
    assert not (there.path / "models" / "small").exists()

    after, listed, got = await asyncio.gather(
        there.try_calls(*LOOK),
        there.bentoml("list", "-o", "json"),
        there.bentoml("get", "my_service:latest", "-o", "json"),
    )

    theirs = seen_by_bentoml(after)
    assert theirs == await asyncio.to_thread(seen_by_us, there)
    assert theirs["bentos"] == ["my_service:v1", "my_service:v2"]
    assert theirs["models"] == ["large:m2", "other:abc1", "other:abd2"]
    assert (theirs["my_service"]["tag"], theirs["other"]["tag"]) == ("my_service:v2", "other:abd2")
    assert theirs["small"] is None
    assert {bento["tag"] for bento in json.loads(listed)} == {"my_service:v1", "my_service:v2"}
    assert json.loads(got)["version"] == "v2"


async def test_bentoml_edits_pulled_store(with_bento, there, registry):
    async with with_bento.api(registry) as api:
        await api.push("my_service:v1")
    async with there.api(registry) as api:
        await api.pull("my_service:v1", with_models=True)

    await asyncio.to_thread(shutil.copytree, with_bento.path / "project", there.path / "project", symlinks=True)

    writing = [
        ["build", {"project": "project", "version": "v2"}],
        ["delete", {"tag": "my_service:v1"}],
        ["delete_model", {"tag": "small:m1"}],
    ]
    results = await there.try_calls(*writing, *LOOK)
    ours = await asyncio.to_thread(seen_by_us, there)

    assert results[: len(writing)] == ["my_service:v2", None, None]
    assert ours == seen_by_bentoml(results[len(writing) :])
    assert (ours["bentos"], ours["models"]) == (["my_service:v2"], ["large:m2"])


async def test_bentoml_ignores_staging_dir(with_bento):
    """In a store on its own mount, an interrupted pull keeps its staging directory for a week."""
    for store in (with_bento.bentos, with_bento.models):
        staged = store.path / "async-bento:tmp" / "async-bento-kept-x" / "item"
        staged.mkdir(parents=True)
        (staged / "half").touch()
        (store.path / "async-bento:tmp" / "async-bento-lock-x").touch()

    ours = await asyncio.to_thread(seen_by_us, with_bento)

    assert ours == seen_by_bentoml(await with_bento.try_calls(*LOOK))
    assert ours["bentos"] == ["my_service:v1"]
