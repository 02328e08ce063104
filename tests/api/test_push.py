"""Pushes through the public API: the order of the steps, and all forms of the argument."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import (
    ArchiveError,
    AsyncBentoAPI,
    Bento,
    ConfigError,
    InvalidTagError,
    ModelsError,
    NotFoundError,
    PartError,
    PushesError,
    Tag,
)
from async_bento.errors import APIConnectionError, APIStatusError, AuthenticationError, SourceChangedError
from async_bento.store.items import MAX_README_SIZE
from async_bento.transfer.tar.plan import TarPlan
from tests.builders import make_bento, make_model, random_bytes
from tests.fault_proxy import PUT, Hold, answer_json, lose_answer, refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


async def test_push_steps_are_in_order(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1")

    steps = proxy.steps()
    steps[4:6] = sorted(steps[4:6])  # requested concurrently
    assert steps == [
        "GET svc/v1",
        "GET bento_repositories/svc",
        "POST bento_repositories",
        "POST svc",
        "PATCH svc/v1/start_multipart_upload",
        "PATCH svc/v1/start_upload",
        "PATCH svc/v1/presign_multipart_upload_url",
        "PUT part 1",
        "PATCH svc/v1/complete_multipart_upload",
        "PATCH svc/v1/finish_upload",
    ]
    assert (await make_client(proxy).get("svc:v1")).upload_status == "success"


async def test_fifo_fails_before_creation(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    os.mkfifo(make_bento(home) / "pipe")
    proxy = await start_proxy()

    with pytest.raises(ArchiveError, match="pipe"):
        await make_client(proxy).push("svc:v1")

    assert proxy.steps() == ["GET svc/v1"]


async def test_model_push_steps_in_order(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()

    await make_client(proxy).models.push("mod:m1")

    steps = proxy.steps()
    steps[4:6] = sorted(steps[4:6])  # requested concurrently
    assert steps == [
        "GET mod/m1",
        "GET model_repositories/mod",
        "POST model_repositories",
        "POST mod",
        "PATCH mod/m1/start_multipart_upload",
        "PATCH mod/m1/start_upload",
        "PATCH mod/m1/presign_multipart_upload_url",
        "PUT part 1",
        "PATCH mod/m1/complete_multipart_upload",
        "PATCH mod/m1/finish_upload",
    ]


async def test_uploads_start_concurrently(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    both_requested = asyncio.Event()

    async def wait_for_both(exchange: Exchange) -> web.StreamResponse:
        if len(proxy.matching("start_(multipart_)?upload")) == 2:
            both_requested.set()
        await asyncio.wait_for(both_requested.wait(), 10)
        return await exchange.forward()

    proxy.add_fault("start_(multipart_)?upload", wait_for_both, times=2)
    await make_client(proxy).push("svc:v1")

    assert len(proxy.matching("finish_upload")) == 1


@pytest.mark.parametrize("refused", ["start_upload", "start_multipart_upload"])
async def test_failed_upload_start_reported(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, refused: str
) -> None:
    """Otherwise, a registry that handles the report first would keep `uploading` forever."""
    make_bento(home)
    proxy = await start_proxy()
    other = "start_multipart_upload" if refused == "start_upload" else "start_upload"
    hold = Hold()
    proxy.add_fault(f"/{refused}", answer_json(400, {"error": "no"}))
    proxy.add_fault(f"/{other}", hold)
    push = asyncio.create_task(make_client(proxy).push("svc:v1"))
    await asyncio.wait_for(hold.arrived.wait(), 10)
    await asyncio.sleep(0.1)
    assert not proxy.matching("finish_upload")
    hold.released.set()

    with pytest.raises(APIStatusError, match="400 Bad Request: no"):
        await push
    (report,) = proxy.matching("finish_upload")
    assert report.json["status"] == "failed"


async def test_push_uploads_models_first(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    tags = [f"mod:m{number}" for number in range(4)]
    for tag in tags:
        make_model(home, tag)
    make_bento(home, models=tags)
    proxy = await start_proxy()

    result = await make_client(proxy).push("svc:v1")

    steps = proxy.steps()
    assert steps.count("GET svc/v1") == 2  # before the models, and after them
    first_of_the_bento = steps.index("GET bento_repositories/svc")
    assert all(steps.index(f"PATCH mod/m{number}/finish_upload") < first_of_the_bento for number in range(4))
    assert steps.count("GET model_repositories/mod") == steps.count("POST model_repositories") == 1
    assert [str(model.tag) for model in result.models] == tags
    assert (await make_client(proxy).get("svc:v1")).manifest.models == tags  # type: ignore[union-attr]


async def test_present_item_costs_one_get(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    tags = [f"mod{number}:m1" for number in range(3)]
    for tag in tags:
        make_model(home, tag)
    make_bento(home, models=tags)
    proxy = await start_proxy()
    api = make_client(proxy)
    await api.push("svc:v1")
    proxy.requests.clear()
    all_of_them = Hold(count=4)
    proxy.add_fault("GET", all_of_them, times=None)

    pushing = asyncio.create_task(api.push("svc:v1"))
    await all_of_them.arrived.wait()
    all_of_them.released.set()
    result = await pushing

    assert result.skipped
    assert all(model.skipped for model in result.models)
    assert sorted(proxy.steps()) == ["GET mod0/m1", "GET mod1/m1", "GET mod2/m1", "GET svc/v1"]


async def test_models_upload_concurrently(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "one:m1")
    make_model(home, "two:m1")
    make_bento(home, models=["one:m1", "two:m1"])
    proxy = await start_proxy()
    both = Hold(count=2)
    proxy.add_fault(PUT, both, times=None)

    pushing = asyncio.create_task(make_client(proxy).push("svc:v1"))
    await both.arrived.wait()
    both.released.set()
    await pushing


async def test_failed_model_stops_bento_upload(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "one:m1")
    make_model(home, "two:m1")
    make_bento(home, models=["one:m1", "two:m1"])
    proxy = await start_proxy()
    slow = Hold()
    proxy.add_fault("PUT /blobs/models/two", slow)
    proxy.add_fault("PUT /blobs/models/one", refuse(400, code="InvalidRequest"))

    pushing = asyncio.create_task(make_client(proxy).push("svc:v1"))
    await slow.arrived.wait()
    await proxy.wait_for("finish_upload", 1)  # the failed push
    slow.released.set()

    message = r"cannot push svc:v1: its model one:m1 failed: .*InvalidRequest"
    with pytest.raises(PartError, match=message) as failure:
        await pushing
    assert failure.value.status == 400
    assert proxy.steps("/bento") == ["GET svc/v1"]  # a check only: no report
    assert [request.json["status"] for request in proxy.matching("finish_upload")] == ["failed", "success"]


async def test_push_names_failed_models(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "one:m1")
    make_model(home, "two:m1")
    make_bento(home, models=["one:m1", "two:m1", "gone:m1"])
    proxy = await start_proxy()
    proxy.add_fault("PUT /blobs/models/one", refuse(400, code="InvalidRequest"))

    with pytest.raises(ModelsError) as failure:
        await make_client(proxy).push("svc:v1")

    first, one, gone = str(failure.value).splitlines()
    assert first == "cannot push svc:v1: 2 of its 3 models failed:"
    assert one.startswith("  one:m1: ")
    assert "InvalidRequest" in one
    assert gone.startswith("  gone:m1: the model is neither in ")
    assert {tag: type(error) for tag, error in failure.value.failures.items()} == {
        "one:m1": PartError,
        "gone:m1": NotFoundError,
    }
    assert failure.value.__cause__ is failure.value.failures["one:m1"]


async def test_same_model_error_shown_once(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "one:m1")
    make_bento(home, models=["gone:m2", "one:m1", "gone:m1"])

    with pytest.raises(ModelsError) as failure:
        await make_client(await start_proxy()).push("svc:v1")

    _, gone = str(failure.value).splitlines()
    assert gone.startswith("  gone:m2, gone:m1: the model is neither in ")
    assert [*failure.value.failures] == ["gone:m2", "gone:m1"]


async def test_unexpected_error_stops_push(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, "one:m1")
    make_model(home, "two:m1")
    make_bento(home, models=["one:m1", "two:m1"])
    proxy = await start_proxy()
    slow = Hold()
    proxy.add_fault("PUT /blobs/models/two", slow)
    scan = TarPlan.scan

    def broken(root: Path, **options: Any) -> TarPlan:
        if root.parent.name == "one":
            raise ZeroDivisionError
        return scan(root, **options)

    monkeypatch.setattr(TarPlan, "scan", broken)

    with pytest.raises(ZeroDivisionError):
        await make_client(proxy).push("svc:v1")
    slow.released.set()


async def test_existing_repository_reused(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, "svc:v1")
    make_bento(home, "svc:v2")
    proxy = await start_proxy()
    api = make_client(proxy)
    await api.push("svc:v1")
    proxy.requests.clear()

    await api.push("svc:v2")

    assert not proxy.matching("POST bento_repositories$")


async def loses_the_race(exchange: Exchange) -> web.StreamResponse:
    """Another process has created the record first, and the registry refuses a second one."""
    await exchange.forward()
    return web.json_response({"error": "name already exists"}, status=400)


@pytest.mark.parametrize("fault", [loses_the_race, lose_answer], ids=["exists", "lost answer"])
async def test_racing_repository_is_reused(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, fault: Callable[..., Awaitable[web.StreamResponse]]
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault("POST /api/v1/bento_repositories$", fault)

    await make_client(proxy).push("svc:v1")

    assert (await make_client(proxy).get("svc:v1")).upload_status == "success"


@pytest.mark.parametrize("fault", [loses_the_race, lose_answer], ids=["exists", "lost answer"])
async def test_racing_record_is_updated(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, fault: Callable[..., Awaitable[web.StreamResponse]]
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault("POST .*/bentos$", fault)

    await make_client(proxy).push("svc:v1")

    assert "PATCH svc/v1" in proxy.steps()
    assert (await make_client(proxy).get("svc:v1")).upload_status == "success"


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("step", ["POST /api/v1/bento_repositories$", "POST .*/bentos$"])
async def test_refused_creation_raises(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, step: str, is_checked: bool
) -> None:
    """The error is that of the creation, also if the registry does not tell whether the record exists."""
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault(step, answer_json(400, {"error": "quota exceeded"}))
    if not is_checked:
        for record in ("bento_repositories/svc$", "bentos/v1$"):
            proxy.add_fault(f"GET .*/{record}", answer_json(409, {"error": "no answer"}), skip=1, times=None)

    with pytest.raises(APIStatusError, match="quota exceeded"):
        await make_client(proxy).push("svc:v1")

    assert not proxy.matching(PUT)


async def test_push_after_failed_upload_updates(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault(PUT, refuse(400))
    with pytest.raises(PartError):
        await make_client(proxy).push("svc:v1")
    proxy.requests.clear()

    result = await make_client(proxy).push("svc:v1")

    assert not result.skipped
    assert "PATCH svc/v1" in proxy.steps()
    assert not proxy.matching("POST")
    assert (await make_client(proxy).get("svc:v1")).upload_status == "success"


async def test_present_item_is_skipped(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    proxy.requests.clear()
    events: list[ProgressEvent] = []
    started = time.monotonic()

    result = await make_client(proxy, progress=events.append).push("svc:v1")

    assert result.skipped
    assert result.models[0].skipped
    assert 0 < result.models[0].seconds <= result.seconds <= time.monotonic() - started
    assert (result.bytes_sent, result.parts) == (0, 0)
    assert {request.method for request in proxy.requests} == {"GET"}
    assert [(event.kind, event.message) for event in events if event.phase == "skipped"] == [
        ("model", "already pushed"),
        ("bento", "already pushed"),
    ]


async def test_failed_check_does_not_skip_bento(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()
    proxy.add_fault("GET .*/bentos/v1$", answer_json(409, {"error": "no answer"}))

    result = await make_client(proxy).push("svc:v1")

    assert (result.skipped, result.parts) == (False, 1)


async def test_push_counts_skipped_models(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    for name in ("one", "two", "three"):
        make_model(home, f"{name}:m1")
    make_bento(home, models=["one:m1", "two:m1", "three:m1"])
    proxy = await start_proxy()
    await make_client(proxy).models.push("two:m1")
    events: list[ProgressEvent] = []

    await make_client(proxy, progress=events.append).push("svc:v1")

    assert (events[-1].kind, events[-1].message) == ("bento", "3 models, 1 skipped")


async def test_force_push_uploads_again(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    proxy.requests.clear()

    result = await make_client(proxy).push("svc:v1", force=True)

    assert not result.skipped
    assert len(proxy.matching(PUT)) == 2
    assert {"PATCH svc/v1", "PATCH mod/m1"} <= {*proxy.steps()}


async def test_bare_push_uploads_nothing(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()

    result = await make_client(proxy).push("svc:v1", bare=True)

    (create,) = proxy.matching("POST svc$")
    (finish,) = proxy.matching("finish_upload")
    assert create.json["manifest"]["dev"] is True
    assert finish.json == {"status": "success", "reason": "bento for development"}
    assert not proxy.matching("start_upload|PUT|presign")
    assert (result.bytes_sent, result.parts, result.skipped) == (0, 0, False)


async def test_bare_push_uploads_models(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, models=["mod:m1"])
    make_model(home, "mod:m1")
    proxy = await start_proxy()

    result = await make_client(proxy).push("svc:v1", bare=True)

    (model,) = result.models
    assert model.parts == 1
    assert len(proxy.matching(PUT)) == 1
    assert not proxy.matching("svc/v1/start_upload")


async def test_push_is_not_marked_dev(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1")

    assert proxy.matching("POST svc$")[0].json["manifest"]["dev"] is False


async def test_record_describes_the_bento(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, files={"README.md": b"# Hi\n"}, labels={"team": "blue"})
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1")

    (create,) = proxy.matching("POST svc$")
    assert create.json["version"] == "v1"
    assert create.json["build_at"] == "2024-05-06 07:08:09.000010"
    assert create.json["description"] == "# Hi\n"
    assert create.json["labels"] == [{"key": "team", "value": "blue"}]


async def test_readme_of_3_mib_becomes_description(
    start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    readme = ("Übersicht: " + "x" * 68 + "\n").encode() * 38_000
    readme += bytes(MAX_README_SIZE - len(readme)).replace(b"\0", b"x")
    versions = [f"svc:v{number}" for number in range(4)]
    for version in versions:
        make_bento(home, version, files={"README.md": readme})
    api = make_client(await start_proxy())

    for version in [*versions, versions[0]]:
        await api.push(version, force=True)

    record = await api.get("svc:v0")
    assert (record.upload_status, record.description) == ("success", readme.decode())
    assert len(await api.list()) == 4  # more than fits into one page


class Foreign:
    """Like `bentoml.Bento`: a tag and a path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tag = Tag("svc", "v1")


