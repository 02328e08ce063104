"""The tree of errors, and their attributes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import traceback
from typing import Any

import pytest
from hypothesis import given, strategies as st

from async_bento import errors
from async_bento._core.urls import without_queries
from async_bento.errors import (
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    BentoError,
    ConfigError,
    HubError,
    ModelsError,
    PartError,
    PushesError,
    RateLimitError,
    ServerError,
    SourceChangedError,
    UnsafeArchiveError,
)
from tests.properties import unhurried

ERRORS = {
    name: error
    for name, error in vars(errors).items()
    if inspect.isclass(error) and issubclass(error, Exception) and error.__module__ == errors.__name__
}
ANSWERED = {"status": 503, "server_message": "down", "trace_id": "t1", "retry_after": 2.5}
ATTRIBUTES: dict[type[BentoError], dict[str, Any]] = {
    APIStatusError: ANSWERED,
    AuthenticationError: ANSWERED,
    RateLimitError: ANSWERED,
    ServerError: ANSWERED,
    APIResponseError: {"field": "items.0.version"},
    HubError: {"model_id": "org/bert", "status": 403},
    ModelsError: {"failures": {"mod:m1": "why"}},
    PushesError: {"failures": {"mod:m1": "why"}},
    errors.StalledError: {"is_final": True},
    PartError: {"status": 503, "part_number": 7, "retry_after": 2.5},
    SourceChangedError: {"path": "model.bin"},
    UnsafeArchiveError: {"member": "../etc/passwd"},
}


def drawn_tree() -> dict[str, set[str]]:
    """Return each error of the docstring's tree, with the names of its bases."""
    tree: dict[str, set[str]] = {"BentoError": set()}
    above = ["BentoError"]
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r" {4}((?:[│ ] {3})*)[├└]── (\w+)(?: \((\w+)\))?", line)
        if drawn is None:
            continue
        depth = len(drawn[1]) // 4 + 1
        above[depth:] = [drawn[2]]
        tree.setdefault(drawn[2], set()).update({above[depth - 1]}, {drawn[3]} if drawn[3] else set())
    return tree


def test_error_tree_matches_docstring() -> None:
    assert drawn_tree() == {
        name: {base.__name__ for base in error.__bases__ if base is not Exception} for name, error in ERRORS.items()
    }


def test_input_error_is_value_error() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(errors.InvalidTagError, ValueError)


def test_error_prefix_not_repeated() -> None:
    with (
        pytest.raises(errors.StoreError, match=r"^cannot pull svc: no space$"),
        errors.prefix_errors("cannot pull svc"),
    ):
        raise errors.StoreError("cannot pull svc: no space")


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_copied_error_keeps_attributes(kind: type[BentoError], again: Any) -> None:
    attributes = ATTRIBUTES.get(kind, {})
    error = kind("what went wrong", **attributes)
    copied = again(error)
    assert copied is not error
    assert type(copied) is kind
    assert (str(copied), copied.args) == ("what went wrong", ("what went wrong",))
    assert vars(copied) == vars(error) == attributes


def test_attributes_table_is_complete() -> None:
    with_attributes = {error for error in ERRORS.values() if error.__init__ is not Exception.__init__}
    assert {error for error in with_attributes if "self" in inspect.signature(error.__init__).parameters} >= set(
        ATTRIBUTES
    )
    for kind, attributes in ATTRIBUTES.items():
        parameters = inspect.signature(kind).parameters.values()
        assert {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} == set(attributes)


def failing_request() -> None:
    error = PartError("broken pipe", status=503, part_number=7, retry_after=2.5)
    raise error from OSError(32, "Broken pipe")


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("types", [(), (ConfigError, PartError)])
def test_prefix_keeps_cause_and_type(types: tuple[type[BentoError], ...]) -> None:
    expected = pytest.raises(PartError, match=r"^cannot push iris:v1: broken pipe$")
    with expected as caught, errors.prefix_errors("cannot push iris:v1", *types):
        failing_request()
    error = caught.value
    assert type(error) is PartError
    assert vars(error) == ATTRIBUTES[PartError]
    assert isinstance(error.__cause__, OSError)
    assert "failing_request" in frames(error)
    shown = "".join(traceback.format_exception(error))
    assert shown.count("PartError: ") == 1
    assert "During handling" not in shown


@pytest.mark.parametrize("other", [KeyError("a bug"), ConfigError("no token")])
def test_other_type_is_not_prefixed(other: Exception) -> None:
    with pytest.raises(type(other)) as caught, errors.prefix_errors("cannot push iris:v1", PartError):
        raise other
    assert caught.value is other


def test_with_message_keeps_original() -> None:
    original = HubError("gated", model_id="org/bert", status=403)
    copied = errors.with_message(original, "log in first")
    assert (str(original), str(copied)) == ("gated", "log in first")
    assert vars(copied) == vars(original)


def test_caller_subclass_pickles() -> None:
    error = pickle.loads(pickle.dumps(CallersError("no", status=409, extra=1)))
    assert (str(error), error.status, error.extra) == ("no", 409, 1)


class CallersError(APIStatusError):
    def __init__(self, message: str, *, status: int, extra: int) -> None:
        super().__init__(message, status=status)
        self.extra = extra


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET https://s3.example/b/k?X-Amz-Signature=5ecret failed", "GET https://s3.example/b/k?… failed"),
        ("http://a/?a=5ecret and https://b?5ecret", "http://a/?… and https://b?…"),
        ("HTTPS://S3.EXAMPLE/k?sig=5ecret", "HTTPS://S3.EXAMPLE/k?…"),
        ("URL('https://s3.example/k?sig=5ecret')", "URL('https://s3.example/k?…')"),
        ('{"url":"https://s3.example/k?a=1\\u0026sig=5ecret"}', '{"url":"https://s3.example/k?…"}'),
        ("<Url>https://s3.example/k?sig=5ecret</Url>", "<Url>https://s3.example/k?…</Url>"),
        ("https://s3.example/k?sig=5ecret\nnext", "https://s3.example/k?…\nnext"),
        ("https://s3.example/k?sig=5ecret#part", "https://s3.example/k?…"),
        ("https://s3.example/k is there", "https://s3.example/k is there"),
        ("really? yes", "really? yes"),
        ("", ""),
    ],
)
def test_without_queries_drops_query(text: str, left: str) -> None:
    assert without_queries(text) == left


@unhurried
@given(st.text(), st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.text())
def test_without_queries_keeps_text(before: str, query: str, after: str) -> None:
    text = f"{without_queries(before)} https://s3.example/k?{query} {without_queries(after)}"
    assert without_queries(text) == (f"{without_queries(before)} https://s3.example/k?… {without_queries(after)}")
