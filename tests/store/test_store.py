"""Items are found, listed and deleted, and errors list the items that exist."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from async_bento._core import platform
from async_bento._core.tag import Tag
from async_bento.errors import ConfigError, InvalidTagError, NotFoundError, StoreError
from async_bento.store.items import Model
from async_bento.store.layout import abbreviate
from async_bento.store.store import BentoStore, ModelStore
from tests.store.stores import MIDDLE, NEW, OLD, fill, fill_model, latest, put, staging_of


def test_default_path_is_bentoml_home(home):
    assert BentoStore().path == home / "bentos"
    assert ModelStore().path == home / "models"


def test_base_path_replaces_default(tmp_path):
    store = BentoStore(str(tmp_path / "mine"))
    put(store, "iris:v1")
    assert (tmp_path / "mine" / "iris" / "v1" / "bento.yaml").is_file()


def test_repr_without_home_has_no_path(home, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", "~nobody-at-all/bentoml")
    store = BentoStore()
    assert repr(store) == "BentoStore()"
    with pytest.raises(ConfigError, match="Set BENTOML_HOME"):
        _ = store.path


def test_get_tag_finds_item(store):
    put(store, "iris:v1")
    put(store, "iris:v2")
    for tag in ("iris:v1", Tag("iris", "v1"), SimpleNamespace(name="iris", version="v1")):
        assert store.get(tag).tag == Tag("iris", "v1")


def test_get_name_finds_latest(store):
    put(store, "iris:b", NEW)
    put(store, "iris:c", OLD)
    assert store.get("iris").tag == store.get("iris:latest").tag == Tag("iris", "b")


def test_get_prefix_finds_version(store):
    put(store, "iris:abc")
    put(store, "iris:xyz")
    assert store.get("iris:ab").tag.version == "abc"


def test_get_version_beats_prefix(store):
    put(store, "iris:abc")
    put(store, "iris:ab")
    assert store.get("iris:ab").tag.version == "ab"


def test_get_ambiguous_prefix_raises(store):
    put(store, "iris:abc")
    put(store, "iris:abd")
    with pytest.raises(NotFoundError, match=r"2 versions begin with ab \(abc, abd\)"):
        store.get("iris:ab")


def test_get_exact_rejects_prefix(store):
    put(store, "iris:abc")
    with pytest.raises(NotFoundError):
        store.get("iris:ab", prefix=False)


def test_get_invalid_tag_raises(store):
    with pytest.raises(InvalidTagError):
        store.get("../iris")


@pytest.mark.parametrize("tag", ["aux:v1", "iris:com1.2"])
def test_windows_device_tag_refused(store, monkeypatch, tag):
    monkeypatch.setattr(platform, "refusal_of_name", platform.windows_refusal)
    for call in (store.lock, lambda tag: store.start_commit("staged", tag)):
        with pytest.raises(StoreError, match=rf"^cannot write {tag} to .*device on Windows\. Pull to a"):
            call(tag)
    assert not store.path.exists()
    store.lock("iris:v1")


def test_missing_item_names_pull(store):
    with pytest.raises(NotFoundError) as caught:
        store.get("iris:v1")
    assert (
        str(caught.value) == f"no bento iris:v1 in {store.path}: the store is empty. "
        "To download the bento, run `async-bento pull iris:v1`."
    )


def test_missing_name_lists_similar(store):
    for name in ("aaa", "bbb", "ccc", "ddd", "eee", "fff", "irsi"):
        put(store, f"{name}:v1")
    with pytest.raises(NotFoundError, match=r": the store has irsi, aaa, bbb, ccc, ddd and 2 more\. "):
        store.get("iris")


@pytest.mark.parametrize(
    ("names", "shown"), [("a", "a"), ("abcde", "a, b, c, d, e"), ("abcdef", "a, b, c, d, e and 1 more")]
)
def test_long_list_of_names_is_abbreviated(names, shown):
    assert abbreviate([*names]) == shown


def test_missing_version_lists_known(store):
    put(store, "iris:v1")
    with pytest.raises(NotFoundError, match=r": iris has v1\. "):
        store.get("iris:w1")


def test_missing_model_names_pull():
    with pytest.raises(NotFoundError, match=r"no model iris .* `async-bento models pull iris`"):
        ModelStore().get("iris")


def test_get_missing_creates_nothing(store, home):
    for tag in ("iris", "iris:v1"):
        with pytest.raises(NotFoundError):
            store.get(tag)
    assert not home.exists()


def test_get_mismatched_tag_raises(store):
    put(store, "iris:v1")
    shutil.copytree(store.path / "iris" / "v1", store.path / "iris" / "v2")
    with pytest.raises(StoreError, match=r"bento\.yaml: the file describes iris:v1, not iris:v2"):
        store.get("iris:v2")


def test_list_is_sorted_by_tag(store):
    assert list(store.list()) == []
    for tag in ("rose:v1", "iris:v2", "iris:v10"):
        put(store, tag)
    assert [str(item.tag) for item in store.list()] == ["iris:v10", "iris:v2", "rose:v1"]
    assert [str(item.tag) for item in store.list("iris")] == ["iris:v10", "iris:v2"]
    assert [str(item.tag) for item in store.list("iris:v2")] == ["iris:v2"]
    assert list(store.list("iris:v")) == []


def test_list_unknown_name_raises(store):
    with pytest.raises(NotFoundError):
        store.list("iris")


def test_list_skips_broken_item(store, caplog):
    put(store, "iris:v1")
    (store.path / "iris" / "v2").mkdir()
    for foreign in (".ipynb_checkpoints", "Rose"):
        (store.path / foreign / "v1").mkdir(parents=True)
    (store.path / "iris" / ".DS_Store").touch()
    assert [str(item.tag) for item in store.list()] == ["iris:v1"]
    assert "the directory has no bento.yaml" in caplog.text
    assert "skipped a broken bento" in caplog.text
    assert len(caplog.records) == 1


def test_model_store_round_trips():
    store = ModelStore()
    with store.stage() as staged:
        fill_model(staged, "iris:v1")
        assert store.commit(staged, "iris:v1") == Model.from_path(store.path / "iris" / "v1")
    assert store.get("iris").tag == Tag("iris", "v1")


def test_delete_moves_latest(store):
    put(store, "iris:a", OLD)
    put(store, "iris:b", NEW)
    put(store, "iris:c", MIDDLE)
    store.delete("iris:b")
    assert latest(store) == "c"
    with pytest.raises(NotFoundError):
        store.get("iris:b")
    assert staging_of(store) == []


def test_delete_last_removes_name(store):
    put(store, "iris:v1")
    store.delete("iris:latest")
    assert list(store.path.iterdir()) == []


def test_delete_no_version_raises(store):
    put(store, "iris:v1")
    with pytest.raises(InvalidTagError, match=r"Did you mean `iris:latest`\?"):
        store.delete("iris")
    assert store.get("iris:v1")


def test_delete_prefix_raises(store):
    put(store, "iris:v10")
    with pytest.raises(NotFoundError, match=r"v10\.$"):  # no hint to download what is to be deleted
        store.delete("iris:v1")
    assert store.get("iris:v10")


def test_delete_broken_item_succeeds(store):
    (store.path / "iris" / "v1").mkdir(parents=True)
    store.delete("iris:v1")
    assert not (store.path / "iris").exists()


def test_delete_link_keeps_target(store, tmp_path):
    fill(tmp_path / "elsewhere", "iris:v1")
    (tmp_path / "elsewhere").chmod(0o555)
    (store.path / "iris").mkdir(parents=True)
    (store.path / "iris" / "v1").symlink_to(tmp_path / "elsewhere")
    store.delete("iris:v1")
    assert (tmp_path / "elsewhere" / "text").exists()
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o555


def test_delete_unmovable_in_place(store, monkeypatch):
    put(store, "iris:v1")
    rename = Path.rename

    def refuse(self, target):
        if self == store.path / "iris" / "v1":  # like overlayfs for files of an image
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    store.delete("iris:v1")
    assert list(store.path.iterdir()) == []


def test_size_counts_models_once(store, home, caplog):
    models = ModelStore()
    for tag, size in (("iris:v1", 100), ("rose:v1", 1000), ("own:v1", 10_000)):
        fill_model(models.path / tag.replace(":", "/"), tag, size)
    named = [{"tag": tag} for tag in ("iris:v1", "own:v1", "gone:v1")]
    service = {"name": "A", "service": "", "models": [{"tag": "rose:v1"}, {"tag": "iris:v1"}]}
    hub = {"tag": "gpt:v1", "registry": "huggingface"}
    bento = put(store, "flowers:v1", models=[*named, hub], services=[service])
    fill_model(bento.path / "models" / "own" / "v1", "own:v1", 7)

    def yaml_of(path):
        return (path / "model.yaml").stat().st_size

    outside = 100 + yaml_of(models.path / "iris" / "v1") + 1000 + yaml_of(models.path / "rose" / "v1")
    inside = 7 + yaml_of(bento.path / "models" / "own" / "v1")
    assert models.total_size(bento) == (bento.path / "bento.yaml").stat().st_size + inside + outside
    assert [record.getMessage() for record in caplog.records] == [
        f"the size of flowers:v1 does not include its model gone:v1: {models.path} does not have the model"
    ]
