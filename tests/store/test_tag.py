"""Tags follow the rules of BentoML, and invalid tags raise errors."""

from __future__ import annotations

import logging
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from async_bento._core import tag as tag_module
from async_bento._core.tag import Tag, is_path
from async_bento.errors import InvalidTagError
from tests.properties import unhurried

PARTS = st.from_regex(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@unhurried
@given(PARTS, st.none() | PARTS)
def test_tag_text_parses_to_same_tag(name, version):
    tag = Tag(name, version)
    assert Tag.parse(str(tag)) == tag
    assert (tag.name, tag.version) == (name, version)


@pytest.mark.parametrize("part", ["", " ", "a b", "-a", "a-", ".a", "a/b", "..", "é", "a\n", "a:b", "a" * 64])
def test_tag_invalid_part_raises(part):
    with pytest.raises(InvalidTagError):
        Tag(part)
    with pytest.raises(InvalidTagError):
        Tag("name", part)


@pytest.mark.parametrize("text", ["./iris", "/", "iris/v1", ".", ".."])
def test_path_with_slash_is_no_tag(text):
    assert is_path(text)


def test_windows_path_is_no_tag(monkeypatch):
    for separator in ("/", "\\"):
        monkeypatch.setattr(tag_module, "os", SimpleNamespace(sep=separator))
        assert [is_path(text) for text in ("C:\\bentos\\[x]", ".\\v1")] == [separator == "\\"] * 2
        assert not any(map(is_path, ["iris", "iris:v1", "iris:*", "a.b", "..."]))


def test_tag_parts_of_63_chars_valid():
    assert str(Tag("a" * 63, "b" * 63)) == f"{'a' * 63}:{'b' * 63}"


def test_error_names_invalid_part():
    with pytest.raises(InvalidTagError, match=r"invalid version 'v 1' in a tag"):
        Tag.parse("iris:v 1")
    with pytest.raises(InvalidTagError, match=r"64 characters"):
        Tag("a" * 64)


def test_final_colon_suggests_latest():
    with pytest.raises(InvalidTagError, match=r"Did you mean `iris:latest`\?"):
        Tag.parse("iris:")


def test_tag_is_lowered_with_warning(caplog):
    assert Tag.parse("Iris:V1") == Tag("iris", "v1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]
    caplog.clear()
    Tag.parse("iris:v1")
    assert not caplog.records


def test_tag_like_object_is_parsed():
    assert Tag.parse(SimpleNamespace(name="iris", version="v1")) == Tag("iris", "v1")
    assert Tag.parse(SimpleNamespace(name="iris", version=None)) == Tag("iris")
    assert Tag.parse(SimpleNamespace(tag=Tag("iris", "v1"), name="v1", version="v1")) == Tag("iris", "v1")


@pytest.mark.parametrize("other", [None, 3, Path("iris"), b"iris:v1"])
def test_tag_of_other_type_raises(other):
    with pytest.raises(InvalidTagError):
        Tag.parse(other)


def test_tags_sort_by_name_version():
    tags = [Tag("b"), Tag("a", "v2"), Tag("a", "v10"), Tag("a")]
    assert [str(tag) for tag in sorted(tags)] == ["a", "a:v10", "a:v2", "b"]
    assert Tag("a") <= Tag("a")


def test_tag_hashes_and_pickles():
    tag = Tag("iris", "v1")
    assert {tag: 1}[Tag("iris", "v1")] == 1
    assert pickle.loads(pickle.dumps(tag)) == tag


def test_tag_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Tag("iris").name = "rose"
