"""Tags follow BentoML's rules, and break them loudly."""

from __future__ import annotations

import logging
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from async_bento.errors import InvalidTagError
from async_bento.store.tag import Tag

PARTS = st.from_regex(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@given(PARTS, st.none() | PARTS)
def test_a_tag_is_read_back_from_its_text(name, version):
    tag = Tag(name, version)
    assert Tag.parse(str(tag)) == tag
    assert (tag.name, tag.version) == (name, version)


@pytest.mark.parametrize("part", ["", " ", "a b", "-a", "a-", ".a", "a/b", "..", "é", "a\n", "a:b", "a" * 64])
def test_a_part_that_breaks_the_rules_is_an_error(part):
    with pytest.raises(InvalidTagError):
        Tag(part)
    with pytest.raises(InvalidTagError):
        Tag("name", part)


def test_63_characters_are_not_too_many():
    assert str(Tag("a" * 63, "b" * 63)) == f"{'a' * 63}:{'b' * 63}"


def test_the_error_says_which_part_is_wrong():
    with pytest.raises(InvalidTagError, match=r"invalid version 'v 1' in a tag"):
        Tag.parse("iris:v 1")
    with pytest.raises(InvalidTagError, match=r"64 characters"):
        Tag("a" * 64)


def test_a_trailing_colon_gets_a_hint():
    with pytest.raises(InvalidTagError, match=r"Did you mean `iris:latest`\?"):
        Tag.parse("iris:")


def test_upper_case_is_lowered_with_a_warning(caplog):
    assert Tag.parse("Iris:V1") == Tag("iris", "v1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]
    caplog.clear()
    Tag.parse("iris:v1")
    assert not caplog.records


def test_anything_with_a_name_and_a_version_is_read():
    assert Tag.parse(SimpleNamespace(name="iris", version="v1")) == Tag("iris", "v1")
    assert Tag.parse(SimpleNamespace(name="iris", version=None)) == Tag("iris")


@pytest.mark.parametrize("other", [None, 3, Path("iris"), b"iris:v1"])
def test_what_is_no_tag_is_an_error(other):
    with pytest.raises(InvalidTagError):
        Tag.parse(other)


def test_tags_sort_by_name_then_version_and_no_version_first():
    tags = [Tag("b"), Tag("a", "v2"), Tag("a", "v10"), Tag("a")]
    assert [str(tag) for tag in sorted(tags)] == ["a", "a:v10", "a:v2", "b"]
    assert Tag("a") <= Tag("a")


def test_equal_tags_are_one_key_and_survive_a_pickle():
    tag = Tag("iris", "v1")
    assert {tag: 1}[Tag("iris", "v1")] == 1
    assert pickle.loads(pickle.dumps(tag)) == tag


def test_a_tag_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Tag("iris").name = "rose"
