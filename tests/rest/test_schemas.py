"""The JSON of Yatai, of BentoCloud and of unknown servers."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from async_bento._core.validation import TIME_FORMAT
from async_bento.errors import APIResponseError
from async_bento.rest.request_schemas import (
    CompletePartSchema,
    CreateBentoSchema,
    CreateModelSchema,
    PreSignMultipartUploadUrlSchema,
    UpdateModelSchema,
)
from async_bento.rest.schemas import (
    BentoFullSchema,
    BentoManifestSchema,
    BentoRepositorySchema,
    BentoWithRepositoryListSchema,
    ModelManifestSchema,
    ModelRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
    UserSchema,
)
from tests.properties import unhurried

ANSWERS: list[type[BaseModel]] = [
    UserSchema,
    BentoRepositorySchema,
    ModelRepositorySchema,
    BentoFullSchema,
    ModelWithRepositorySchema,
    BentoWithRepositoryListSchema,
    ModelWithRepositoryListSchema,
]
PRESIGNED = "https://s3.example/yatai/iris.tar.gz?X-Amz-Credential=AK&X-Amz-Signature=5ecret"

YATAI_BENTO = {
    # As Yatai marshals `schemasv1.BentoFullSchema`: all fields, many of them null or zero.
    "uid": "b1",
    "created_at": "2024-05-01T10:20:30.123456789Z",
    "updated_at": "2024-05-01T10:20:31Z",
    "deleted_at": None,
    "name": "v1",
    "resource_type": "bento",
    "labels": None,
    "creator": {
        "uid": "u1",
        "name": "ada",
        "email": "ada@example.com",
        "first_name": "",
        "last_name": "",
        "is_super_admin": False,
        "config": None,
    },
    "bento_repository_uid": "r1",
    "version": "v1",
    "description": "",
    "image_build_status": "pending",
    "upload_status": "success",
    "upload_started_at": "2024-05-01T10:20:30Z",
    "upload_finished_at": None,
    "upload_finished_reason": "",
    "presigned_upload_url": "",
    "presigned_download_url": "",
    "presigned_urls_deprecated": False,
    "transmission_strategy": None,
    "upload_id": "",
    "manifest": {
        "service": "service:Svc",
        "bentoml_version": "1.4.39",
        "apis": None,
        "models": None,
        "runners": None,
        "size_bytes": 12,
    },
    "build_at": "2024-05-01T10:20:30.123456Z",
    "repository": {"uid": "r1", "name": "iris", "labels": None, "latest_bento": None, "n_bentos": 0},
    "models": None,
}
BENTOCLOUD_BENTO = {
    # As BentoML's `schemas/modelschemas.py` parses: optional fields are missing.
    "uid": "b1",
    "created_at": "2024-05-01T10:20:30.123456+00:00",
    "name": "v1",
    "resource_type": "bento",
    "version": "v1",
    "upload_status": "success",
    "transmission_strategy": "presigned_url",
    "labels": [{"key": "team", "value": "ml"}],
    "manifest": {"service": "service:Svc", "spec": 2, "image": {"base_image": "python:3.11"}, "schema": {"routes": []}},
}


@pytest.mark.parametrize("answer", [YATAI_BENTO, BENTOCLOUD_BENTO], ids=["yatai", "bentocloud"])
def test_yatai_and_bentocloud_parse(answer: dict[str, Any]) -> None:
    bento = BentoFullSchema.model_validate_json(json.dumps(answer))
    assert (bento.version, bento.upload_status, bento.upload_id, bento.models) == ("v1", "success", "", [])
    assert bento.created_at == datetime(2024, 5, 1, 10, 20, 30, 123456, tzinfo=timezone.utc)
    assert bento.deleted_at is None
    assert bento.presigned_download_url.get_secret_value() == ""
    assert bento.manifest is not None
    assert (bento.manifest.service, bento.manifest.models, bento.manifest.apis) == ("service:Svc", [], {})


@pytest.mark.parametrize("schema", [BentoFullSchema, ModelWithRepositorySchema])
def test_item_requires_only_version(schema: type[BentoFullSchema | ModelWithRepositorySchema]) -> None:
    item = schema.model_validate({"version": "v1"})
    assert (item.labels, item.manifest, item.creator, item.transmission_strategy, item.build_at) == (
        [],
        None,
        None,
        None,
        None,
    )


def test_unnamed_item_has_no_tag() -> None:
    item = ModelWithRepositorySchema.model_validate({"version": "v1"})
    assert item.size_bytes == 0
    assert repr(item) == "ModelWithRepositorySchema(tag='v1', upload_status='')"
    with pytest.raises(APIResponseError, match="did not send its name"):
        _ = item.tag


def test_long_list_has_short_repr() -> None:
    page = BentoWithRepositoryListSchema.model_validate({"items": [{"version": f"v{i}"} for i in range(1021)]})
    assert repr(page).endswith("'v19', ... 1,001 more])")
    assert repr(page[:1]) == "[BentoWithRepositorySchema(tag='v0', upload_status='')]"
    assert repr(BentoWithRepositoryListSchema(items=page[:20])).endswith("'v19'])")


@pytest.mark.parametrize("schema", ANSWERS)
def test_null_field_equals_missing(schema: type[BaseModel]) -> None:
    needed = {name: "x" for name, field in schema.model_fields.items() if field.is_required()}
    nulls = dict.fromkeys(schema.model_fields) | needed
    assert schema.model_validate(nulls) == schema.model_validate(needed)


@pytest.mark.parametrize("schema", ANSWERS)
def test_unknown_field_is_ignored(schema: type[BaseModel]) -> None:
    needed = {name: "x" for name, field in schema.model_fields.items() if field.is_required()}
    assert schema.model_validate(needed | {"invented_in_2031": {"a": [1]}}) == schema.model_validate(needed)


@pytest.mark.parametrize("label", [{"key": "team"}, {"key": "team", "value": None}, {"key": "team", "value": ""}])
def test_label_without_value_is_empty(label: dict[str, Any]) -> None:
    bento = BentoFullSchema.model_validate({"version": "v1", "labels": [label]})
    assert [(entry.key, entry.value) for entry in bento.labels] == [("team", "")]


@pytest.mark.parametrize("field", ["created_at", "build_at", "upload_finished_at", "transmission_strategy"])
def test_empty_optional_field_is_none(field: str) -> None:
    assert getattr(BentoFullSchema.model_validate({"version": "v1", field: ""}), field) is None


@pytest.mark.parametrize("strategy", ["proxy", "presigned_url"])
def test_known_strategy_is_kept(strategy: str) -> None:
    item = ModelWithRepositorySchema.model_validate({"version": "v1", "transmission_strategy": strategy})
    assert item.transmission_strategy == strategy


@pytest.mark.parametrize("strategy", ["torrent", 7, ["proxy"], {"by": "proxy"}])
def test_unknown_strategy_is_none(strategy: object) -> None:
    item = ModelWithRepositorySchema.model_validate({"version": "v1", "transmission_strategy": strategy})
    assert item.transmission_strategy is None


# Times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01T10:20:30Z", datetime(2024, 5, 1, 10, 20, 30, tzinfo=timezone.utc)),
        ("2024-05-01T10:20:30.1Z", datetime(2024, 5, 1, 10, 20, 30, 100_000, tzinfo=timezone.utc)),
        ("2024-05-01T10:20:30.999999999Z", datetime(2024, 5, 1, 10, 20, 30, 999_999, tzinfo=timezone.utc)),
        ("2024-05-01T18:20:30+08:00", datetime(2024, 5, 1, 10, 20, 30, tzinfo=timezone.utc)),
        ("2024-05-01T10:20:30", datetime(2024, 5, 1, 10, 20, 30, tzinfo=timezone.utc)),
        ("2024-05-01 10:20:30.123456", datetime(2024, 5, 1, 10, 20, 30, 123456, tzinfo=timezone.utc)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=timezone.utc)),
    ],
)
def test_time_of_go_is_parsed_in_utc(text: str, expected: datetime) -> None:
    created_at = BentoFullSchema.model_validate({"version": "v1", "created_at": text}).created_at
    assert created_at == expected
    assert created_at.tzinfo == timezone.utc


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+08:00", "9999-12-31T23:59:59-01:00"])
def test_time_out_of_range_is_invalid(text: str) -> None:
    with pytest.raises(ValidationError, match="date value out of range"):
        BentoFullSchema.model_validate({"version": "v1", "created_at": text})


def build_at(when: datetime) -> str:
    record = CreateModelSchema(manifest=ModelManifestSchema(), version="v1", build_at=when)
    text: str = json.loads(record.model_dump_json())["build_at"]
    return text


@pytest.mark.parametrize(
    "when",
    [
        datetime(2024, 5, 1, 10, 20, 30, tzinfo=timezone.utc),
        datetime(2024, 5, 1, 10, 20, 30),  # noqa: DTZ001
        datetime(2024, 5, 1, 12, 20, 30, tzinfo=timezone(timedelta(hours=2))),
    ],
    ids=["utc", "naive", "elsewhere"],
)
def test_build_at_has_yatai_format(when: datetime) -> None:
    assert build_at(when) == "2024-05-01 10:20:30.000000"


@unhurried
@given(st.datetimes())
def test_build_at_round_trips(when: datetime) -> None:
    assert len(build_at(when)) == len("2024-05-01 10:20:30.123456")
    assert datetime.strptime(build_at(when), TIME_FORMAT) == when  # noqa: DTZ007


# Secrets


@pytest.mark.parametrize("field", ["presigned_upload_url", "presigned_download_url"])
def test_presigned_url_is_hidden(field: str) -> None:
    item = BentoFullSchema.model_validate({"version": "v1", field: PRESIGNED})
    page = BentoWithRepositoryListSchema.model_validate({"items": [{"version": "v1", field: PRESIGNED}]})
    for shown in (item, page):
        assert "5ecret" not in f"{shown!r} {shown} {shown.model_dump()} {shown.model_dump_json()}"
    assert getattr(item, field) == SecretStr(PRESIGNED)


# Requests


def test_create_bento_sends_all_fields() -> None:
    record = CreateBentoSchema(
        description="",
        manifest=BentoManifestSchema.model_validate({"schema": {"name": "Svc"}}),
        version="v1",
        build_at=datetime(2024, 5, 1, tzinfo=timezone.utc),
    )
    body = json.loads(record.model_dump_json(by_alias=True))
    assert set(body) == {"description", "manifest", "labels", "version", "build_at"}
    assert body["manifest"]["schema"] == {"name": "Svc"}
    assert "schema_" not in body["manifest"]


@pytest.mark.parametrize("number", [0, 10_001])
def test_upload_part_number_is_bounded(number: int) -> None:
    with pytest.raises(ValidationError):
        CompletePartSchema(part_number=number, etag="e")
    with pytest.raises(ValidationError):
        PreSignMultipartUploadUrlSchema(part_number=number, upload_id="u")


def test_request_rejects_unknown_field() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        UpdateModelSchema.model_validate({"manifest": {}, "versoin": "v1"})


# Any input

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TIMES = st.one_of(
    st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat),
    st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2024-13-01T00:00:00Z", "1e400"]),
    st.integers(),
    st.floats(),
)


def alike(schema: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Objects with a schema's own fields, each valid, a time or any JSON."""
    values = {
        name: ANYTHING | (TIMES if name.endswith("_at") else st.text(max_size=8))
        for name in {field.alias or name for name, field in schema.model_fields.items()}
    }
    return st.fixed_dictionaries({}, optional=values)


@pytest.mark.parametrize("schema", [*ANSWERS, BentoManifestSchema, ModelManifestSchema])
@settings(unhurried, max_examples=60)
@given(data=st.data())
def test_any_json_parses_or_raises(schema: type[BaseModel], data: st.DataObject) -> None:
    answer = data.draw(ANYTHING | alike(schema))
    try:
        schema.model_validate_json(json.dumps(answer))
    except ValidationError:
        return


@settings(unhurried, max_examples=200)
@given(TIMES)
def test_any_time_parses_or_raises(when: Any) -> None:
    try:
        BentoFullSchema.model_validate_json(json.dumps({"version": "v1", "created_at": when}))
    except ValidationError:
        return


@unhurried
@given(st.binary())
def test_any_bytes_parse_or_raise(body: bytes) -> None:
    try:
        UserSchema.model_validate_json(body)
    except ValidationError:
        return
