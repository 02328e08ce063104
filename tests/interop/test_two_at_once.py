"""Two processes push the same bento, with many models in few repositories, at the same time."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from tests.fault_proxy import FaultProxy, Hold
from tests.interop.homes import Home, tree

pytestmark = pytest.mark.interop

TAG = "many:v1"
REPOSITORIES = ["one", "three", "two"]
MODELS = [f"{name}:m{number}" for name in REPOSITORIES for number in range(4)]


@pytest.fixture
async def many(tmp_path) -> Home:
    """A home with a bento built by bentoml, and its twelve models in three repositories."""
    home = Home(tmp_path / "many")
    project = home.path / "project"
    project.mkdir()
    attributes = "".join(f"    m{n} = bentoml.models.BentoModel({tag!r})\n" for n, tag in enumerate(MODELS))
    (project / "service.py").write_text(
        f"import bentoml\n\n@bentoml.service(name='many')\nclass Many:\n{attributes}\n"
        "    @bentoml.api\n    def double(self, number: int) -> int:\n        return 2 * number\n"
    )
    (project / "bentofile.yaml").write_text("service: service:Many\nname: many\npython: {lock_packages: false}\n")
    await home.calls(
        *(["create_model", {"tag": tag, "files": {"weights": tag * 200}}] for tag in MODELS),
        ["build", {"project": "project", "version": "v1"}],
    )
    return home


@pytest.fixture
async def proxy(registry):
    """A proxy that holds each repository request until both clients have sent it."""
    async with FaultProxy(registry.running) as proxy:
        for name in REPOSITORIES:
            meeting = Hold(count=2)
            meeting.released = meeting.arrived
            proxy.add_fault(rf"GET .*/model_repositories/{name}$", meeting, times=2)
        yield proxy


def through(proxy):
    return SimpleNamespace(endpoint=proxy.endpoint, api_token=proxy.registry.api_token)


async def push(home, proxy):
    """Push by async-bento, in a separate process."""
    return json.loads(await home.python("-m", "async_bento", "push", TAG, "--json", registry=through(proxy)))


async def check_everything_is_there(proxy, many, there):
    created = Counter(
        request.json["name"] for request in proxy.matching("POST .*/model_repositories$") if request.status == 200
    )
    assert created == dict.fromkeys(REPOSITORIES, 1)
    async with there.api(through(proxy)) as api:
        bentos, models = (await api.list()).items, (await api.models.list()).items
        await api.pull(TAG, with_models=True)
    assert [(bento.repository.name, bento.upload_status) for bento in bentos] == [("many", "success")]
    assert sorted(f"{model.repository.name}:{model.version}" for model in models) == MODELS
    assert {model.upload_status for model in models} == {"success"}
    assert len({model.repository.uid for model in models}) == len(REPOSITORIES)
    for path in ("bentos/many/v1", *(f"models/{tag.replace(':', '/')}" for tag in MODELS)):
        assert await asyncio.to_thread(tree, there.path / path) == await asyncio.to_thread(tree, many.path / path)


async def test_concurrent_pushes_succeed(many, proxy, there, tmp_path):
    another = Home(tmp_path / "another")  # in one home, the second push would wait for the first
    for store in ("bentos", "models"):
        shutil.copytree(many.path / store, another.path / store)
    results = await asyncio.gather(push(many, proxy), push(another, proxy))

    for result in results:
        assert sorted(model["tag"] for model in result["models"]) == MODELS
    asked = Counter(request.json["name"] for request in proxy.matching("POST .*/model_repositories$"))
    assert asked == dict.fromkeys(REPOSITORIES, 2)
    await check_everything_is_there(proxy, many, there)


@dataclass
class Winner:
    """Holds each create request of one client until the other has created the item.

    Attributes:
        is_ours: Whether async-bento creates first.
        created: Set once the winner has created the item, by path and name.
    """

    is_ours: bool
    created: defaultdict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def __call__(self, exchange):
        await exchange.read()
        body = exchange.logged.json
        created = self.created[f"{exchange.logged.path} {body.get('version') or body['name']}"]
        wins = exchange.request.headers["User-Agent"].startswith("async-bento") == self.is_ours
        if not wins:
            await created.wait()
        answer = await exchange.forward()
        if wins:
            created.set()
        return answer


@pytest.mark.parametrize(
    ("is_ours", "bentoml_error"),
    [
        # BentoML creates the missing items, and fails if they exist by then: `_do_push_model`, `_do_push_bento`.
        pytest.param(True, "create model_repository", id="async-bento-wins"),
        pytest.param(False, None, id="bentoml-wins"),
    ],
)
async def test_push_racing_bentoml_succeeds(many, proxy, there, is_ours, bentoml_error):
    proxy.add_fault(r"POST .*/(model_repositories|bento_repositories|models|bentos)$", Winner(is_ours), times=None)

    ours, (theirs,) = await asyncio.gather(
        push(many, proxy), many.try_calls(["push", {"tag": TAG, "threads": 2}], registry=through(proxy))
    )

    assert sorted(model["tag"] for model in ours["models"]) == MODELS
    if bentoml_error is None:
        assert theirs is None
    else:
        assert bentoml_error in theirs["error"]
        assert "duplicate key" in theirs["error"]
    await check_everything_is_there(proxy, many, there)
