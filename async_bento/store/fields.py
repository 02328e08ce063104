"""The types of the fields in `bento.yaml` and `model.yaml`, and their form in JSON."""

from __future__ import annotations

import base64
import json
import math
from datetime import date, datetime
from itertools import count
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, BeforeValidator, InstanceOf, JsonValue, PlainSerializer, StrictStr

from async_bento._core.tag import Tag
from async_bento._core.validation import JsonObject, format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_VALUES = 1_000_000
"""Values in one free-form field. With YAML's aliases, a few hundred bytes can stand for billions."""


def as_mapping(value: object) -> dict[str, object] | None:
    """Narrow a parsed YAML value to a mapping; None where it is none."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _to_text(value: object) -> object:
    # As BentoML does: `value: 3` is "3" and `value: yes` is "True".
    return str(value) if isinstance(value, (bool, int, float)) else value


def _to_labels(value: object) -> object:
    fields = as_mapping(value)
    if fields is None:
        return value
    _to_json(fields)  # for its limit: nested aliases would become a text without end
    return {str(key): str(text) for key, text in fields.items()}


def _validate_name(value: str) -> str:
    return Tag(value).name


def _validate_version(value: str) -> str:
    return Tag("name", value).version or ""


def _to_json(value: object) -> JsonValue:
    return _convert(value, count(1))


def _convert(value: object, counter: Iterator[int]) -> JsonValue:
    if next(counter) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        members = cast("dict[object, object]", value).items()
        return {_to_key(key): _convert(member, counter) for key, member in members}
    if isinstance(value, set):  # sorted, since its order differs from process to process
        value = sorted(cast("set[object]", value), key=str)
    if isinstance(value, (list, tuple)):
        return [_convert(member, counter) for member in cast("list[object]", value)]
    if isinstance(value, datetime):  # before `date`, of which it is a subclass
        return format_time(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise ValueError(f"JSON cannot hold a {type(value).__name__}")


def _to_key(key: object) -> str:
    if isinstance(key, str):
        return key
    # As `json.dumps` writes keys: true, null and numbers by their JSON text.
    return json.dumps(key) if key is None or isinstance(key, (bool, int, float)) else str(key)


FreeForm = Annotated[JsonObject, BeforeValidator(_to_json)]
"""A mapping of the user's. Values that JSON cannot hold are converted: times become text in UTC, dates ISO 8601, bytes
base64, and NaN and the infinities null. BentoML 1.4.39 fails on all of them when it pushes."""

Text = Annotated[str, BeforeValidator(_to_text)]
Labels = Annotated[dict[str, str], BeforeValidator(_to_labels)]
Name = Annotated[StrictStr, AfterValidator(_validate_name)]
Version = Annotated[StrictStr, AfterValidator(_validate_version)]
TagField = Annotated[InstanceOf[Tag], BeforeValidator(Tag.parse), PlainSerializer(Tag.__str__, return_type=str)]
