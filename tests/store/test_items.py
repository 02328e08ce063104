"""bento.yaml and model.yaml are read in all their forms, and sent as BentoML sends them."""

from __future__ import annotations

import os
import pickle
import threading
from datetime import datetime, timezone

import pytest
import yaml

from async_bento._core.tag import Tag
from async_bento._core.validation import format_time
from async_bento.errors import NotFoundError, StoreError
from async_bento.store import fields, metadata
from async_bento.store.fields import MAX_VALUES
from async_bento.store.items import MAX_README_SIZE, Bento, Model
from async_bento.store.metadata import MAX_YAML_SIZE
from async_bento.store.store import BentoStore
from tests.corpus.items import BENTOS, CORPUS, name_of, sent_by_bentoml

BENTO = {"service": "s:S", "name": "iris", "version": "v1", "creation_time": "2024-01-01T00:00:00+00:00"}
MODEL = {
    "name": "iris",
    "version": "v1",
    "module": "",
    "api_version": "v1",
    "context": {"framework_name": "", "framework_versions": {}},
    "creation_time": "2024-01-01T00:00:00+00:00",
}


def bento(path, **fields):
    path.mkdir(exist_ok=True)
    (path / "bento.yaml").write_text(yaml.safe_dump({**BENTO, **fields}))
    return Bento.from_path(path)


def model(path, **fields):
    path.mkdir(exist_ok=True)
    (path / "model.yaml").write_text(yaml.safe_dump({**MODEL, **fields}))
    return Model.from_path(path)


