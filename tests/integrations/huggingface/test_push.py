"""Pushes of a bento with models on the Hub: the sent records, and the requests to the Hub."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import Bento, HubError, NotFoundError, StoreError, Tag
from async_bento.cli.dry_run import PushPlan, plan_push
from async_bento.integrations.huggingface.model import HubModel
from tests.builders import make_bento
from tests.corpus.items import CORPUS
from tests.integrations.huggingface.hub import COMMIT, Hub, Repo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


FILES = {"config.json": b"{}", "empty.txt": b"", "weights.bin": bytes(1000), "weights.h5": bytes(20_000)}


def on_the_hub(endpoint: str, model_id: str = "org/bert", **metadata: Any) -> dict[str, Any]:
    """Return the entry of a model in `bento.yaml`, with the tag that BentoML generates."""
    content = {"model_id": model_id, "revision": COMMIT, "endpoint": endpoint, "include": None, "exclude": None}
    model = HubModel(Tag("any", "v"), **(content | metadata))
    return {"tag": str(model.tag), "registry": "huggingface", "metadata": content | metadata}


def test_hub_version_equals_bentoml() -> None:
    models = Bento.from_path(CORPUS / "1.4" / "bentos" / "front-_desk" / "v1").models
    wanted = [model for model in models if model.is_huggingface]

    assert [HubModel.of(model).tag for model in wanted] == [model.tag for model in wanted]  # bentoml built it
    assert len(wanted) == 2


async def test_registers_model_like_bentoml(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    model = on_the_hub(hub.endpoint, exclude=["*.h5"])
    make_bento(home, models=[model])
    proxy = await start_proxy()

    result = await make_client(proxy).push("svc:v1")

    (create,) = proxy.matching("POST .*/org--bert/models$")
    build_at = create.json.pop("build_at")
    assert len(build_at) == len("2024-05-06 07:08:09.000010")
    assert create.json == {
        "description": "",
        "version": model["tag"].partition(":")[2],
        "labels": [],
        "manifest": {
            "module": "",
            "api_version": "v1",
            "bentoml_version": "1.4.39",
            "size_bytes": 1002,
            "metadata": {
                "registry": "huggingface",
                "model_id": "org/bert",
                "revision": COMMIT,
                "endpoint": hub.endpoint,
                "include": None,
                "exclude": ["*.h5"],
                "url": f"{hub.endpoint}/org/bert/tree/{COMMIT}",
            },
            "context": {
                "framework_name": "huggingface",
                "framework_versions": {},
                "bentoml_version": "1.4.39",
                "python_version": platform.python_version(),
            },
            "options": {},
        },
    }
    (pushed,) = result.models
    assert (str(pushed.tag), pushed.skipped, pushed.bytes_sent) == (model["tag"], False, 0)


async def test_hub_model_sends_no_bytes(hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    started = time.monotonic()
    events: list[ProgressEvent] = []

    result = await make_client(proxy, progress=events.append).push("svc:v1", bare=True)

    assert [event.message for event in events if (event.kind, event.phase) == ("model", "done")] == [
        f"its files stay at {hub.endpoint}/org/bert/tree/{COMMIT}"
    ]
    assert 0 < result.models[0].seconds <= result.seconds <= time.monotonic() - started
    assert [step.partition(" ")[0] for step in proxy.steps("org--bert|model_repositories")] == [
        "GET",  # the record
        "GET",  # the repository
        "POST",
        "POST",
    ]
    assert not hub.asked("/resolve/")


@pytest.mark.parametrize(
    ("patterns", "size"),
    [({}, 21_002), ({"include": ["*.bin", "*.json"]}, 1002), ({"include": ["w*"], "exclude": ["*.h5"]}, 1000)],
)
async def test_size_counts_matching_files(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, patterns: dict[str, list[str]], size: int
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint, **patterns)])
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1", bare=True)

    (create,) = proxy.matching("POST .*/org--bert/models$")
    assert create.json["manifest"]["size_bytes"] == size


@pytest.mark.parametrize("force", [False, True])
async def test_registered_model_skips_hub(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, force: bool
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    events: list[ProgressEvent] = []
    await make_client(proxy).push("svc:v1", bare=True)
    hub.seen.clear()
    proxy.requests.clear()
    started = time.monotonic()

    result = await make_client(proxy, progress=events.append).push("svc:v1", bare=True, force=force)

    assert not hub.seen
    assert [step.split()[0] for step in proxy.steps("org--bert")] == ["GET"]
    assert result.models[0].skipped
    assert 0 < result.models[0].seconds <= time.monotonic() - started
    assert [(event.phase, event.message) for event in events if event.kind == "model"][-1] == (
        "skipped",
        "already pushed",
    )


@pytest.mark.parametrize("force", [False, True])
async def test_dry_run_skips_registered(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, force: bool
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    client = make_client(await start_proxy())

    async def planned() -> str:
        return (await plan_push(client, "svc:v1", options=PushPlan(force)))[0].action

    assert await planned() == "push"
    await client.push("svc:v1", bare=True)
    assert await planned() == "skip"


async def test_no_metadata_uses_head_of_main(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[{"tag": "org--bert:unknown", "registry": "huggingface"}])
    proxy = await start_proxy()

    result = await make_client(proxy).push("svc:v1", bare=True)

    (create,) = proxy.matching("POST .*/org--bert/models$")
    assert create.json["manifest"]["metadata"]["revision"] == COMMIT
    assert str(result.models[0].tag) == on_the_hub(hub.endpoint)["tag"]


async def test_old_version_registered_once(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, "svc:v1", models=[on_the_hub(hub.endpoint)])
    make_bento(home, "svc:v2", models=[on_the_hub(hub.endpoint) | {"tag": f"org--bert:{COMMIT}"}])
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1", bare=True)

    result = await make_client(proxy).push("svc:v2", bare=True)

    assert result.models[0].skipped
    assert len(proxy.matching("POST .*/org--bert/models$")) == 1


async def test_shared_repository_created_once(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint, include=[f"*.{end}"]) for end in ("bin", "h5", "json")])
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1", bare=True)

    assert len(proxy.matching("POST .*/model_repositories$")) == 1
    assert len(proxy.matching("POST .*/org--bert/models$")) == 3


async def test_concurrent_record_accepted(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    async def loses_the_race(exchange: Exchange) -> web.StreamResponse:
        await exchange.forward()
        return web.json_response({"error": "already exists"}, status=400)

    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    proxy.add_fault("POST .*/org--bert/models$", loses_the_race)

    await make_client(proxy).push("svc:v1", bare=True)

    assert (await make_client(proxy).get("svc:v1")).upload_status == "success"


@pytest.mark.parametrize(
    ("repo", "error", "message"),
    [
        (Repo(FILES, gated="all"), HubError, "the model is gated. Request access at .*/org/bert"),
        (None, NotFoundError, "no model org/bert on .*for a private or gated model"),
        (Repo(FILES, commit="f" * 40), NotFoundError, f"the model has no revision {COMMIT}"),
    ],
    ids=["gated", "missing", "removed"],
)
async def test_missing_model_creates_no_record(
    hub: Hub,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    repo: Repo | None,
    error: type[Exception],
    message: str,
) -> None:
    if repo:
        hub.repos["org/bert"] = repo
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()

    with pytest.raises(error, match=message):
        await make_client(proxy).push("svc:v1")

    assert not proxy.matching("^POST|^PUT|^PATCH")


@pytest.mark.parametrize(
    ("repo", "message"),
    [(None, "no model org/bert on"), (Repo(FILES, commit="f" * 40), f"the model has no revision {COMMIT}")],
    ids=["missing", "removed"],
)
async def test_cached_model_that_was_removed_fails(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, repo: Repo | None, message: str
) -> None:
    """The cache replaces a Hub that is out of reach, and not the answer of the Hub."""
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    await make_client(proxy).pull("svc:v1", with_models=True)
    del hub.repos["org/bert"]
    if repo:
        hub.repos["org/bert"] = repo

    with pytest.raises(NotFoundError, match=message):
        await make_client(proxy).push("svc:v1")

    assert not proxy.matching("POST .*/org--bert/models$")


async def test_hf_endpoint_replaces_default(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    model = on_the_hub("https://huggingface.co")  # as BentoML writes it by default
    make_bento(home, models=[model])
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1", bare=True)

    assert hub.asked("/api/models/org/bert")
    (create,) = proxy.matching("POST .*/org--bert/models$")
    assert create.json["version"] == model["tag"].partition(":")[2]
    assert create.json["manifest"]["metadata"]["endpoint"] == "https://huggingface.co"  # part of the version
    assert create.json["manifest"]["size_bytes"] == 21_002


@pytest.mark.parametrize("pinned", [True, False])
async def test_offline_measures_cached_model(
    hub: Hub,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    set_offline: Callable[[bool], None],
    pinned: bool,
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    unpinned = {"tag": "org--bert:unknown", "registry": "huggingface"}
    make_bento(home, models=[on_the_hub(hub.endpoint, exclude=["*.h5"]) if pinned else unpinned])
    proxy = await start_proxy()
    await make_client(proxy).pull("svc:v1", with_models=True)
    hub.seen.clear()
    set_offline(True)

    await make_client(proxy).push("svc:v1", bare=True)

    assert not hub.seen
    (create,) = proxy.matching("POST .*/org--bert/models$")
    assert create.json["manifest"]["size_bytes"] == (1002 if pinned else 21_002)
    assert create.json["manifest"]["metadata"]["revision"] == COMMIT


async def test_offline_uncached_model_fails(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, set_offline: Callable[[bool], None]
) -> None:
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    set_offline(True)

    with pytest.raises(HubError, match=r"the Hugging Face cache lacks some of its files, and HF_HUB_OFFLINE is set"):
        await make_client(proxy).push("svc:v1", bare=True)

    assert not proxy.matching("^POST")


async def test_no_network_uses_cached_model(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[on_the_hub("https://huggingface.co")])
    proxy = await start_proxy()
    await make_client(proxy).pull("svc:v1", with_models=True)
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's backoff
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    await make_client(proxy).push("svc:v1", bare=True)

    (create,) = proxy.matching("POST .*/org--bert/models$")
    assert create.json["manifest"]["size_bytes"] == 21_002


async def test_invalid_metadata_names_field(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_bento(home, models=[on_the_hub(hub.endpoint) | {"tag": "org--bert:v1", "metadata": {"revision": 3}}])
    proxy = await start_proxy()

    with pytest.raises(
        StoreError, match=r"cannot locate the model org--bert:v1: invalid metadata\.model_id .*: Field required"
    ):
        await make_client(proxy).push("svc:v1")
