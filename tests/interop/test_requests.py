"""What a registry is told of a bento and its models: by bentoml, and by us."""

from __future__ import annotations

import json

import pytest

from tests.interop.homes import MiB
from tests.interop.project import LABELS, NOTES

pytestmark = pytest.mark.interop

TAG = "my_service:v1"
BENTOS = "/api/v1/bento_repositories/my_service/bentos"

MODEL_RECORDS = {
    "PATCH /api/v1/model_repositories/large/models/m2",
    "PATCH /api/v1/model_repositories/small/models/m1",
}

EXCEPTIONS = {  # All that may differ, and why. The test also fails when one of them is no difference any more.
    "a model's record is renewed": (
        "A push by force renews the record of a model as it renews that of a bento. BentoML sends the new bytes and "
        "leaves the record as it was: `_do_push_model` (bentoml/_internal/cloud/model.py) does nothing for one that "
        "is there."
    ),
    "GET": (
        "BentoML asks for the repository first, and then for the item. Of an item that is there, its repository need "
        "not be asked for."
    ),
    "etag": "It is the store's word for the bytes of a tar, and the two tars differ in owners and times.",
    "upload_id": "It is the registry's word, said back to it.",
}


def without_exceptions(body):
    if isinstance(body, dict):
        return {name: "…" if name in EXCEPTIONS else without_exceptions(value) for name, value in body.items()}
    return [without_exceptions(value) for value in body] if isinstance(body, list) else body


def comparable(said):
    """All that was said, by request. Models go in parallel: which of their repositories came first does not matter."""
    bodies = {
        request: [*map(without_exceptions, bodies)]
        for request, bodies in said.items()
        if request.partition(" ")[0] not in EXCEPTIONS
    }
    bodies["POST /api/v1/model_repositories"].sort(key=json.dumps)
    return bodies


def questions(said):
    """How many there were that change nothing."""
    return sum(len(bodies) for request, bodies in said.items() if request.startswith("GET "))


@pytest.mark.parametrize(
    ("pushes", "created_as_dev", "renewed_as_dev"),
    [
        pytest.param([{}, {}, {"force": True}], [False], [False], id="whole"),
        pytest.param(
            [{"bare": True}, {}, {"bare": True, "force": True}, {"force": True}], [True], [True, False], id="bare"
        ),
    ],
)
async def test_requests_equal_bentoml(with_bento, theirs, ours, pushes, created_as_dev, renewed_as_dev):
    await with_bento.calls(*(["push", {"tag": TAG, **options}] for options in pushes), registry=theirs)

    # With parts as large as BentoML's, and one thread, there are as many: more threads would make more of them.
    async with with_bento.api(ours, part_size=100 * MiB) as api:
        for options in pushes:
            await api.push(TAG, threads=1, **options)

    created, renewed = ours.said[f"POST {BENTOS}"], ours.said[f"PATCH {BENTOS}/v1"]
    assert [body["manifest"]["dev"] for body in created] == created_as_dev
    assert [body["manifest"]["dev"] for body in renewed] == renewed_as_dev
    assert {label["key"]: label["value"] for label in created[0]["labels"]} == LABELS
    assert created[0]["description"] == NOTES
    assert ours.versions == theirs.versions == {"1.4.39"}

    assert ours.said.keys() - theirs.said.keys() == MODEL_RECORDS, EXCEPTIONS["a model's record is renewed"]
    for request in MODEL_RECORDS:
        create = request.replace("PATCH", "POST").rpartition("/")[0]
        only_created = {"version", "build_at"}
        body = {name: value for name, value in theirs.said[create][0].items() if name not in only_created}
        assert all(renewal == body for renewal in ours.said.pop(request))
    assert comparable(ours.said) == comparable(theirs.said)
    assert questions(ours.said) < questions(theirs.said), EXCEPTIONS["GET"]
