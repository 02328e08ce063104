"""Several processes pull, push and delete one item at the same time, while others read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, BentoStore
from tests.builders import left_in_scratch, make_bento
from tests.store.crowd import ENOUGH, OLDEST, crowd, make_side, side_of

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 8.0


@pytest.fixture
def sides(tmp_path: Path) -> list[Path]:
    """Make two homes, each with its own side of the item."""
    for side in "ab":
        make_side(tmp_path / side, side)
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("deleting", [False, True])
def test_readers_see_whole_items(served: object, home: Path, sides: list[Path], deleting: bool) -> None:
    with BentoAPI(progress=False, bento_store=BentoStore(sides[0] / "bentos")) as api:
        api.push("svc:v1")
    make_bento(home, "svc:v0", built=OLDEST)
    make_side(home, "a")

    here = ["look", "pull", "replace", "replace", "push", *(["delete"] if deleting else [])]
    happened = crowd([*((role, home) for role in here), *(("push", side) for side in sides)], SECONDS)

    assert not [what for each in happened for what in each if what.startswith("broken")]
    looked, *acted = happened
    assert min(looked["a"], looked["b"]) > ENOUGH
    assert deleting or not looked["not found"]
    expected = [each for role, each in zip(here[1:], acted, strict=False) if role != "push" or not deleting]
    assert all(each["done"] for each in expected), acted
    versions = [item.tag.version for item in BentoStore().list("svc")]
    assert versions == ["v0", "v1"] or (deleting and versions == ["v0"])
    assert (home / "bentos" / "svc" / "latest").read_text() == versions[-1]
    # A push that another one overtook has failed, and the journal of a failed push is kept for a week.
    assert [name for name in left_in_scratch(home) if not name.startswith("async-bento-kept-push+")] == []
    assert {path.name for path in (home / "bentos").rglob("*") if path.name.startswith(".")} == set()
    with BentoAPI(progress=False) as api:
        assert side_of(api.pull("svc:v1", force=True).path) in {"a", "b"}


def test_get_during_replace_gets_new(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = make_side(home, "a")
    item.rename(home / "other")
    opened = os.open

    def come_after_the_first_try(path: Path, flags: int, **options: int) -> int:
        monkeypatch.setattr(os, "open", opened)
        try:
            return opened(path, flags, **options)
        finally:
            (home / "other").rename(item)

    monkeypatch.setattr(os, "open", come_after_the_first_try)
    assert BentoStore().item_type.from_path(item).labels == {"side": "a"}
