"""Errors of the Hub, which show no token, no password and no query of a URL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from async_bento import Tag
from async_bento.integrations.huggingface.errors import translate_error
from async_bento.integrations.huggingface.model import HubModel

URL = "https://ada:5ecret@hub.example/x?signature=5ecret"
TEXT = f"cannot read {URL} with hf_5ecretOfSomebody or 5ecret-token"


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [
        OSError(TEXT),
        errors.GatedRepoError(TEXT, response=response(403)),
        errors.RevisionNotFoundError(TEXT, response=response(404)),
        errors.RepositoryNotFoundError(TEXT, response=response(401)),
        errors.OfflineModeIsEnabled(TEXT),
        errors.HfHubHTTPError(TEXT, response=response(401)),
        errors.HfHubHTTPError(TEXT, response=response(500)),
    ],
    ids=["other", "gated", "revision", "repository", "offline", "401", "500"],
)
def test_hub_error_hides_secrets(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "5ecret-token\n")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    shown = str(translate_error(HubModel(Tag("bert", "h1"), "org/bert", endpoint=URL), error))
    assert "https://hub.example/x" in shown
    assert "5ecret" not in shown
