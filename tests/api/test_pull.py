"""Pulls through the public API: requests, choice of the version, and the store during the pull."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import (
    APIStatusError,
    BentoError,
    BentoStore,
    ModelsError,
    ModelStore,
    NotFoundError,
    PartError,
    StoreError,
    Tag,
)
from async_bento.api.kinds import BARE_REASON
from async_bento.api.pull import is_bare, upload_facts
from async_bento.progress.events import ENDED
from async_bento.rest.request_schemas import CreateBentoSchema, CreateModelSchema
from async_bento.rest.schemas import BentoManifestSchema
from tests.builders import contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.calls import calls_of
from tests.fault_proxy import GET, FaultProxy, Hold, answer_json, refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from async_bento import AsyncBentoAPI, ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


@pytest.fixture
def registry_with(start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path) -> StartProxy:
    """A registry with bentos that another machine has pushed."""

    async def push(*tags: str, models: tuple[str, ...] = (), built: dict[str, str] | None = None) -> FaultProxy:
        origin = tmp_path / "origin"
        proxy = await start_proxy()
        for tag in models:
            make_model(origin, tag)
        for tag in tags:
            when = {"built": built[tag]} if built else {}
            make_bento(origin, tag, files={"data": random_bytes(200_000, len(tag))}, models=models, **when)
            await make_client(proxy, origin).push(tag)
        proxy.requests.clear()
        return proxy

    return push


async def test_pull_local_sends_no_request(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    here = make_bento(home, files={"mine": b"x"})
    events: list[ProgressEvent] = []

    bento = await make_client(proxy, progress=events.append).pull("svc:v1")

    assert bento.path == here
    assert not proxy.requests
    assert (events[-1].phase, events[-1].message) == ("skipped", "already pulled")


async def test_pull_matches_whole_version(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    make_bento(home, "svc:v10")

    bento = await make_client(proxy).pull("svc:v1")

    assert bento.tag == Tag("svc", "v1")
    assert bento.path == home / "bentos/svc/v1"


OLD, NEW = "2024-01-01 00:00:00", "2024-06-01 00:00:00"


@pytest.mark.parametrize("tag", ["svc", "svc:latest"])
async def test_pull_latest_uses_registry(
    registry_with: StartProxy, make_client: MakeClient, home: Path, tag: str
) -> None:
    proxy = await registry_with("svc:a", "svc:z", built={"svc:a": NEW, "svc:z": OLD})
    make_bento(home, "svc:older", built="2023-01-01 00:00:00")

    bento = await make_client(proxy).pull(tag)

    assert bento.tag == Tag("svc", "a")
    assert (home / "bentos/svc/latest").read_text() == "a"


@pytest.mark.parametrize("built", [NEW, "2024-07-01 00:00:00"], ids=["as new", "newer"])
async def test_pull_latest_keeps_local(
    registry_with: StartProxy, make_client: MakeClient, home: Path, built: str
) -> None:
    proxy = await registry_with("svc:a", built={"svc:a": NEW})
    make_bento(home, "svc:mine", built=built)

    bento = await make_client(proxy).pull("svc")

    assert bento.tag == Tag("svc", "mine")
    assert not proxy.matching("GET bytes|presign")


async def test_forced_latest_ignores_local(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:a", built={"svc:a": OLD})
    make_bento(home, "svc:mine", built=NEW)

    bento = await make_client(proxy).pull("svc", force=True)

    assert bento.tag == Tag("svc", "a")


async def test_force_pull_replaces_copy(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    make_bento(home, files={"mine": b"x"})

    bento = await make_client(proxy).pull("svc:v1", force=True)

    assert "data" in contents(bento.path)
    assert "mine" not in contents(bento.path)
    assert not left_in_scratch(home)


async def test_force_pull_replaces_at_commit(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    here = make_bento(home, files={"mine": b"x"})
    before = contents(here)
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", force=True))
    await held.arrived.wait()
    meanwhile = contents(here)
    held.released.set()
    await pulling

    assert meanwhile == before


async def test_force_pull_fault_keeps_copy(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    here = make_bento(home, files={"mine": b"x"})
    (home / "bentos/svc/latest").write_text("v1")
    before = contents(home)
    proxy.add_fault(GET, refuse(500), skip=2, times=None)

    with pytest.raises(PartError) as failure:
        await make_client(proxy).pull("svc:v1", force=True)

    assert "never finished" not in str(failure.value)
    assert contents(here) == contents(home / "bentos/svc/v1")
    assert {name: what for name, what in contents(home).items() if not name.startswith("tmp")} == before
    assert not left_in_scratch(home, kept=False)


async def test_force_pull_cancel_keeps_copy(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    here = make_bento(home, files={"mine": b"x"})
    before = contents(here)
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", force=True))
    await held.arrived.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    held.released.set()

    assert contents(here) == before
    assert not left_in_scratch(home, kept=False)


async def test_models_download_concurrently(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1", "two:m1"))
    both = Hold(count=2)
    proxy.add_fault("GET /blobs/models", both, times=None)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", with_models=True))
    await both.arrived.wait()
    both.released.set()
    bento = await pulling

    assert [str(model.tag) for model in bento.models] == ["one:m1", "two:m1"]
    assert contents(home / "models/one/m1")
    assert contents(home / "models/two/m1")


async def test_local_models_send_no_request(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1", "two:m1"))
    api = make_client(proxy)
    await api.pull("svc:v1", with_models=True)
    asked = len(proxy.requests)

    await api.pull("svc:v1", with_models=True)

    assert len(proxy.requests) == asked


async def test_failed_model_spares_others(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1", "two:m1"))
    slow = Hold()
    refused = refuse(400, code="InvalidRequest")
    proxy.add_fault("GET /blobs/models/one", refused)
    proxy.add_fault("GET /blobs/models/two", slow)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", with_models=True))
    await slow.arrived.wait()
    await proxy.wait_for("GET /blobs/models/one", 1)
    await asyncio.sleep(0.05)  # the first has failed by now and would have cancelled the other
    slow.released.set()

    message = r"pulled svc:v1, but its model one:m1 failed: .*InvalidRequest"
    with pytest.raises(PartError, match=message):
        await pulling
    assert contents(home / "bentos/svc/v1")
    assert contents(home / "models/two/m1")
    assert not (home / "models/one").exists()


async def test_pull_names_missing_models(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1", "two:m1", "three:m1"))
    for name in ("one", "three"):
        proxy.add_fault(f"GET /api/v1/model_repositories/{name}", refuse(404))

    with pytest.raises(ModelsError, match="pulled svc:v1, but 2 of its 3 models failed") as failure:
        await make_client(proxy).pull("svc:v1", with_models=True)

    assert [*failure.value.failures] == ["one:m1", "three:m1"]
    assert contents(home / "models/two/m1")


async def test_pull_downloads_no_models(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1",))

    await make_client(proxy).pull("svc:v1")

    assert not (home / "models").exists()


async def test_local_bento_downloads_models(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1",))
    api = make_client(proxy)
    await api.pull("svc:v1")

    await api.pull("svc:v1", with_models=True)

    assert contents(home / "models/one/m1")


async def test_pull_lock_shares_download(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    held = Hold()
    proxy.add_fault(GET, held)
    events: list[ProgressEvent] = []
    first, second = (make_client(proxy, progress=events.append) for _ in range(2))

    pulling = [asyncio.create_task(api.pull("svc:v1")) for api in (first, second)]
    await held.arrived.wait()
    await proxy.wait_for("GET svc/v1", 2)  # both calls have requested the record
    held.released.set()
    bentos = await asyncio.gather(*pulling)

    asked = proxy.steps("GET bytes")
    assert len(asked) == len(set(asked)) > 1
    assert bentos[0] == bentos[1]
    messages = [event.message for event in events if event.phase in ENDED]
    assert sorted(messages) == ["", "already pulled by another process"]


async def test_failed_pull_releases_lock(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    held = Hold(fault=refuse(400))
    proxy.add_fault(GET, held)

    failing = asyncio.create_task(make_client(proxy).pull("svc:v1"))
    await held.arrived.wait()
    waiting = asyncio.create_task(make_client(proxy).pull("svc:v1"))
    await proxy.wait_for("GET svc/v1", 2)
    held.released.set()

    with pytest.raises(PartError):
        await failing
    assert (await waiting).tag == Tag("svc", "v1")


async def test_pull_lock_wait_cancellable(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    held = Hold()
    proxy.add_fault(GET, held)

    first = asyncio.create_task(make_client(proxy).pull("svc:v1"))
    await held.arrived.wait()
    waiting = asyncio.create_task(make_client(proxy).pull("svc:v1"))
    await proxy.wait_for("GET svc/v1", 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.released.set()

    assert (await first).tag == Tag("svc", "v1")


async def test_pull_into_other_store(
    registry_with: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await registry_with("svc:v1")
    make_bento(home)  # in the API's own store, where it does not count
    store = BentoStore(elsewhere / "bentos")

    bento = await make_client(proxy).pull("svc:v1", bento_store=store)

    assert bento.path == elsewhere / "bentos/svc/v1"
    assert not left_in_scratch(elsewhere)


async def test_other_store_keeps_model_store(
    registry_with: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1",))

    await make_client(proxy).pull("svc:v1", with_models=True, bento_store=BentoStore(elsewhere / "bentos"))

    assert contents(home / "models/one/m1")
    assert not (elsewhere / "models").exists()


async def test_pull_model_into_other_store(
    registry_with: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1",))
    make_model(home, "one:m1")  # in the API's own store, where it does not count

    model = await make_client(proxy).models.pull("one:m1", model_store=ModelStore(elsewhere / "models"))

    assert model is not None
    assert model.path == elsewhere / "models/one/m1"
    assert not left_in_scratch(elsewhere)


async def test_force_pull_keeps_models(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1", models=("one:m1",))
    mine = make_model(home, "one:m1", {"mine": b"x"})

    bento = await make_client(proxy).pull("svc:v1", force=True, with_models=True)

    assert "data" in contents(bento.path)
    assert contents(mine)["mine"] == b"x"
    assert not proxy.matching("model_repositories")


async def test_bad_hub_record_names_field(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    await api.models._kind.routes.create_repository("bert")
    record = CreateModelSchema.model_validate(
        {
            "version": "r1",
            "build_at": "2024-01-01 00:00:00",
            "manifest": {"metadata": {"registry": "huggingface", "url": "https://huggingface.co/bert"}},
        }
    )
    await api.models._kind.routes.create("bert", record)

    with pytest.raises(StoreError, match=r"cannot locate the model bert:r1: invalid metadata\.model_id in its record"):
        await api.models.pull("bert:r1")

    assert not proxy.matching("presign|GET bytes")


async def test_pull_query_selects_model(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, "mod:older", labels={"stage": "prod"}, built="2023-01-01 00:00:00")
    make_model(home, "mod:prod", labels={"stage": "prod"}, built=OLD)
    make_model(home, "mod:test", labels={"stage": "test"}, built=NEW)
    proxy = await start_proxy()
    for tag in ("mod:prod", "mod:test", "mod:older"):
        await make_client(proxy).models.push(tag)

    model = await make_client(proxy, elsewhere).models.pull("mod", query="label:stage=prod")

    assert model is not None
    assert model.tag == Tag("mod", "prod")


async def test_query_again_takes_no_lock(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model(home, "mod:prod", labels={"stage": "prod"})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:prod")
    events: list[ProgressEvent] = []
    api = make_client(proxy, elsewhere, progress=events.append)
    pulled = await api.models.pull("mod", query="label:stage=prod")
    locks = calls_of(monkeypatch, ModelStore, "lock")

    again = await api.models.pull("mod", query="label:stage=prod")

    assert again == pulled
    assert (events[-1].phase, events[-1].message) == ("skipped", "already pulled")
    assert not locks


async def test_undated_again_takes_no_lock(
    registry_with: StartProxy,
    make_client: MakeClient,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Older registries do not state when an item was built."""
    proxy = await registry_with("svc:v1")
    events: list[ProgressEvent] = []
    api = make_client(proxy, elsewhere, progress=events.append)
    list_records = api._kind.routes.list

    async def without_date(*arguments: Any, **options: Any) -> Any:
        page = await list_records(*arguments, **options)
        for record in page.items if page else []:
            object.__setattr__(record, "build_at", None)
        return page

    monkeypatch.setattr(api._kind.routes, "list", without_date)
    pulled = await api.pull("svc")
    locks = calls_of(monkeypatch, BentoStore, "lock")

    again = await api.pull("svc")

    assert again == pulled
    assert (events[-1].phase, events[-1].message) == ("skipped", "already pulled")
    assert not locks