class ForeignTag:
    """Like `bentoml.Tag`, whose `path` is a method."""

    name = "svc"
    version = "v1"

    def path(self) -> str:
        return "svc/v1"


FORMS: dict[str, Callable[[Path], object]] = {
    "bento": Bento.from_path,
    "tag": lambda _: Tag("svc", "v1"),
    "str tag": lambda _: "svc:v1",
    "name": lambda _: "svc",
    "latest": lambda _: "svc:latest",
    "str path": str,
    "path": lambda path: path,
    "object with a path": lambda path: Foreign(str(path)),
    "foreign tag": lambda _: ForeignTag(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
async def test_push_accepts_bento_forms(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, form: Callable[[Path], object]
) -> None:
    given = await asyncio.to_thread(form, make_bento(home))
    proxy = await start_proxy()

    result = await make_client(proxy).push(given)  # type: ignore[arg-type]

    assert result.tag == Tag("svc", "v1")
    assert proxy.matching(PUT)


class NamedModel:
    """Like `bentoml.models.BentoModel`: a tag, and no path of its own."""

    tag = ForeignTag()


async def test_push_accepts_tagged_object(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "svc:v1")
    proxy = await start_proxy()

    result = await make_client(proxy).models.push(NamedModel())

    assert result.tag == Tag("svc", "v1")
    assert proxy.matching(PUT)


class HubModel:
    """Like `bentoml.models.HuggingFaceModel`: neither a tag nor a path."""

    model_id = "org/bert"
    revision = "main"


async def test_hub_model_is_rejected(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()

    with pytest.raises(InvalidTagError, match="invalid tag of type HubModel"):
        await make_client(proxy).models.push(HubModel())  # type: ignore[arg-type]

    assert not proxy.requests


async def test_push_accepts_relative_path(
    start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(tmp_path / "exported")
    monkeypatch.chdir(tmp_path / "exported/bentos/svc")
    proxy = await start_proxy()

    result = await make_client(proxy).push(f".{os.sep}v1")

    assert result.tag == Tag("svc", "v1")


async def test_push_accepts_cwd(
    start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_bento(tmp_path / "exported"))
    proxy = await start_proxy()

    assert (await make_client(proxy).push(".")).tag == Tag("svc", "v1")
    assert (await make_client(proxy).push(Path())).skipped


async def test_bento_tar_excludes_models(start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path) -> None:
    bento = make_bento(tmp_path / "exported", models=["mod:m1"], files={"src/models/kept.py": b"pass\n"})
    make_model(bento, files={"weights": random_bytes(1000)})
    proxy = await start_proxy("auto")

    result = await make_client(proxy).push(bento)

    (put,) = proxy.matching("PUT /blobs/bentos")
    with tarfile.open(fileobj=io.BytesIO(put.body)) as tar:
        names = tar.getnames()
    assert "./src/models/kept.py" in names
    assert not [name for name in names if name.startswith("./models")]
    assert [str(model.tag) for model in result.models] == ["mod:m1"]
    assert proxy.matching("PUT /blobs/models")


async def test_model_uploads_every_file(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"models/weights": random_bytes(1000)})
    proxy = await start_proxy("auto")

    await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching(PUT)
    with tarfile.open(fileobj=io.BytesIO(put.body)) as tar:
        assert {"./model.yaml", "./models", "./models/weights"} <= {*tar.getnames()}


async def test_remote_only_model_suffices(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(elsewhere)
    make_model(home, "mod:m10")
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()
    await make_client(proxy, elsewhere).models.push("mod:m1")
    events: list[ProgressEvent] = []

    result = await make_client(proxy, progress=events.append).push("svc:v1")

    assert result.models[0].skipped
    assert ("mod:m1", "skipped", "not stored locally, already pushed") in [
        (event.tag, event.phase, event.message) for event in events
    ]


async def test_missing_model_is_named(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()

    with pytest.raises(NotFoundError, match=r"cannot push svc:v1: its model mod:m1 .* neither in .*models nor in"):
        await make_client(proxy).push("svc:v1")

    assert proxy.steps("svc") == ["GET svc/v1"]  # a check only: no report


async def test_incomplete_model_is_named(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(elsewhere)
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy()
    proxy.add_fault(PUT, refuse(400))
    with pytest.raises(PartError):
        await make_client(proxy, elsewhere).models.push("mod:m1")

    with pytest.raises(NotFoundError, match="mod:m1"):
        await make_client(proxy).push("svc:v1")


def replaced_before_the_scan(monkeypatch: pytest.MonkeyPatch, replace: Callable[[], object]) -> None:
    scan = TarPlan.scan

    def late(root: Path, **options: Any) -> TarPlan:
        replace()
        return scan(root, **options)

    monkeypatch.setattr(TarPlan, "scan", late)


async def test_replaced_bento_is_consistent(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home)
    replaced_before_the_scan(monkeypatch, lambda: make_bento(home, files={"more": random_bytes(5000)}))
    proxy = await start_proxy()

    await make_client(proxy).push("svc:v1")

    (record,) = (request.json for request in proxy.matching("POST .*/bentos$"))
    assert record["manifest"]["size_bytes"] > 5000


async def test_swapped_bento_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bento(home)
    other = make_bento(home, "svc:v2") / "bento.yaml"
    replaced_before_the_scan(monkeypatch, lambda: shutil.copy(other, path))
    proxy = await start_proxy()

    with pytest.raises(SourceChangedError, match=r"cannot push svc:v1: .*bento.yaml belongs to svc:v2 now"):
        await make_client(proxy).push(path)

    assert not proxy.matching("POST .*/bentos$")


@pytest.mark.parametrize("threads", [0, -1])
async def test_zero_threads_are_rejected(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, threads: int
) -> None:
    make_bento(home)
    make_model(home)
    proxy = await start_proxy()

    with pytest.raises(ConfigError, match=f"invalid threads {threads}"):
        await make_client(proxy).push("svc:v1", threads=threads)
    with pytest.raises(ConfigError, match=f"invalid threads {threads}"):
        await make_client(proxy).models.push("mod:m1", threads=threads)

    assert not proxy.requests


async def test_result_describes_the_upload(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    make_bento(home, models=["mod:m1"])
    proxy = await start_proxy("auto")
    started = time.monotonic()

    result = await make_client(proxy).push("svc:v1")

    (model,) = result.models
    sizes = {request.path.rpartition("/")[0]: len(request.body) for request in proxy.matching(PUT)}
    assert (str(result.tag), result.bytes_sent, result.parts) == ("svc:v1", sizes["/blobs/bentos/svc/v1"], 1)
    assert (str(model.tag), model.bytes_sent, model.parts) == ("mod:m1", sizes["/blobs/models/mod/m1"], 1)
    assert not any((result.skipped, result.resumed, model.skipped, model.resumed))
    assert 0 < model.seconds <= result.seconds <= time.monotonic() - started


async def test_raising_listener_is_ignored(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()

    def listen(event: ProgressEvent) -> None:
        raise ValueError("no")

    assert (await make_client(proxy, progress=listen).push("svc:v1")).parts == 1


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("fault", ["token", "endpoint"])
async def test_fatal_error_precedes_models(start_proxy: StartProxy, home: Path, fault: str, force: bool) -> None:
    """Thirty models raise one error, not thirty."""
    tags = [f"mod:m{number}" for number in range(30)]
    for tag in tags:
        make_model(home, tag)
    make_bento(home, models=tags)
    proxy = await start_proxy()
    endpoint = proxy.endpoint if fault == "token" else "http://127.0.0.1:1"
    events: list[ProgressEvent] = []

    async with AsyncBentoAPI(endpoint=endpoint, api_token="wrong", progress=events.append) as api:
        with pytest.raises(AuthenticationError if fault == "token" else APIConnectionError) as raised:
            await api.push("svc:v1", force=force)

    assert "\n" not in str(raised.value)
    assert len(proxy.requests) == (1 if fault == "token" else 0)
    assert not events


async def test_list_push_keeps_order(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "mod:m1")
    for name in ("a:v1", "b:v1"):
        make_bento(home, name, models=["mod:m1"])
    proxy = await start_proxy()
    api = make_client(proxy)

    results = await api.push(["b:v1", Tag("a", "v1"), home / "bentos" / "b" / "v1"], force=True)
    models = await api.models.push(("mod:m1",))

    assert [str(result.tag) for result in results] == ["b:v1", "a:v1", "b:v1"]
    assert sorted(result.skipped for result in results) == [False, False, True]  # b:v1 appears twice
    assert len(proxy.matching("PATCH .*/models/m1/start_upload")) == 1  # shared by both bentos
    assert [(str(result.tag), result.skipped) for result in models] == [("mod:m1", True)]
    assert await api.push([]) == []


async def test_list_push_names_failures(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "bad:m1")
    make_bento(home, "a:v1", models=["bad:m1"])
    make_bento(home, "b:v1")
    make_bento(home, "c:v1", models=["bad:m1"])
    proxy = await start_proxy()
    proxy.add_fault("PUT /blobs/models/bad", refuse(400, code="InvalidRequest"), times=None)

    with pytest.raises(PushesError) as failure:
        await make_client(proxy).push(["a:v1", "gone:v1", "b:v1", "c:v1"])

    first, *others = str(failure.value).splitlines()
    assert first == "cannot push 3 of 4 bentos:"
    assert [line.split(": ")[0].strip() for line in others] == ["a:v1", "gone:v1", "c:v1"]
    assert {tag: type(error) for tag, error in failure.value.failures.items()} == {
        "a:v1": PartError,
        "gone:v1": NotFoundError,
        "c:v1": PartError,
    }
    assert len(proxy.matching("PUT /blobs/models/bad")) == 1
    assert await make_client(proxy).exists("b:v1")
