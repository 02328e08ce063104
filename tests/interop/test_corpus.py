"""Items of every release of BentoML: async-bento and bentoml push the same records and pull the same files."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.corpus.hub import model_info
from tests.corpus.items import BENTOS, CORPUS, LINES, MODELS, OPTIONS_OF_TODAY, copy_to, make_missing_models, tags_of
from tests.interop.homes import Home, MiB, tree

pytestmark = [pytest.mark.interop, pytest.mark.parametrize("line", LINES)]

EXCEPTIONS = {  # All accepted differences, with reasons.
    "build_at of a model of the Hub": (
        "The field has the time of the push: in UTC by async-bento, in local time by BentoML."
    ),
    "a model's record is renewed": "See test_requests.py.",
    "the options of a model": "See `OPTIONS_OF_TODAY` in tests/corpus/items.py.",
}


@pytest.fixture
def here(line, tmp_path, monkeypatch) -> Home:
    """A home with the items of a release, and a Hub that answers."""
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    here = Home(tmp_path / "here")
    copy_to(here.path, line)
    make_missing_models(here.path)
    return here


async def test_sent_json_matches_bentoml(line, tmp_path):
    home = Home(tmp_path / "here")
    copy_to(home.path, line)

    sent = json.loads(await home.python(str(CORPUS / "sent.py")))

    assert sent == json.loads((CORPUS / line / "sent.json").read_text(encoding="utf-8"))
    assert [*sent["bentos"]] == tags_of(line, BENTOS)
    assert [*sent["models"]] == tags_of(line, MODELS)


def records(requests):
    """Return the sent records by request, sorted: models are pushed concurrently, in any order."""
    return {
        request: sorted(
            ({**body, "build_at": "…"} if is_of_the_hub(body) else body for body in bodies),
            key=lambda body: body.get("version", ""),
        )
        for request, bodies in requests.items()
        if all("manifest" in (body or {}) for body in bodies)
    }


def is_of_the_hub(body):
    return body["manifest"].get("metadata", {}).get("registry") == "huggingface"


def remove_new_options(line, requests):
    """Undo the differences of `OPTIONS_OF_TODAY`."""
    for name, options in OPTIONS_OF_TODAY.items():
        of_line, _, repository, version = name.split("/")
        if of_line == line:
            (body,) = requests[f"POST /api/v1/model_repositories/{repository}/models"]
            assert (body["version"], body["manifest"]["options"]) == (version, options)
            body["manifest"]["options"] = {}


def repositories(tags):
    return {tag.partition(":")[0] for tag in tags}


def needed_in(home):
    return [str(model.tag) for bento in home.bentos.list() for model in bento.models]


async def test_requests_equal_bentoml(line, here, theirs, ours):
    bentos, models = tags_of(line, BENTOS), tags_of(line, MODELS)
    pushes = [{}, {"bare": True, "force": True}]
    await here.calls(
        ["know_the_hub", {}],
        *(["push_model", {"tag": tag}] for tag in models),
        *(["push", {"tag": tag, **options}] for tag in bentos for options in pushes),
        registry=theirs,
    )

    async with here.api(ours, part_size=100 * MiB) as api:
        for tag in models:
            await api.models.push(tag)
        for tag in bentos:
            for options in pushes:
                await api.push(tag, **options)

    we, they = records(ours.bodies), records(theirs.bodies)
    remove_new_options(line, they)
    renewed = {request for request in we if request.startswith("PATCH /api/v1/model_repositories/")}
    assert we.keys() - they.keys() == renewed != set(), EXCEPTIONS["a model's record is renewed"]
    assert {request: bodies for request, bodies in we.items() if request not in renewed} == they
    needed = await asyncio.to_thread(needed_in, here)
    assert len(they) == 2 * len(bentos) + len(repositories([*models, *needed]))


async def test_bentoml_loads_pulled_items(line, here, there, registry):
    bentos, models = tags_of(line, BENTOS), tags_of(line, MODELS)
    async with here.api(registry) as api:
        for tag in models:
            await api.models.push(tag)
        for tag in bentos:
            await api.push(tag)
    async with there.api(registry) as api:
        for tag in models:
            await api.models.pull(tag)
        for tag in bentos:
            await api.pull(tag)
    look = [
        ["list_all", {}],
        *(["info", {"tag": tag}] for tag in bentos),
        *(["info_of_model", {"tag": tag}] for tag in models),
    ]

    (listed, *infos), (_, *originals) = await asyncio.gather(there.calls(*look), here.calls(*look))

    assert infos == originals
    assert [f"{info['name']}:{info['version']}" for info in infos] == [*bentos, *models]
    assert listed == {"bentos": bentos, "models": models}
    for path in [*(f"bentos/{tag}" for tag in bentos), *(f"models/{tag}" for tag in models)]:
        pushed = tree(here.path / path.replace(":", "/"))
        # BentoML 1.0.0 put the models of a bento into the bento; a push sends them separately.
        expected = {name: content for name, content in pushed.items() if name.split("/")[0] != "models"}
        assert tree(there.path / path.replace(":", "/")) == expected
