"""Runs the real BentoML against this registry with every transmission; needs `bentoml==1.4.39`.

    python tests/registry/smoke_bentoml.py /path/to/an/environment/bin

builds a bento with a model, and for each transmission pushes it twice, pulls both into an empty home, compares them
with the build, and lists them. It needs neither pytest nor a network other than 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import filecmp
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from async_bento.registry.server import LocalRegistry

SERVICE = """
import bentoml

@bentoml.service
class Greeter:
    model = bentoml.models.BentoModel("greeting:v1")

    @bentoml.api
    def greet(self, name: str) -> str:
        return name
"""

MODEL = """
import os, bentoml
with bentoml.models.create("greeting:v1") as model:
    with open(os.path.join(model.path, "weights"), "wb") as file:
        file.write(os.urandom(3_000_000))
"""

LISTS = """
from bentoml._internal.cloud.bento import BentoAPI
from bentoml._internal.cloud.config import get_rest_api_client
from bentoml._internal.cloud.model import ModelAPI

client = get_rest_api_client()
bentos, models = BentoAPI(client), ModelAPI(client)
assert [item.version for item in bentos.list().items] == ["v1"]
assert [item.version for item in models.list().items] == ["v1"]
assert bentos.get("greeter", None).upload_status == "success"
assert models.get("greeting", "v1").upload_status == "success"
assert client.v1.get_current_user() and client.v1.get_current_organization()
"""

WAYS: dict[str, dict[str, Any]] = {
    "presigned parts": {"transmission": "presigned_url"},
    "through the registry": {"transmission": "proxy"},
    "one presigned PUT": {"transmission": "auto"},
    "auto without presigned URLs": {"transmission": "auto", "presign": False},
}


async def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    variables = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **environment}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{output}")
    return output


def same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same files; a push leaves out a bento's `models`."""
    found = filecmp.dircmp(one, other, ignore=["models"])
    if found.left_only or found.right_only or found.funny_files:
        return False
    _, *wrong = filecmp.cmpfiles(one, other, found.common_files, shallow=False)
    return not any(wrong) and all(same(one / name, other / name) for name in found.common_dirs)


async def main(bin_directory: Path, work: Path) -> None:
    python, bentoml = bin_directory / "python", bin_directory / "bentoml"
    home = work / "home"
    (work / "service.py").write_text(SERVICE)
    await run(python, "-c", MODEL, cwd=work, BENTOML_HOME=str(home))
    await run(bentoml, "build", "service:Greeter", "--version", "v1", cwd=work, BENTOML_HOME=str(home))
    for way, options in WAYS.items():
        async with LocalRegistry(work / way, **options) as registry:
            cloud = {"BENTO_CLOUD_API_ENDPOINT": registry.endpoint, "BENTO_CLOUD_API_KEY": registry.api_token}
            await run(bentoml, "push", "greeter:v1", cwd=work, BENTOML_HOME=str(home), **cloud)
            again = await run(bentoml, "push", "greeter:v1", cwd=work, BENTOML_HOME=str(home), **cloud)
            assert "Push skipped" in again, again
            await run(bentoml, "push", "greeter:v1", "--force", cwd=work, BENTOML_HOME=str(home), **cloud)
            fresh = work / f"home after {way}"
            await run(bentoml, "pull", "greeter:v1", cwd=work, BENTOML_HOME=str(fresh), **cloud)
            await run(bentoml, "models", "pull", "greeting:v1", cwd=work, BENTOML_HOME=str(fresh), **cloud)
            await run(python, "-c", LISTS, cwd=work, BENTOML_HOME=str(fresh), **cloud)
            assert same(home / "bentos" / "greeter" / "v1", fresh / "bentos" / "greeter" / "v1"), way
            assert same(home / "models" / "greeting" / "v1", fresh / "models" / "greeting" / "v1"), way
            await run(
                bentoml, "cloud", "login", "--api-token", registry.api_token, "--endpoint", registry.endpoint,
                cwd=work, BENTOML_HOME=str(work / f"login {way}"),
            )  # fmt: skip
        sys.stdout.write(f"{way}: pushed, skipped, forced, pulled, the same; listed; logged in\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(sys.argv[1]), Path(scratch)))
