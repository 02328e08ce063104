"""The record of each item equals the record that BentoML sends."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

from async_bento.api import kinds
from async_bento.rest.schemas import BentoManifestSchema, ModelManifestSchema
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore
from tests.builders import make_bento, make_model
from tests.corpus.items import BENTOS, CORPUS, MODELS, OPTIONS_OF_TODAY, name_of, sent_by_bentoml

ONLY_CREATED = {"version", "build_at"}


def record_of(item, home, *, bare=False):
    bentos, models = BentoStore(home / "bentos"), ModelStore(home / "models")
    client = SimpleNamespace(bentos=None, models=None)  # no request is sent
    words = kinds.bentos(client, bentos, models) if isinstance(item, Bento) else kinds.models(client, models)
    record = words.record_bodies(item, bare)
    return [body.model_dump(mode="json", by_alias=True) for body in (record.create, record.update)]


def labels_of(body):
    return {label["key"]: label["value"] for label in body["labels"]}


def read(path):
    return (Bento if (path / "bento.yaml").exists() else Model).from_path(path)


@pytest.mark.parametrize("path", [*BENTOS, *MODELS], ids=name_of)
def test_record_matches_bentoml(path):
    expected = sent_by_bentoml(path)["body"]
    if name_of(path) in OPTIONS_OF_TODAY:
        assert expected["manifest"]["options"] == OPTIONS_OF_TODAY[name_of(path)]
        expected["manifest"]["options"] = {}

    create, update = record_of(read(path), path.parents[2])

    assert create == expected
    assert update == {name: value for name, value in expected.items() if name not in ONLY_CREATED}


@pytest.mark.parametrize("path", BENTOS, ids=name_of)
def test_bare_record_is_marked_dev(path):
    whole = record_of(read(path), path.parents[2])

    bare = record_of(read(path), path.parents[2], bare=True)

    assert [body["manifest"].pop("dev") for body in bare] == [True, True]
    assert [body["manifest"].pop("dev") for body in whole] == [False, False]
    assert bare == whole


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (2024, "2024"),
        (0.5, "0.5"),
        (True, "True"),
        (None, "None"),
        ([1, "two"], "[1, 'two']"),
        ({"a": 1}, "{'a': 1}"),
        ("", ""),
    ],
)
def test_label_text_matches_bentoml(tmp_path, written, sent):
    bento = read(make_bento(tmp_path, labels={"label": written}))
    model = read(make_model(tmp_path, labels={"label": written}))

    for item in (bento, model):
        assert [labels_of(body) for body in record_of(item, tmp_path)] == [{"label": sent}] * 2


@pytest.mark.parametrize(
    ("path", "of_the_service"),
    [("1.0.0/bentos/runners/v1", {"owner": "me"}), ("1.4/bentos/front-_desk/v1", {"owner": "service", "team": "desk"})],
)
def test_labels_of_releases_are_text(path, of_the_service):
    create, _ = record_of(read(CORPUS / path), (CORPUS / path).parents[2])

    assert labels_of(create) == {
        "year": "2024",
        "ok": "True",
        "ratio": "0.5",
        "none": "None",
        "list": "[1, 'two']",
        "day": "2024-01-02",
        **of_the_service,
    }


def test_size_counts_each_model_once(tmp_path):
    models = ["mod:m1", "mod:m1", {"tag": "org--bert:v", "registry": "huggingface"}, "gone:g1"]
    services = [{"name": "S", "service": "", "models": [{"tag": "mod:m1"}, {"tag": "mod:m2"}]}]
    path = make_bento(tmp_path, files={"src/a": bytes(10), "README.md": b"hi"}, models=models, services=services)
    sizes = [(path / "bento.yaml").stat().st_size + 12]
    for tag, size in {"mod:m1": 100, "mod:m2": 1000, "org--bert:v": 10_000, "other:o1": 100_000}.items():
        model = make_model(tmp_path, tag, {"weights": bytes(size)})
        sizes.append((model / "model.yaml").stat().st_size + size)

    create, update = record_of(read(path), tmp_path)

    assert create["manifest"]["size_bytes"] == update["manifest"]["size_bytes"] == sum(sizes[:3])


def test_record_has_model_aliases():
    create, update = record_of(read(CORPUS / "by_hand/bentos/before_1_4/20240301"), CORPUS / "by_hand")

    for body in (create, update):
        aliases = {model["tag"]: model["alias"] for model in body["manifest"]["services"][0]["models"]}
        assert aliases == {"shared:v1": "from-the-service", "gpt--two:0123456789abcdef0123456789abcdef": None}


@pytest.mark.parametrize("name", ["build_at", "created_at", None])
@pytest.mark.parametrize("copied", [kinds._copied_bento, kinds._copied_model])
def test_copied_record_keeps_its_time(copied, name):
    is_bento = copied is kinds._copied_bento
    manifest = BentoManifestSchema(service="svc") if is_bento else ModelManifestSchema(module="", bentoml_version="")
    times = {"build_at": None, "created_at": datetime(2025, 1, 1, tzinfo=timezone.utc)}
    if name is None:
        times["created_at"] = None
    elif name == "build_at":
        times["build_at"] = datetime(2024, 1, 1, tzinfo=timezone.utc)
    record = SimpleNamespace(description="", manifest=manifest, labels=[], version="v1", **times)
    year = {"build_at": 2024, "created_at": 2025, None: datetime.now(timezone.utc).year}[name]
    assert copied(record).create.build_at.year == year