async def test_pull_query_ignores_local(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, "mod:prod", labels={"stage": "prod"}, built=OLD)
    make_model(elsewhere, "mod:mine", built=NEW)
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:prod")

    queried = await make_client(proxy, elsewhere).models.pull("mod", query="label:stage=prod")
    newest = await make_client(proxy, elsewhere).models.pull("mod")

    assert queried is not None
    assert queried.tag == Tag("mod", "prod")
    assert newest is not None
    assert newest.tag == Tag("mod", "mine")


async def test_query_with_version_warns(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home)
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")

    with pytest.warns(UserWarning, match="`query` is ignored: mod:m1 names a version"):
        model = await make_client(proxy, elsewhere).models.pull("mod:m1", query="label:stage=prod")

    assert model is not None


@pytest.mark.parametrize("tag", ["svc:v9", "nothing", "nothing:latest"])
async def test_pull_missing_item_names_it(registry_with: StartProxy, make_client: MakeClient, tag: str) -> None:
    proxy = await registry_with("svc:v1")

    with pytest.raises(NotFoundError, match=rf"no bento {tag} in the registry at {proxy.endpoint}.*async-bento list"):
        await make_client(proxy).pull(tag)


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_pull_bare_record_names_it(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    make_bento(home)
    proxy = await start_proxy(transmission)
    await make_client(proxy).push("svc:v1", bare=True)

    with pytest.raises(
        NotFoundError, match=r"^cannot pull svc:v1: the bento exists in the registry but was never fully uploaded"
    ):
        await make_client(proxy, elsewhere).pull("svc:v1")

    assert not left_in_scratch(elsewhere)


async def test_pull_lost_bytes_names_item(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v1")
    proxy.add_fault(GET, refuse(404, code="NoSuchKey"), times=None)

    with pytest.raises(
        NotFoundError, match=r"^cannot pull svc:v1: the bento exists in the registry but was never fully uploaded"
    ):
        await make_client(proxy).pull("svc:v1")

    assert not left_in_scratch(home)


async def left_unfinished(proxy: FaultProxy, api: AsyncBentoAPI, status: str) -> None:
    """Leave `svc:v2` like a failed push, a running push, or a push without files."""
    if status == "bare":
        await api.push("svc:v2", bare=True)
        return
    proxy.add_fault("PUT /blobs", refuse(400))
    with pytest.raises(PartError):
        await api.push("svc:v2")
    if status == "uploading":
        await api._kind.routes.start_upload("svc", "v2")
    proxy.requests.clear()


@pytest.mark.parametrize(
    ("status", "noted"), [("failed", "v2 (failed)"), ("uploading", "v2 (uploading)"), ("bare", "v2 (without files)")]
)
async def test_pull_latest_is_uploaded(
    registry_with: StartProxy,
    make_client: MakeClient,
    home: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    status: str,
    noted: str,
) -> None:
    proxy = await registry_with("svc:v1", built={"svc:v1": OLD})
    make_bento(tmp_path / "origin", "svc:v2", built=NEW)
    await left_unfinished(proxy, make_client(proxy, tmp_path / "origin"), status)
    caplog.set_level("INFO", logger="async_bento")
    events: list[ProgressEvent] = []
    pulled: list[str] = []

    for _ in range(2):
        try:
            pulled.append(str((await make_client(proxy, progress=events.append).pull("svc")).tag))
        except NotFoundError as error:
            pulled.append(str(error))

    assert pulled == ["svc:v1", "svc:v1"]
    assert [event.message for event in events if event.phase in ENDED] == [
        f"passed over {noted}",
        f"already pulled, passed over {noted}",
    ]
    assert f"passed over {noted.partition(' ')[0]}" in caplog.text


async def test_pull_latest_names_each_passed_over(
    registry_with: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path
) -> None:
    proxy = await registry_with("svc:v1", built={"svc:v1": OLD})
    origin = make_client(proxy, tmp_path / "origin")
    for version, built in (("v2", NEW), ("v3", "2024-07-01 00:00:00")):
        make_bento(tmp_path / "origin", f"svc:{version}", built=built)
    await left_unfinished(proxy, origin, "bare")
    proxy.add_fault("PUT /blobs", refuse(400))
    with pytest.raises(PartError):
        await origin.push("svc:v3")
    events: list[ProgressEvent] = []

    await make_client(proxy, progress=events.append).pull("svc")

    assert events[-1].message == "passed over v3 (failed), v2 (without files)"


async def test_pull_latest_all_bare_names_newest(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(await start_proxy())
    for version, built in (("v1", OLD), ("v2", NEW)):
        await api.push(make_bento(home, f"svc:{version}", built=built), bare=True)

    with pytest.raises(NotFoundError, match=r"^cannot pull svc:v2: .* \(pushed without its files, "):
        await api.pull("svc", force=True)


async def test_pull_without_manifest_is_unlimited(
    registry_with: StartProxy, make_client: MakeClient, home: Path
) -> None:
    async def hide(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        record = json.loads(answer.body)  # type: ignore[arg-type]
        return web.json_response(record | {"manifest": None})

    proxy = await registry_with("svc:v1")
    proxy.add_fault("GET .*/bentos/v1$", hide)

    bento = await make_client(proxy, limits={"allowance": 0}).pull("svc:v1")

    assert "data" in contents(bento.path)


async def test_pull_latest_bare_with_files(
    registry_with: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path
) -> None:
    proxy = await registry_with("svc:v1", "svc:v2", built={"svc:v1": OLD, "svc:v2": NEW})
    await make_client(proxy, tmp_path / "origin").push("svc:v2", bare=True, force=True)

    assert str((await make_client(proxy).pull("svc")).tag) == "svc:v2"


@pytest.mark.parametrize("status", ["failed", "uploading"])
async def test_get_latest_is_uploaded(
    registry_with: StartProxy, make_client: MakeClient, tmp_path: Path, status: str
) -> None:
    proxy = await registry_with("svc:v1", built={"svc:v1": OLD})
    make_bento(tmp_path / "origin", "svc:v2", built=NEW)
    await left_unfinished(proxy, make_client(proxy, tmp_path / "origin"), status)

    assert (await make_client(proxy).get("svc")).version == "v1"


async def test_get_latest_without_upload_is_newest(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    proxy = await start_proxy()
    make_bento(home, "svc:v2")
    await left_unfinished(proxy, make_client(proxy), "failed")

    assert (await make_client(proxy).get("svc")).upload_status == "failed"


async def test_latest_paging_skips_failed(
    registry_with: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path
) -> None:
    proxy = await registry_with("svc:v1", built={"svc:v1": OLD})
    routes = make_client(proxy)._kind.routes
    for number in range(45):
        record = CreateBentoSchema(
            version=f"w{number}",
            build_at=datetime(2024, 6, 1, tzinfo=timezone.utc),
            description="",
            manifest=BentoManifestSchema(),
        )
        await routes.create("svc", record)
        await routes.start_upload("svc", f"w{number}")
    pulled = ""

    with suppress(NotFoundError):
        pulled = str((await make_client(proxy).pull("svc")).tag)

    assert pulled == "svc:v1"


async def test_latest_ignores_broken_copy(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v2", built={"svc:v2": NEW})
    (make_bento(home, "svc:v1", built=OLD) / "bento.yaml").unlink()
    (home / "bentos/svc/latest").write_text("v1")
    error = ""

    try:
        await make_client(proxy).pull("svc")
    except StoreError as failure:
        error = str(failure)

    assert error == ""
    assert (home / "bentos/svc/v2/bento.yaml").exists()


async def test_broken_latest_states_remedy(registry_with: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await registry_with("svc:v2", built={"svc:v2": NEW})
    (make_bento(home, "svc:v2", built=NEW) / "bento.yaml").unlink()

    with pytest.raises(StoreError, match="Pull with force to replace the local copy"):
        await make_client(proxy).pull("svc")


@pytest.mark.parametrize("status", ["failed", "uploading"])
async def test_unfinished_upload_described(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, status: str
) -> None:
    """The response of a real Yatai to a download without an object."""
    proxy = await start_proxy("proxy")
    make_bento(home, "svc:v2")
    proxy.add_fault("PUT .*/upload", answer_json(400, {"error": "the disk is on fire"}))
    api = make_client(proxy)
    with pytest.raises(APIStatusError):
        await api.push("svc:v2")
    if status == "uploading":
        await api._kind.routes.start_upload("svc", "v2")
    proxy.add_fault(
        "GET .*/download", answer_json(500, {"error": "copy object: The specified key does not exist."}), times=None
    )

    with pytest.raises(BentoError) as failure:
        await make_client(proxy, elsewhere).pull("svc:v2")

    creator = (await api.get("svc:v2")).creator
    assert creator is not None
    facts = rf"upload_status={status}, started at 20\d\d-\d\d-\d\d \d\d:\d\d UTC by {creator.name}"
    assert re.search(facts, str(failure.value))
    assert ("the disk is on fire" in str(failure.value)) is (status == "failed")
    assert isinstance(failure.value, NotFoundError)
    assert len(proxy.matching("GET .*/download")) == 1
    assert not left_in_scratch(elsewhere)


async def test_unfinished_upload_names_error(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await start_proxy()
    make_bento(home, "svc:v2")
    await left_unfinished(proxy, make_client(proxy), "failed")
    presigned = {"version": "v2", "presigned_download_url": f"{proxy.endpoint}/blobs/v2"}
    proxy.add_fault("presign_download", answer_json(200, presigned), times=None)  # Yatai checks no bucket
    proxy.add_fault("GET /blobs", refuse(403, code="AccessDenied"), times=None)  # S3, where listing is not allowed

    with pytest.raises(PartError, match="AccessDenied") as failure:
        await make_client(proxy, elsewhere).pull("svc:v2")

    assert str(failure.value).startswith("cannot pull svc:v2: its upload never finished (upload_status=failed, started")


async def call_each(api: AsyncBentoAPI, item: Any) -> None:
    calls: list[Awaitable[object]] = [api.pull(item), api.get(item), api.exists(item)]
    for call in calls:
        assert await call


async def test_calls_accept_item_objects(registry_with: StartProxy, make_client: MakeClient) -> None:
    proxy = await registry_with("svc:v1")
    api = make_client(proxy)
    bento = await api.pull("svc:v1")

    for item in (bento, bento.tag, await api.get("svc"), (await api.list())[0], await api.push(bento)):
        await call_each(api, item)
    assert await asyncio.to_thread(BentoStore().get, bento) == bento


@pytest.mark.parametrize(
    ("started", "shown"),
    [(datetime(2024, 1, 2, 3, 4, tzinfo=timezone.utc), "2024-01-02 03:04"), (None, "2023-05-06 07:08")],
)
def test_upload_facts_state_start(started: datetime | None, shown: str) -> None:
    created = datetime(2023, 5, 6, 7, 8, tzinfo=timezone.utc)
    record: Any = SimpleNamespace(
        upload_status="uploading", upload_started_at=started, created_at=created, creator=None
    )
    assert upload_facts(record) == f"upload_status=uploading, started at {shown} UTC"


@pytest.mark.parametrize(
    ("status", "dev", "reason", "bare"),
    [
        ("success", False, "", False),
        ("success", True, "", True),
        ("success", False, BARE_REASON, True),
        ("failed", True, "", False),
        ("uploading", False, BARE_REASON, False),
    ],
)
def test_bare_record_is_of_uploaded_item(status: str, dev: bool, reason: str, bare: bool) -> None:
    manifest = BentoManifestSchema.model_construct(dev=dev)
    record: Any = SimpleNamespace(manifest=manifest, upload_status=status, upload_finished_reason=reason)
    assert is_bare(record) is bare
