"""The seed's example, with its imports changed, beside the real bentoml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.homes import tree

pytestmark = pytest.mark.interop

EXAMPLE = """
import os

import bentoml
from async_bento import BentoAPI, RestApiClient

endpoint, api_token = os.environ["BENTO_CLOUD_API_ENDPOINT"], os.environ["BENTO_CLOUD_API_KEY"]

# Create API instance
rest_client = RestApiClient(endpoint=endpoint, api_token=api_token)
bento_api = BentoAPI(client=rest_client)

# Push a bento
bento = bentoml.get("my_service:latest")
bento_api.push(bento, force=True, threads=10)
{in_between}
# Pull a bento
pulled = bento_api.pull("my_service:v1", with_models=True)

# List remote bentos
bentos = bento_api.list()

# Get specific bento info
info = bento_api.get("my_service", "v1")
"""

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


@pytest.mark.parametrize("in_between", ["", WITHOUT_THEM], ids=["as-it-stands", "with-something-to-pull"])
async def test_the_seeds_example_runs(with_bento, built, registry, in_between):
    script = EXAMPLE.format(in_between=in_between) + REPORT

    out = await with_bento.python("-W", "error::ResourceWarning", "-c", script, registry=registry)

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
