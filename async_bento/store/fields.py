"""The values that stand in `bento.yaml` and `model.yaml`, and what JSON has for them."""

from __future__ import annotations

import base64
import json
import math
from datetime import date, datetime
from itertools import count
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, BeforeValidator, InstanceOf, JsonValue, PlainSerializer, StrictStr

from async_bento._core.validation import JsonObject, format_time
from async_bento.store.tag import Tag

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_VALUES = 1_000_000
"""Values in one free-form field. YAML's aliases make a few hundred bytes stand for billions."""


def fields_of(value: object) -> dict[str, object] | None:
    """See a value as a mapping.

    Args:
        value: What YAML gave.

    Returns:
        The mapping, or None where it is none.
    """
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _to_text(value: object) -> object:
    # As BentoML has it: `value: 3` is "3" and `value: yes` is "True".
    return str(value) if isinstance(value, (bool, int, float)) else value


def _labels(value: object) -> object:
    fields = fields_of(value)
    if fields is None:
        return value
    _json(fields)  # it counts: of aliases within aliases, text would have no end
    return {str(key): str(text) for key, text in fields.items()}


def _name(value: str) -> str:
    return Tag(value).name


def _version(value: str) -> str:
    return Tag("name", value).version or ""


def _json(value: object) -> object:
    return _to_json(value, count(1))


def _to_json(value: object, counted: Iterator[int]) -> JsonValue:
    if next(counted) > MAX_VALUES:
        raise ValueError(f"it holds over {MAX_VALUES} values")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        members = cast("dict[object, object]", value).items()
        return {_to_key(key): _to_json(member, counted) for key, member in members}
    if isinstance(value, (list, tuple, set)):
        return [_to_json(member, counted) for member in cast("list[object]", value)]
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise ValueError(f"a {type(value).__name__} has no form in JSON")


def _to_key(key: object) -> str:
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, (bool, int, float)) else str(key)


FreeForm = Annotated[JsonObject, BeforeValidator(_json)]
"""What a user may fill as they like. Of what JSON has no form for, times become text in UTC, dates ISO 8601, bytes
base64, and NaN and the infinities null; BentoML 1.4.39 fails on all of them when it pushes."""

Text = Annotated[str, BeforeValidator(_to_text)]
Labels = Annotated[dict[str, str], BeforeValidator(_labels)]
Name = Annotated[StrictStr, AfterValidator(_name)]
Version = Annotated[StrictStr, AfterValidator(_version)]
TagField = Annotated[InstanceOf[Tag], BeforeValidator(Tag.parse), PlainSerializer(str, return_type=str)]
