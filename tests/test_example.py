"""Run the example of BentoML's `BentoAPI` with changed imports, blocking and awaited, without BentoML."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.api.test_sync_api import run_script
from tests.builders import make_bento, make_model
from tests.example import WITHOUT_BENTOML, asynchronous, blocking

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

REPORT = """
import json
print(json.dumps({
    "pulled": [str(pulled.tag), str(pulled.path)],
    "bentos": [item.version for item in bentos.items],
    "info": [info.version, info.upload_status, info.manifest.models],
    "modules": "bentoml" in sys.modules,
}))
"""


@pytest.mark.parametrize("form", [blocking, asynchronous])
def test_example_runs_without_bentoml(form: Callable[..., str], served: LocalRegistry, home: Path) -> None:
    bento = make_bento(home, "my_service:v1", models=["mod:m1"])
    make_model(home, "mod:m1")

    out = run_script(form(WITHOUT_BENTOML, after=REPORT), served.endpoint, served.api_token)

    assert json.loads(out) == {
        "pulled": ["my_service:v1", str(bento)],
        "bentos": ["v1"],
        "info": ["v1", "success", ["mod:m1"]],
        "modules": False,
    }