@pytest.mark.parametrize("name", ["bento.yaml", "README.md"])
def test_bento_fifo_does_not_block(tmp_path, name):
    bento(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert error_of_thread(lambda: Bento.from_path(tmp_path).doc) == (
        f"cannot read {tmp_path / name}: not a regular file"
    )


def test_latest_fifo_does_not_block(tmp_path):
    (tmp_path / "iris").mkdir()
    bento(tmp_path / "iris" / "v1")
    os.mkfifo(tmp_path / "iris" / "latest")
    assert error_of_thread(lambda: BentoStore(tmp_path).get("iris")) == ""


def error_of_thread(function):
    """Call a function in a thread that may block forever, and return the message of its error."""
    messages = []

    def call():
        try:
            function()
            messages.append("")
        except StoreError as error:
            messages.append(str(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert messages, "the call blocks"
    return messages[0]


def test_archive_suggests_import(tmp_path):
    archive = tmp_path / "my iris.bento"
    archive.write_bytes(b"PK")
    with pytest.raises(StoreError) as raised:
        Bento.from_path(archive)
    assert str(raised.value) == (
        f"cannot read the bento {archive}: it is a file, not a directory. "
        f"If it is an exported archive, run `bentoml import '{archive}'` first."
    )


@pytest.mark.parametrize("path", BENTOS, ids=name_of)
def test_bento_models_match_bentoml(path):
    assert [
        {"tag": str(model.tag), "registry": model.registry, "alias": model.alias, "metadata": model.metadata}
        for model in Bento.from_path(path).models
    ] == sent_by_bentoml(path)["models"]


def test_bare_push_manifest_sets_dev(tmp_path):
    assert bento(tmp_path).manifest(size_bytes=1, dev=True)["dev"] is True


def test_model_manifest_counts_bytes(tmp_path):
    iris = model(tmp_path)
    (tmp_path / "weights").write_bytes(bytes(1000))
    assert iris.manifest()["size_bytes"] == 1000 + (tmp_path / "model.yaml").stat().st_size


def test_hugging_face_models_marked():
    models = Bento.from_path(CORPUS / "1.3" / "bentos" / "front" / "v1").models
    assert [str(model.tag) for model in models if model.is_huggingface] == [
        "google-bert--bert-base-uncased:58c930053a6cc68fcfe6288ea586df72"
    ]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("'2024-01-01T10:00:00.000001+02:00'", "2024-01-01 08:00:00.000001"),
        ("2024-01-01 10:00:00 +02:00", "2024-01-01 08:00:00.000000"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00.000000"),
        ("'2024-01-01T10:00:00.5'", "2024-01-01 10:00:00.500000"),
        ("2024-01-01", "2024-01-01 00:00:00.000000"),
    ],
)
def test_creation_time_becomes_utc(tmp_path, written, sent):
    fields = "".join(f"{key}: {value}\n" for key, value in BENTO.items() if key != "creation_time")
    (tmp_path / "bento.yaml").write_text(f"{fields}creation_time: {written}\n")
    created = Bento.from_path(tmp_path).creation_time
    assert created.tzinfo is timezone.utc
    assert format_time(created) == sent


def test_creation_time_from_mtime(tmp_path):
    bento(tmp_path, creation_time=None)
    os.utime(tmp_path / "bento.yaml", (1000, 1000))
    assert Bento.from_path(tmp_path).creation_time == datetime.fromtimestamp(1000, timezone.utc)


def test_duplicate_model_keeps_last(tmp_path):
    services = [
        {"name": "A", "service": "", "models": [{"tag": "x:1", "alias": "a"}, {"tag": "y:1"}]},
        {"name": "B", "service": "", "models": [{"tag": "x:1", "alias": "b"}]},
    ]
    models = bento(tmp_path, models=[{"tag": "z:1"}, {"tag": "x:1"}], services=services).models
    assert [(str(model.tag), model.alias) for model in models] == [("z:1", None), ("x:1", "b"), ("y:1", None)]


def test_metadata_converted_to_json(tmp_path):
    metadata = {
        "at": datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "day": datetime(2024, 1, 2, tzinfo=timezone.utc).date(),
        "loss": [float("nan"), float("inf"), 0.5],
        "key": b"\x00\x01",
        True: None,
        7: {"deep": {1.5: "x"}},
        None: "none",
        datetime(2024, 1, 3, tzinfo=timezone.utc).date(): "a day",
    }
    sent = model(tmp_path, metadata=metadata).manifest()["metadata"]
    assert sent == {
        "at": "2024-01-02 03:04:05.000000",
        "day": "2024-01-02",
        "loss": [None, None, 0.5],
        "key": "AAE=",
        "true": None,
        "7": {"deep": {"1.5": "x"}},
        "null": "none",
        "2024-01-03": "a day",
    }


def test_options_dropped_without_module(tmp_path):
    options = {"partial_kwargs": {"a": 1}}
    assert model(tmp_path, module="bentoml.sklearn", options=options).manifest()["options"] == options
    assert model(tmp_path, module="", options=options).manifest()["options"] == {}


def test_model_tag_gets_oldest_time(tmp_path):
    (wanted,) = bento(tmp_path, models=["iris:v1"]).models
    assert (str(wanted.tag), wanted.module) == ("iris:v1", "unknown")
    assert wanted.creation_time == datetime(1, 1, 1, tzinfo=timezone.utc)  # BentoML's `fromordinal(1)`


def test_env_number_becomes_text(tmp_path):
    envs = bento(tmp_path, envs=[{"name": "A", "value": 1}, {"name": "B", "value": True}]).info.envs
    assert [env.value for env in envs] == ["1", "True"]


def test_metadata_set_is_ordered(tmp_path):
    classes = {"setosa", "versicolor", "virginica", "rose", "tulip", "lily", "daisy", "iris"}
    assert model(tmp_path, metadata={"classes": classes}).info.metadata["classes"] == sorted(classes)


def test_null_field_equals_missing(tmp_path):
    iris = bento(tmp_path, models=None, services=None, labels=None, envs=None, runners=None)
    assert (iris.models, iris.labels) == ([], {})


def test_from_path_missing_directory(tmp_path):
    with pytest.raises(NotFoundError, match=r"cannot read .*nowhere: there is no such directory"):
        Bento.from_path(tmp_path / "nowhere")


def test_from_path_no_yaml_raises(tmp_path):
    with pytest.raises(StoreError, match=r"has no bento\.yaml"):
        Bento.from_path(tmp_path)
    with pytest.raises(StoreError, match=r"has no model\.yaml"):
        Model.from_path(tmp_path)


def test_from_path_of_file_raises(tmp_path):
    (tmp_path / "iris.bento").touch()
    with pytest.raises(StoreError, match=r"iris\.bento"):
        Bento.from_path(tmp_path / "iris.bento")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: }\n", r"bento\.yaml: the file is not valid YAML in line 2"),
        ("a: 1\nb: 2024-13-45", r"bento\.yaml: the file is not valid YAML"),
        ("\x00", r"bento\.yaml: the file is not valid YAML"),
        ("", r"bento\.yaml: the file is not a YAML mapping"),
        ("- a", r"bento\.yaml: the file is not a YAML mapping"),
        ("!!python/object/apply:os.system [true]", r"bento\.yaml: the file is not valid YAML"),
    ],
)
def test_broken_yaml_error_names_line(tmp_path, text, complaint):
    (tmp_path / "bento.yaml").write_text(text)
    with pytest.raises(StoreError, match=complaint):
        Bento.from_path(tmp_path)


@pytest.mark.parametrize("field", ["name", "version", "service"])
def test_bento_names_missing_field(tmp_path, field):
    with pytest.raises(StoreError, match=rf"bento\.yaml: the field `{field}` is missing"):
        bento(tmp_path, **{field: None})


@pytest.mark.parametrize("field", ["name", "version", "module", "api_version", "context"])
def test_model_names_missing_field(tmp_path, field):
    with pytest.raises(StoreError, match=rf"model\.yaml: the field `{field}` is missing"):
        model(tmp_path, **{field: None})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"version": 1.10}, "version"),  # YAML reads 1.10 as 1.1, so no guess is safe
        ({"name": "no name"}, "name"),
        ({"models": [{"tag": "iris:"}]}, r"models\.0\.tag"),
        ({"services": [{"service": ""}]}, r"services\.0\.name"),
        ({"envs": [{"name": "A", "stage": "sometimes"}]}, r"envs\.0\.stage"),
        ({"creation_time": "yesterday"}, "creation_time"),
        ({"schema": []}, "schema"),
    ],
)
def test_bento_names_wrong_field(tmp_path, fields, name):
    with pytest.raises(StoreError, match=rf"bento\.yaml: the field `{name}`"):
        bento(tmp_path, **fields)


