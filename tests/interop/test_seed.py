"""The seed's example with changed imports, in one process with the real bentoml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.example import BENTOML, asynchronous, blocking
from tests.interop.homes import tree

pytestmark = pytest.mark.interop

WITHOUT_THEM = """
for model in bento.info.all_models:
    bentoml.models.delete(model.tag)
bentoml.delete(bento.tag)
assert not bentoml.list() and not bentoml.models.list()
"""

REPORT = """
import json

print()
print(json.dumps({
    "pulled": [str(pulled.tag), str(pulled.path)],
    "bentos": [[bento.repository.name, bento.version] for bento in bentos.items],
    "info": [info.manifest.name, info.version, info.upload_status, info.manifest.models],
    "bentoml": [str(bentoml.get("my_service").tag), *(str(model.tag) for model in bentoml.models.list())],
}))
"""


@pytest.mark.parametrize("form", [blocking, asynchronous])
@pytest.mark.parametrize("in_between", ["", WITHOUT_THEM], ids=["as-it-stands", "with-something-to-pull"])
async def test_seed_example_runs(with_bento, built, registry, form, in_between):
    script = form(BENTOML, before_the_pull=in_between, after=REPORT)
    arguments = (registry.endpoint, registry.api_token)

    out = await with_bento.python("-W", "error::ResourceWarning", "-c", script, *arguments)

    path = with_bento.path / "bentos" / "my_service" / "v1"
    assert json.loads(out.splitlines()[-1]) == {
        "pulled": ["my_service:v1", str(path)],
        "bentos": [["my_service", "v1"]],
        "info": ["my_service", "v1", "success", ["large:m2", "small:m1"]],
        "bentoml": ["my_service:v1", "large:m2", "small:m1"],
    }
    for item in (Path("bentos", "my_service", "v1"), Path("models", "large", "m2"), Path("models", "small", "m1")):
        assert tree(with_bento.path / item) == tree(built.path / item)
    assert any("start_multipart_upload" in line for line in registry.requests.lines)
    assert any("presign_download_url" in line for line in registry.requests.lines) == bool(in_between)
