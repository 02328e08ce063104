"""`accelerate` without BentoML; `tests/interop/test_accelerate.py` tests it with the real BentoML."""

from __future__ import annotations

from importlib import metadata

import pytest

from async_bento.integrations import bentoml


def test_accelerate_no_bentoml_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)

    with pytest.warns(UserWarning, match=r"cannot accelerate bentoml: it is not installed\. "):
        assert not bentoml.accelerate()
    bentoml.restore()