def test_error_hides_env_values(tmp_path):
    with pytest.raises(StoreError) as caught:
        bento(tmp_path, envs=[{"name": "TOKEN", "value": ["hunter2"]}])
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)


def test_large_yaml_is_not_read(tmp_path):
    with (tmp_path / "model.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreError, match=rf"cannot read .*model\.yaml: the file is larger than {MAX_YAML_SIZE} bytes"):
        Model.from_path(tmp_path)


def test_yaml_of_largest_size_is_read(tmp_path, monkeypatch):
    iris = bento(tmp_path)
    size = (tmp_path / "bento.yaml").stat().st_size
    monkeypatch.setattr(metadata, "MAX_YAML_SIZE", size)
    assert Bento.from_path(tmp_path) == iris
    monkeypatch.setattr(metadata, "MAX_YAML_SIZE", size - 1)
    with pytest.raises(StoreError, match=f"larger than {size - 1} bytes"):
        Bento.from_path(tmp_path)


def test_most_values_of_field_are_read(tmp_path, monkeypatch):
    """Each mapping, list and scalar is a value."""
    monkeypatch.setattr(fields, "MAX_VALUES", 4)
    assert model(tmp_path, metadata={"a": [1, 2]}).info.metadata == {"a": [1, 2]}
    with pytest.raises(StoreError, match="`metadata`: more than 4 values"):
        model(tmp_path, metadata={"a": [1, 2, 3]})


@pytest.mark.parametrize("field", ["metadata", "labels"])
def test_hostile_alias_bomb_refused(tmp_path, field):
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(10))
    text = yaml.safe_dump({**MODEL, field: None}) + f"{field}:\n" + "".join(f"  {line}\n" for line in bomb.splitlines())
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(StoreError, match=rf"`{field}`: more than {MAX_VALUES} values"):
        Model.from_path(tmp_path)


@pytest.mark.parametrize("loader", [metadata._Loader, yaml.SafeLoader], ids=["libyaml, if installed", "Python"])
def test_hostile_nesting_refused(tmp_path, monkeypatch, loader):
    monkeypatch.setattr(metadata, "_Loader", loader)
    (tmp_path / "model.yaml").write_text("metadata: " + "[" * 5000)
    with pytest.raises(StoreError, match=r"model\.yaml: the file is not valid YAML"):
        Model.from_path(tmp_path)


@pytest.mark.parametrize("value", ["metadata: {a: &a [*a]}", "creation_time: 0001-01-01 00:00:00+10:00"])
def test_hostile_value_refused(tmp_path, value):
    """An alias that contains itself, and a time before the year 1."""
    fields = {name: field for name, field in MODEL.items() if name != value.partition(":")[0]}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(fields) + f"{value}\n")
    with pytest.raises(StoreError, match=r"model\.yaml"):
        Model.from_path(tmp_path)


def test_doc_over_3_mib_is_not_sent(tmp_path, caplog):
    iris = bento(tmp_path)
    assert iris.doc == ""
    assert not caplog.records
    readme = tmp_path / "README.md"
    readme.write_text("x" * MAX_README_SIZE)
    assert len(iris.doc) == MAX_README_SIZE
    readme.write_text("x" * (MAX_README_SIZE + 1))
    assert iris.doc == ""
    assert "README.md" in caplog.text


def test_size_follows_file_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_bytes(bytes(100))
    iris = bento(tmp_path / "iris")
    (iris.path / "deep" / "er").mkdir(parents=True)
    (iris.path / "deep" / "er" / ".hidden").write_bytes(bytes(10))
    (iris.path / "file").symlink_to(elsewhere / "weights")
    (iris.path / "directory").symlink_to(elsewhere)
    (iris.path / "broken").symlink_to("nowhere")
    (iris.path / "loop").symlink_to("loop")
    assert iris.size() == 110 + (iris.path / "bento.yaml").stat().st_size


def test_item_path_is_absolute(tmp_path, monkeypatch):
    bento(tmp_path / "iris")
    monkeypatch.chdir(tmp_path)
    assert Bento.from_path("iris").path == tmp_path / "iris"


def test_item_hashes_and_pickles(tmp_path):
    iris = bento(tmp_path)
    again = pickle.loads(pickle.dumps(iris))
    assert again == iris
    assert {iris: 1}[again] == 1
    assert again.info == iris.info
    assert iris.tag == Tag("iris", "v1")
    assert len(repr(iris)) < 200 + len(str(tmp_path))
