"""Labels: changes, selection by pulls, and pushes, on our registry and on a simulated Yatai."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from aiohttp import web

from async_bento import (
    APIResponseError,
    AsyncBentoAPI,
    AuthenticationError,
    BentoAPI,
    ConfigError,
    NotFoundError,
    NotSupportedError,
    PartError,
)
from async_bento.api.labels import check_changes
from async_bento.registry.tokens import Actor
from tests.builders import make_bento, make_model
from tests.fault_proxy import PART, Hold, answer_json
from tests.registry.test_access import tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry
    from async_bento.rest.schemas import ItemSchema
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy

OLD, NEW = "2024-01-01 00:00:00", "2024-02-01 00:00:00"
RECORD = "(GET|PATCH) /api/v1/{0}_repositories/[a-z]+/{0}s/[a-z0-9]+$"


def labels_of(record: ItemSchema) -> dict[str, str]:
    return {label.key: label.value for label in record.labels}


@dataclass
class Yatai:
    """A record of Yatai, as `api-server/services/label.go` keeps its labels: the PATCH replaces the whole set."""

    kind: str
    labels: dict[str, str]
    manifest: Any = field(
        default_factory=lambda: {"size_bytes": 2**53 + 1, "future": {"a": [None, 1.5, {}], "ü": "é"}, "envs": None}
    )
    sent: list[Any] = field(default_factory=list)

    def item(self) -> dict[str, Any]:
        labels = [{"key": key, "value": value} for key, value in reversed(self.labels.items())]  # by descending id
        return {
            "uid": "u1",
            "name": "v1",
            "version": "v1",
            "labels": labels,
            "description": "# Hi",
            "manifest": self.manifest,
            "upload_status": "success",
            "upload_finished_reason": "",
            "presigned_upload_url": "",
        }

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        if exchange.request.method == "GET":
            more = {"models": []} if self.kind == "bento" else {}
            return web.json_response({**self.item(), **more, "repository": {"name": "svc", "uid": "r1"}})
        body = exchange.logged.json
        self.sent.append(body)
        self.manifest = body.get("manifest") or self.manifest
        if body.get("labels") is not None:
            self.labels = {label["key"]: label["value"] for label in body["labels"]}
        return web.json_response(self.item())


async def push(api: AsyncBentoAPI, home: Path, **stages: str) -> None:
    """Push versions of a bento, each newer than the one before, with a stage."""
    for number, (version, stage) in enumerate(stages.items()):
        labels = {"stage": stage} if stage else {}
        await api.push(make_bento(home, f"svc:{version}", built=f"2024-01-0{number + 1} 00:00:00", labels=labels))


@pytest.mark.parametrize("kind", ["bento", "model"])
async def test_set_labels_keeps_manifest(start_proxy: StartProxy, make_client: MakeClient, kind: str) -> None:
    proxy = await start_proxy()
    yatai = Yatai(kind, {"team": "a b", "stage": "dev", "odd key,": "1"})
    manifest = yatai.manifest
    proxy.add_fault(RECORD.format(kind), yatai, times=None)
    client = make_client(proxy)
    api = client.models if kind == "model" else client
    record = await api.set_labels("svc:v1", {"stage": "prod", "odd key,": None, "none": None, "empty": ""})
    wanted = {"team": "a b", "stage": "prod", "empty": ""}
    assert (labels_of(record), str(record.tag), yatai.labels) == (wanted, "svc:v1", wanted)
    (sent,) = yatai.sent
    assert json.dumps((sent["manifest"], sent["description"])) == json.dumps((manifest, "# Hi"))
    assert sent.keys() == {"manifest", "description", "labels"}
    await api.set_labels("svc:v1", {"stage": "prod", "none": None})
    assert len(yatai.sent) == 1
    await api.set_labels("svc:v1", dict.fromkeys(wanted))
    assert (yatai.labels, yatai.sent[-1]["labels"]) == ({}, [])


async def test_set_labels_changes_registry(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    """An immutable registry refuses every change of a manifest."""
    api = make_client(await start_proxy(immutable=True))
    make_model(home, "mod:m1", metadata={"a": [1, {"b": None}]})
    await api.push(make_bento(home, "svc:v1", models=["mod:m1"], labels={"team": "nlp"}))
    before = await api.get("svc:v1")
    record = await api.set_labels("svc:v1", {"stage": "prod"})
    after = await api.get("svc:v1")
    assert labels_of(record) == labels_of(after) == {"team": "nlp", "stage": "prod"}
    changed = {"labels", "updated_at", "repository"}
    assert after.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    assert [str(model.tag) for model in getattr(record, "models", [])] == ["mod:m1"]
    model = await api.models.get("mod:m1")
    assert labels_of(await api.models.set_labels("mod:m1", {"k": "v"})) == {"k": "v"}
    assert (await api.models.get("mod:m1")).manifest == model.manifest


async def test_set_labels_defaults_to_latest(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(await start_proxy())
    await push(api, home, v1="", v2="")
    for tag in ("svc", "svc:latest"):
        record = await api.set_labels(tag, {tag.replace(":", "-"): "x"})
        assert record.version == "v2"
    assert labels_of(record) == {"svc": "x", "svc-latest": "x"}
    assert labels_of(await api.get("svc:v1")) == {}


INVALID: list[tuple[Any, str]] = [
    ({"": "x"}, "invalid key '' of a label: it is not text, or empty"),
    ({"a b": "x"}, "invalid key 'a b' of a label: registries cannot search for it. Leave out spaces, ',' and '='"),
    ({"a=b": "x"}, "invalid key 'a=b'"),
    ({"a,b": "x"}, "invalid key 'a,b'"),
    ({"k" * 129: "x"}, "it has 129 characters. The limit is 128."),
    ({"k": "x" * 129}, "it has 129 characters. The limit is 128."),
    ({"k": "a\nb"}, "it has line breaks or control characters."),
    ({"k": 1}, "invalid value 1 of label 'k': it is not text. Pass a str."),
    ("stage=prod", "invalid labels 'stage=prod': they are not a mapping. Pass a dict like {'stage': 'prod'}."),
]


async def test_invalid_label_is_rejected(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_bento(home)
    for labels, message in INVALID:
        for call in (api.set_labels("svc:v1", labels), api.push("svc:v1", labels=labels)):
            with pytest.raises(ConfigError) as caught:
                await call
            assert message in str(caught.value)
    assert proxy.requests == []


def test_label_has_up_to_128_characters() -> None:
    longest = {"k" * 128: "v" * 128}
    assert check_changes(longest) == longest


async def test_missing_item_is_not_found(start_proxy: StartProxy, make_client: MakeClient) -> None:
    api = make_client(await start_proxy())
    for tag in ("svc", "svc:v1"):
        with pytest.raises(NotFoundError, match=rf"^no bento {tag} in the registry at "):
            await api.set_labels(tag, {"stage": "prod"})


async def test_refused_set_labels_raises(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    make_bento(home)
    await api.push("svc:v1")
    item = await api.get("svc:v1")
    for status, message in ((404, "Not Found"), (405, "Method Not Allowed")):
        proxy.add_fault("PATCH .*/v1$", answer_json(status, {"error": message}))
        with pytest.raises(
            NotSupportedError, match=r"^cannot set labels of bento svc:v1: .* has no route to change bentos"
        ):
            await api.set_labels("svc:v1", {"stage": "prod"})
    proxy.add_fault("PATCH .*/v1$", answer_json(400, {"error": "get bento svc:v1: record not found"}))
    with pytest.raises(NotFoundError, match=r"^no bento svc:v1 in the registry"):
        await api.set_labels("svc:v1", {"stage": "prod"})
    proxy.add_fault("PATCH .*/v1$", answer_json(200, item.model_dump(mode="json")))
    with pytest.raises(APIResponseError, match="has ignored the change, or another client has changed the labels"):
        await api.set_labels("svc:v1", {"stage": "prod"})
    proxy.add_fault("GET .*/v1$", answer_json(200, {"labels": []}))
    with pytest.raises(APIResponseError, match=r"GET bento_repositories/svc/bentos/v1: .* version: "):
        await api.set_labels("svc:v1", {"stage": "prod"})


async def test_read_only_token_is_rejected(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    make_bento(home)
    await make_client(proxy).push("svc:v1")
    token = await tokens_of(proxy.registry).create("reader", "read", by=Actor("test"))  # type: ignore[arg-type]
    message = "access denied: the token reader has the role read, and this request needs the role push"
    async with AsyncBentoAPI(endpoint=proxy.endpoint, api_token=token, progress=False) as api:
        with pytest.raises(AuthenticationError, match=message):
            await api.set_labels("svc:v1", {"stage": "prod"})
        with pytest.raises(AuthenticationError, match=message):  # the push would skip the item
            await api.push("svc:v1", labels={"stage": "prod"})
        assert labels_of(await api.set_labels("svc:v1", {"stage": None})) == {}


async def test_pull_label_selects_latest(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await start_proxy()
    await push(make_client(proxy), home, v1="prod", v2="prod", v3="dev")
    make_bento(elsewhere, "svc:mine", built="2025-01-01 00:00:00")
    api = make_client(proxy, elsewhere)
    assert str((await api.pull("svc", label="stage=prod")).tag) == "svc:v2"
    assert str((await api.pull("svc:latest", label={"stage": "prod"})).tag) == "svc:v2"
    await api.set_labels("svc:v2", {"stage": None})
    await api.set_labels("svc:v1", {"region": "eu"})
    assert str((await api.pull("svc", label="stage=prod")).tag) == "svc:v1"
    bento = await api.pull("svc", label={"stage": "prod", "region": "eu"}, path=elsewhere / "out")
    assert str(bento.tag) == "svc:v1"
    with pytest.raises(NotFoundError, match=r"^no bento svc with the label region=us in the registry"):
        await api.pull("svc", label="region=us")
    with pytest.raises(NotFoundError, match=r"^no bento svc with the labels stage=prod, region=us in the registry"):
        await api.pull("svc", label={"stage": "prod", "region": "us"})


async def test_pull_label_skips_failed_upload(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    await push(api, home, v1="prod")
    proxy.add_fault(PART, answer_json(400, {}))
    with pytest.raises(PartError):
        await push(api, home, v1="", v2="prod")
    assert labels_of(await api.get("svc:v2")) == {"stage": "prod"}
    assert str((await make_client(proxy, elsewhere).pull("svc", label="stage=prod")).tag) == "svc:v1"


async def test_pull_label_filters_locally(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    await push(api, home, v1="prod", v2="dev")
    everything = [record.model_dump(mode="json", by_alias=True) for record in await api.list()]
    page = {"start": 0, "count": 20, "total": 2, "items": everything}
    proxy.add_fault(r"GET .*/bentos\?", answer_json(200, page), times=None)
    assert str((await make_client(proxy, elsewhere).pull("svc", label="stage=prod")).tag) == "svc:v1"


async def test_pull_label_and_query_combine(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await start_proxy()
    for version, labels in (("m1", {"stage": "prod", "a": "1"}), ("m2", {"stage": "prod"}), ("m3", {"a": "1"})):
        await make_client(proxy).models.push(make_model(home, f"mod:{version}", labels=labels))
    api = make_client(proxy, elsewhere).models
    assert str((await api.pull("mod", label="stage=prod")).tag) == "mod:m2"
    assert str((await api.pull("mod", label="stage=prod", query="label:a=1")).tag) == "mod:m1"


UNSELECTABLE: list[tuple[str, Any, str]] = [
    ("svc", "stage!=prod", "pass query='-label:stage=prod'"),
    ("svc:v1", "stage=prod", "cannot select svc:v1 by label: the tag names a version. Leave the version or"),
    ("svc", "stage", "invalid label 'stage': it has no value. Pass `key=value`, or a dict."),
    ("svc", {"stage": ""}, "registries cannot search for a value that is empty or has spaces or commas"),
    ("svc", {"stage": "a b"}, "registries cannot search for"),
    ("svc", {"stage": "a,b"}, "registries cannot search for"),
    ("svc", {"stage": None}, "invalid label 'stage': it has no value"),
]


async def test_invalid_pull_label_rejected(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    for tag, label, message in UNSELECTABLE:
        for call in (api.pull(tag, label=label), api.models.pull(tag, label=label)):
            with pytest.raises(ConfigError) as caught:
                await call
            assert message in str(caught.value)
    assert proxy.requests == []


@pytest.mark.parametrize("way", ["presigned_url", "proxy"])
async def test_push_labels_are_merged(start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str) -> None:
    api = make_client(await start_proxy(way))
    make_model(home, "mod:m1", labels={"kind": "tree"})
    bentos = [make_bento(home, f"svc:{v}", models=["mod:m1"], labels={"team": "a", "stage": "dev"}) for v in "12"]
    results = await api.push(bentos, labels={"stage": "prod"})
    for result in results:
        assert labels_of(await api.get(result.tag)) == {"team": "a", "stage": "prod"}
        assert (result.labels, result.dropped_labels, result.models[0].labels) == (("stage=prod",), (), ())
    assert labels_of(await api.models.get("mod:m1")) == {"kind": "tree"}
    await api.models.push("mod:m1", labels={"stage": "prod"})
    assert labels_of(await api.models.get("mod:m1")) == {"kind": "tree", "stage": "prod"}


async def test_skipped_push_sets_labels(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(await start_proxy())
    make_model(home, "mod:m1")
    bento = make_bento(home, models=["mod:m1"], labels={"team": "a"})
    await api.push(bento)
    await api.set_labels("svc:v1", {"owner": "ada"})
    notes: list[str] = []
    async with AsyncBentoAPI(api._resources.client, progress=lambda event: notes.append(event.message)) as listened:
        result = await listened.push(bento, labels={"stage": "prod", "team": "a"})
    assert (result.skipped, result.labels) == (True, ("stage=prod",))
    assert "already pushed, set stage=prod" in notes
    assert labels_of(await api.get("svc:v1")) == {"team": "a", "owner": "ada", "stage": "prod"}
    assert labels_of(await api.models.get("mod:m1")) == {}


async def test_push_force_names_dropped(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = make_client(await start_proxy())
    make_model(home, "mod:m1")
    bento = make_bento(home, models=["mod:m1"], labels={"team": "a", "stage": "dev"})
    await api.push(bento)
    assert (await api.push(bento, force=True)).dropped_labels == ()
    assert "dropped" not in caplog.text
    await api.set_labels("svc:v1", {"stage": "prod", "owner": "ada", "rank": "1"})
    await api.models.set_labels("mod:m1", {"size": "big"})
    result = await api.push(bento, force=True, labels={"rank": "2"})
    assert labels_of(await api.get("svc:v1")) == {"team": "a", "stage": "dev", "rank": "2"}
    assert result.dropped_labels == ("stage=prod", "owner=ada")
    assert result.models[0].dropped_labels == ("size=big",)
    hint = " Use keep_labels (--keep-labels) to keep such labels."
    assert [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()] == [
        f"the push has dropped labels of model mod:m1 in the registry: size=big.{hint}",
        f"the push has dropped labels of bento svc:v1 in the registry: stage=prod, owner=ada.{hint}",
    ]


@pytest.mark.parametrize("way", ["presigned_url", "auto", "proxy"])
async def test_keep_labels_keeps_added_labels(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str
) -> None:
    api = make_client(await start_proxy(way))
    make_model(home, "mod:m1")
    bento = make_bento(home, models=["mod:m1"], labels={"team": "a"})
    await api.push(bento)
    await api.set_labels("svc:v1", {"stage": "prod", "team": "b"})
    await api.models.set_labels("mod:m1", {"size": "big"})
    make_bento(home, models=["mod:m1"], labels={"team": "c"})
    result = await api.push(bento, force=True, keep_labels=True)
    assert labels_of(await api.get("svc:v1")) == {"stage": "prod", "team": "c"}
    assert result.dropped_labels == ("team=b",)
    assert labels_of(await api.models.get("mod:m1")) == {"size": "big"}


async def test_keep_labels_set_during_push(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy("proxy")
    api = make_client(proxy)
    bento = make_bento(home)
    await api.push(bento)
    upload = Hold()
    proxy.add_fault("PUT .*/upload", upload)

    async def promote() -> None:
        await upload.arrived.wait()
        await api.set_labels("svc:v1", {"stage": "prod"})
        upload.released.set()

    async with anyio.create_task_group() as group:
        group.start_soon(promote)
        await api.push(bento, force=True, keep_labels=True)
    assert labels_of(await api.get("svc:v1")) == {"stage": "prod"}


def test_blocking_labels_round_trip(served: LocalRegistry, home: Path) -> None:
    make_model(home, "mod:m1")
    with BentoAPI(endpoint=served.endpoint, api_token=served.api_token, progress=False) as api:
        api.push(make_bento(home), labels={"stage": "prod"})
        api.models.push("mod:m1", labels={"stage": "prod"})
        assert labels_of(api.set_labels("svc", {"team": "a"})) == {"stage": "prod", "team": "a"}
        assert labels_of(api.models.set_labels("mod:m1", {"stage": None})) == {}
        assert str(api.pull("svc", label="stage=prod").tag) == "svc:v1"
        with pytest.raises(NotFoundError):
            api.models.pull("mod", label="stage=prod")
