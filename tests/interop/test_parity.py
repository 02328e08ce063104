"""BentoML's parameters and return types, compared with ours and with the tables of docs/parity.md."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest

import async_bento
from async_bento import AsyncBentoAPI, AsyncModelAPI, BentoAPI, ModelAPI, RestApiClient
from tests.parity import PARITY, rows_of

pytestmark = pytest.mark.interop

NOT_OURS = {("BentoAPI", "spinner"), ("ModelAPI", "spinner"), ("ModelAPI", "client")}  # docs/parity.md has the reasons
RETURNED = [
    "BentoManifestSchema",
    "BentoRepositorySchema",
    "BentoSchema",
    "BentoWithRepositoryListSchema",
    "BentoWithRepositorySchema",
    "LabelItemSchema",
    "ModelManifestSchema",
    "ModelRepositorySchema",
    "ModelSchema",
    "ModelWithRepositoryListSchema",
    "ModelWithRepositorySchema",
]
ABOUT_ITEMS = re.compile(r"bento|model|current_user")
OUT_OF_SCOPE = re.compile(r"deployment|cluster|secret|api_token|organization")


@pytest.fixture
async def theirs(there):
    """The parameters of each of BentoML's calls."""
    (found,) = await there.calls(["parameters", {}])
    return found


def calls_of(name):
    """Return our blocking and asynchronous calls of this name."""
    if name == "RestApiClient":
        return [RestApiClient]
    api, _, call = name.partition(".")
    ours = {"BentoAPI": [BentoAPI, AsyncBentoAPI], "ModelAPI": [ModelAPI, AsyncModelAPI]}[api]
    return [getattr(each, call) for each in ours] if call else ours


async def test_bentoml_parameters_exist(theirs):
    assert {"BentoAPI.push", "BentoAPI.pull", "BentoAPI.list", "BentoAPI.get"} <= theirs.keys()
    for name, taken in theirs.items():
        for call in calls_of(name):
            ours = inspect.signature(call).parameters
            in_place = [parameter for parameter in ours if parameter != "self"]
            for place, (parameter, (kind, default)) in enumerate(taken.items()):
                if (name, parameter) in NOT_OURS:
                    continue
                assert ours[parameter].kind.name == kind, (call, parameter)
                if kind == "POSITIONAL_OR_KEYWORD":
                    assert in_place[place] == parameter
                if name != "RestApiClient" and default not in {
                    "none",
                    "…",
                }:  # the client's default comes from the settings
                    assert ours[parameter].default == default, (call, parameter)
                if default == "…":
                    assert ours[parameter].default is None  # BentoML injects the value; async-bento finds it


async def test_page_has_bentoml_parameters(theirs):
    text = await asyncio.to_thread(PARITY.read_text, encoding="utf-8")
    have = {(row.section, name) for row in rows_of(text) for name in re.findall(r"^`(\w+)[`=]", row.cells[0])}

    wanted = {(call, parameter) for call, taken in theirs.items() for parameter in taken}

    assert wanted - have == set()


async def test_bentoml_fields_exist(there):
    (theirs,) = await there.calls(["fields", {"names": RETURNED}])

    for name, fields in theirs.items():
        ours = getattr(async_bento, name).model_fields
        assert {*fields} <= {*ours} | {field.alias for field in ours.values()}, name


async def test_other_requests_out_of_scope(there):
    (theirs,) = await there.calls(["requests", {}])

    assert {name for name in theirs if not OUT_OF_SCOPE.search(name)} == {
        name for name in theirs if ABOUT_ITEMS.search(name)
    }
