"""async-bento and bentoml read each other's contexts and write the same file."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from async_bento.errors import ConfigError
from async_bento.rest.contexts import Context, read_contexts, store_context
from async_bento.rest.credentials import find_credentials

pytestmark = pytest.mark.interop

ENTRIES = [
    {"name": "default", "endpoint": "https://prod.example", "api_token": "tk-prod", "email": "ada@example.com"},
    {"name": "läb", "endpoint": "http://lab.example:3000", "api_token": "tk-lab", "email": None},
]


async def store(home, entry):
    context = Context(**{**entry, "api_token": SecretStr(entry["api_token"])})
    await asyncio.to_thread(store_context, home.path / ".yatai.yaml", context)


async def test_bentoml_reads_contexts(there):
    for entry in ENTRIES:
        await store(there, entry)
    (seen,) = await there.calls(["contexts", {}])
    assert seen == {"current": "läb", "contexts": ENTRIES}


async def test_bentoml_contexts_are_read(there):
    await there.calls(*(["store_context", entry] for entry in ENTRIES))
    read = await asyncio.to_thread(read_contexts, there.path / ".yatai.yaml")
    contexts = [one.model_dump() | {"api_token": one.api_token.get_secret_value()} for one in read.contexts]
    assert (contexts, read.current_context_name) == (ENTRIES, "default")


async def test_context_bytes_equal_bentoml(there):
    file = there.path / ".yatai.yaml"
    await there.calls(["store_context", ENTRIES[0]])
    theirs = file.read_bytes()
    file.unlink()
    await store(there, ENTRIES[0])
    assert file.read_bytes() == theirs


async def test_context_stored_by_both_is_one(there):
    await store(there, ENTRIES[0])
    await there.calls(["store_context", {**ENTRIES[0], "api_token": "tk-new"}])
    await store(there, ENTRIES[1])
    (seen,) = await there.calls(["contexts", {}])
    assert [one["api_token"] for one in seen["contexts"]] == ["tk-new", "tk-lab"]


KEY = {"BENTO_CLOUD_API_KEY": "tk-key", "BENTO_CLOUD_API_ENDPOINT": "https://key.example"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, ("http://lab.example:3000", "tk-lab"), id="current"),
        pytest.param({"BENTOML_CLOUD_CONTEXT": "default"}, ("https://prod.example", "tk-prod"), id="named"),
        pytest.param({"BENTOML_CLOUD_CONTEXT": "none"}, None, id="named-and-not-there"),
        pytest.param({"BENTOML_CLOUD_CONTEXT": "default", **KEY}, ("https://key.example", "tk-key"), id="key"),
        pytest.param(
            {"BENTOML_CLOUD_CONTEXT": "none", **KEY}, ("https://key.example", "tk-key"), id="key-and-not-there"
        ),
    ],
)
async def test_credentials_equal_bentoml(there, variables, expected):
    for entry in ENTRIES:
        await store(there, entry)
    environment = {name: value for name, value in there.environment().items() if not name.startswith("BENTO_CLOUD")}

    (theirs,) = await there.try_calls(["credentials", {}], environment=environment | variables)
    try:
        found = await asyncio.to_thread(find_credentials, environ={"BENTOML_HOME": str(there.path), **variables})
        ours = (found.endpoint, found.api_token.get_secret_value())
    except ConfigError:
        ours = None

    assert ours == expected
    assert theirs == [*expected] if expected else "No cloud context none found" in theirs["error"]
