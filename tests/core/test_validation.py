"""The first error of a validation, and times in UTC."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from async_bento._core.validation import TIME_FORMAT, RequestTime, UtcTime, first_error, format_time, in_utc


class Part(BaseModel):
    number: int
    etag: str = ""

    @field_validator("etag")
    @classmethod
    def check(cls, value: str) -> str:
        if value:
            raise ValueError("no ETag")
        return value


class Upload(BaseModel):
    parts: list[Part]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, ("parts", "Field required", "missing", 0)),
        ({"parts": [{"number": 1}, {}, {}]}, ("parts.1.number", "Field required", "missing", 1)),
        ({"parts": [{"number": 1, "etag": "secret"}]}, ("parts.0.etag", "no ETag", "value_error", 0)),
        ([], ("", "Input should be a valid dictionary or instance of Upload", "model_type", 0)),
    ],
)
def test_first_error_names_field(document: object, expected: tuple[str, str, str, int]) -> None:
    with pytest.raises(ValidationError) as caught:
        Upload.model_validate(document)
    assert first_error(caught.value) == expected


EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (datetime(2024, 5, 6, 7, 8, 9, 10), "2024-05-06 07:08:09.000010"),  # noqa: DTZ001 - a time without a zone
        (datetime(2024, 5, 6, 7, 8, 9, tzinfo=EAST), "2024-05-06 05:08:09.000000"),
        (datetime(7, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "0007-01-02 03:04:05.000000"),
    ],
)
def test_request_time_is_utc(time: datetime, text: str) -> None:
    assert format_time(time) == text
    assert TypeAdapter(RequestTime).dump_python(in_utc(time), mode="json") == text
    assert datetime.strptime(text, TIME_FORMAT).replace(tzinfo=timezone.utc) == in_utc(time)


def test_utc_time_out_of_range_fails() -> None:
    with pytest.raises(ValidationError, match="date value out of range"):
        TypeAdapter(UtcTime).validate_python("0001-01-01T00:00:00+02:00")
