"""Field types that the schemas of the store and of the HTTP API share, and the first error of a validation."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, JsonValue, PlainSerializer

if TYPE_CHECKING:
    from pydantic import ValidationError

JsonObject = dict[str, JsonValue]

TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
"""The only form of `build_at` that Yatai parses, always in UTC (BentoML's `_internal/cloud/schemas/utils.py`)."""


def in_utc(value: datetime) -> datetime:
    """Convert a time to UTC; a time without a zone is UTC."""
    try:
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    except OverflowError:  # the years of a datetime are 1 to 9999
        raise ValueError("date value out of range") from None


def format_time(value: datetime) -> str:
    """Write a time as `TIME_FORMAT`, like `2024-05-06 07:08:09.000010`."""
    # Not strftime: the C library decides how many digits it writes for a year before 1000.
    return in_utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")


UtcTime = Annotated[datetime, AfterValidator(in_utc)]
"""A time in ISO 8601 or RFC 3339, with up to nanoseconds; without a zone it is UTC."""

RequestTime = Annotated[UtcTime, PlainSerializer(format_time, return_type=str)]
"""A `UtcTime` that is serialized in the form of requests."""


class FirstError(NamedTuple):
    """The first error of a validation: the dotted path of its field, empty for the whole document, and the reason."""

    field: str
    message: str
    type: str  # pydantic's name for the kind of error, like `missing`
    others: int


def first_error(error: ValidationError) -> FirstError:
    """Return the first error of a validation; it never quotes the input, which may hold a secret."""
    first, *others = error.errors()
    message = first["msg"].removeprefix("Value error, ")  # pydantic's prefix for a ValueError of a validator
    return FirstError(".".join(map(str, first["loc"])), message, first["type"], len(others))
