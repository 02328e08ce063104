"""bentoml and async-bento send the same requests for a bento and its models."""

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

EXCEPTIONS = {  # All accepted differences, with reasons. The test also fails if one of them no longer differs.
    "a model's record is renewed": (
        "A forced push of async-bento updates the records of bentos and models. BentoML uploads the new bytes and "
        "keeps the old record of a model: `_do_push_model` (bentoml/_internal/cloud/model.py) only creates records."
    ),
    "GET": (
        "BentoML requests the repository and then the item. async-bento requests the repository only for a missing "
        "item."
    ),
    "etag": "The storage computes it from the bytes of a tar, and the two tars differ in owners and times.",
    "upload_id": "The registry generates it.",
}


def without_exceptions(body):
    if isinstance(body, dict):
        return {name: "…" if name in EXCEPTIONS else without_exceptions(value) for name, value in body.items()}
    return [without_exceptions(value) for value in body] if isinstance(body, list) else body


def comparable(requests):
    """Return the bodies by request; concurrent pushes of models create the repositories in any order."""
    bodies = {
        request: [*map(without_exceptions, bodies)]
        for request, bodies in requests.items()
        if request.partition(" ")[0] not in EXCEPTIONS
    }
    bodies["POST /api/v1/model_repositories"].sort(key=json.dumps)
    return bodies


def count_reads(requests):
    """Count the GET requests."""
    return sum(len(bodies) for request, bodies in requests.items() if request.startswith("GET "))


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

    # The part size of BentoML and one thread give the same number of parts; more threads would give more parts.
    async with with_bento.api(ours, part_size=100 * MiB) as api:
        for options in pushes:
            await api.push(TAG, threads=1, **options)

    created, renewed = ours.bodies[f"POST {BENTOS}"], ours.bodies[f"PATCH {BENTOS}/v1"]
    assert [body["manifest"]["dev"] for body in created] == created_as_dev
    assert [body["manifest"]["dev"] for body in renewed] == renewed_as_dev
    assert {label["key"]: label["value"] for label in created[0]["labels"]} == LABELS
    assert created[0]["description"] == NOTES
    assert ours.versions == theirs.versions == {"1.4.39"}

    assert ours.bodies.keys() - theirs.bodies.keys() == MODEL_RECORDS, EXCEPTIONS["a model's record is renewed"]
    for request in MODEL_RECORDS:
        create = request.replace("PATCH", "POST").rpartition("/")[0]
        only_created = {"version", "build_at"}
        body = {name: value for name, value in theirs.bodies[create][0].items() if name not in only_created}
        assert all(renewal == body for renewal in ours.bodies.pop(request))
    assert comparable(ours.bodies) == comparable(theirs.bodies)
    assert count_reads(ours.bodies) < count_reads(theirs.bodies), EXCEPTIONS["GET"]
