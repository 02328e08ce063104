"""bentoml reads a store while several async-bento processes pull, push and delete items."""

from __future__ import annotations

import pytest

from async_bento import BentoAPI, BentoStore
from tests.builders import make_bento
from tests.store.crowd import ENOUGH, OLDEST, crowd, make_side

pytestmark = pytest.mark.interop


@pytest.mark.timeout(180)
@pytest.mark.parametrize("deleting", [False, True])
def test_bentoml_reads_whole_items(served, home, tmp_path, deleting):
    sides = [make_side(tmp_path / side, side) and tmp_path / side for side in "ab"]
    with BentoAPI(progress=False, bento_store=BentoStore(sides[0] / "bentos")) as api:
        api.push("svc:v1")
    make_bento(home, "svc:v0", built=OLDEST)
    make_side(home, "a")

    here = ["bentoml", "replace", "replace", "pull", *(["delete"] if deleting else [])]
    happened = crowd([*((role, home) for role in here), *(("push", side) for side in sides)], seconds=5)

    looked, *acted = happened
    broken = [what for each in happened for what in each if what.startswith("broken")]
    if deleting:  # for an item deleted between lookup and read, bentoml raises no NotFound
        broken = [what for what in broken if "contain a" not in what]
    assert not broken
    assert min(looked["a"], looked["b"]) > ENOUGH
    assert deleting or not looked["not found"]
    assert all(each["done"] for each in acted)
