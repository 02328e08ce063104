"""`async_bento.integrations.bentoml.accelerate`: calls and commands of the real bentoml, run by async-bento."""

from __future__ import annotations

import json

import pytest

from tests.docs.test_pages import ROOT, blocks
from tests.interop.homes import tree

pytestmark = pytest.mark.interop

COUNTED = """
import json, warnings
import bentoml, httpx
import async_bento.integrations.bentoml

theirs = []  # the requests of bentoml itself, all by httpx
send = httpx.Client.send
httpx.Client.send = lambda self, request, **kwargs: theirs.append(str(request.url)) or send(self, request, **kwargs)

accelerated = async_bento.integrations.bentoml.accelerate()
"""

ROUND_TRIP = """
assert async_bento.integrations.bentoml.accelerate()
assert bentoml.push("my_service:v1") is None
bento = bentoml.get("my_service:v1")
models = [model.tag for model in bento.info.all_models]
bentoml.delete("my_service:v1")
for tag in models:
    bentoml.models.delete(tag)
bentoml.pull("my_service:v1")
pulled = [bentoml.get("my_service"), *(bentoml.models.pull(tag) for tag in models)]
assert type(pulled[0]) is bentoml.Bento and {type(model) for model in pulled[1:]} == {bentoml.Model}
bentoml.models.push("small:m1", force=True)
print("\\n" + json.dumps([accelerated, [str(item.tag) for item in pulled], theirs]))
"""

LEFT_TO_BENTOML = """
class OnTheHub:
    def to_info(self):
        raise RuntimeError("called by bentoml itself")

client = bentoml._internal.configuration.containers.BentoMLContainer.bentocloud_client.get()

class OwnModelAPI(type(client.model)):
    pass

errors = []
for api in (client.model, OwnModelAPI(client.model._client)):
    try:
        api.push(OnTheHub())
    except RuntimeError as error:
        errors.append(str(error))
print("\\n" + json.dumps(errors))
"""

ERRORS = """
from bentoml.exceptions import BentoMLException, NotFound

found = []
for call in (lambda: bentoml.pull("nothing:v1"), lambda: bentoml.models.pull("no tag")):
    try:
        call()
    except BentoMLException as error:
        found.append([isinstance(error, NotFound), type(error.__cause__).__name__])
print("\\n" + json.dumps(found))
"""

RESTORED = """
async_bento.integrations.bentoml.restore()
bentoml.push("my_service:v1")
print("\\n" + json.dumps([accelerated, len(theirs) > 0]))
"""

OTHER_RELEASE = """
async_bento.integrations.bentoml.restore()
api = bentoml._internal.cloud.BentoAPI
push = api.push
api.push = lambda self, bento, *, force=False, parallel=10: push(self, bento, force=force, threads=parallel)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    declined = async_bento.integrations.bentoml.accelerate()
bentoml.push("my_service:v1")
print("\\n" + json.dumps([declined, [str(warning.message) for warning in caught], len(theirs) > 0]))
"""

NO_HTTPX = """
import httpx, runpy, sys

def refuse(*args, **kwargs):
    raise AssertionError("bentoml sent a request")

httpx.Client.send = refuse
runpy.run_module("async_bento.integrations.bentoml", run_name="__main__", alter_sys=True)
"""


def last_line(out: str) -> object:
    return json.loads(out.splitlines()[-1])


async def test_calls_use_async_bento(with_bento, built, registry):
    out = await with_bento.python("-c", COUNTED + ROUND_TRIP, registry=registry)

    assert last_line(out) == [True, ["my_service:v1", "large:m2", "small:m1"], []]
    assert "bento my_service:v1: " in out
    for item in ("bentos/my_service/v1", "models/large/m2", "models/small/m1"):
        assert tree(with_bento.path / item) == tree(built.path / item)


async def test_example_on_page_runs(with_bento, registry):
    (block,) = (block for block in blocks(pages=[ROOT / "docs" / "migrating.md"]) if block.title == "accelerate.py")

    out = await with_bento.python("-c", COUNTED + block.text + "assert not theirs", registry=registry)

    assert "bento my_service:v1: " in out


async def test_errors_are_bentoml_errors(there, registry):
    out = await there.python("-c", COUNTED + ERRORS, registry=registry)

    assert last_line(out) == [[True, "NotFoundError"], [False, "InvalidTagError"]]


async def test_unstored_model_falls_back(there, registry):
    out = await there.python("-c", COUNTED + LEFT_TO_BENTOML, registry=registry)

    assert last_line(out) == ["called by bentoml itself"] * 2


async def test_restore_ends_acceleration(with_bento, registry):
    assert last_line(await with_bento.python("-c", COUNTED + RESTORED, registry=registry)) == [True, True]


async def test_env_variable_disables(with_bento, registry):
    environment = {**with_bento.environment(registry), "ASYNC_BENTO_ACCELERATE": "0"}
    script = COUNTED + 'bentoml.push("my_service:v1")\nprint("\\n" + json.dumps([accelerated, len(theirs) > 0]))'

    assert last_line(await with_bento.python("-c", script, environment=environment)) == [False, True]


async def test_other_release_only_warns(with_bento, registry):
    declined, warned, sent_requests = last_line(
        await with_bento.python("-c", COUNTED + OTHER_RELEASE, registry=registry)
    )

    assert (declined, sent_requests) == (False, True)
    taken = "bento, force, parallel instead of bento, force, bare, threads"
    assert warned == [
        f"cannot accelerate bentoml 1.4.39: BentoAPI.push takes {taken}. Use AsyncBentoAPI or BentoAPI instead."
    ]


async def test_commands_use_async_bento(with_bento, there, built, registry):
    pushed = await with_bento.python("-c", NO_HTTPX, "push", "my_service:v1", registry=registry)
    again = await with_bento.python("-c", NO_HTTPX, "push", "my_service:v1", registry=registry)
    await there.python("-c", NO_HTTPX, "pull", "my_service:v1", "--with-models", registry=registry)

    assert "pushed" in pushed
    assert "already pushed" in again
    for item in ("bentos/my_service/v1", "models/large/m2", "models/small/m1"):
        assert tree(there.path / item) == tree(built.path / item)
