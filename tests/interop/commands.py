"""BentoML's own commands against one registry: `python commands.py both ENDPOINT TOKEN`, with an empty `$BENTOML_HOME`.

The script builds a bento with models, logs in, pushes, lists, deletes the local copies, pulls, and compares. A start of
BentoML takes seconds, so one process runs all commands. Each model is named after its transmission strategy. `pull`
replaces the items in the stores by those of the registry, and compares. `accelerated` is `both` accelerated by
async-bento. The script runs with every release of BentoML since 1.2.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml_cli.cli import cli

PART_SIZE = 5 * 2**20
TRANSMISSIONS = ("presigned_url", "proxy", "auto")
MODELS = [f"{name}:v1" for name in TRANSMISSIONS]

# BentoML 1.2.0 to 1.2.4 cannot pull a model through the registry: the pull opens a URL that was never presigned.
HAS_FAULT = re.fullmatch(r"1\.2\.[0-4]", metadata.version("bentoml"))
PULLED = [model for model in MODELS if not (HAS_FAULT and model == "proxy:v1")]

SERVICE = """
import bentoml


@bentoml.service
class Greeter:
    model = bentoml.models.{find}("presigned_url:v1")

    @bentoml.api
    def greet(self, name: str) -> str:
        return name
"""

OLD_SERVICE = """
import bentoml

Greeter = bentoml.Service("greeter", models=[bentoml.models.get("presigned_url:v1")])
"""


def service():
    """Return the source of a service with a model, in the form of the installed release."""
    if not hasattr(bentoml, "service"):
        return OLD_SERVICE
    return SERVICE.format(find="BentoModel" if hasattr(bentoml.models, "BentoModel") else "get")


def set_part_size():
    """Upload in small parts: set the part size in each module that has one."""
    for name in ("base", "bento", "bentocloud", "model"):
        module = sys.modules.get(f"bentoml._internal.cloud.{name}")
        if hasattr(module, "FILE_CHUNK_SIZE"):
            module.FILE_CHUNK_SIZE = PART_SIZE


def run(*arguments):
    """Run a command and return its output."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            cli.main(list(arguments), standalone_mode=False)
    except BaseException as error:
        raise AssertionError(f"{arguments} failed:\n{output.getvalue()}") from error
    return output.getvalue()


def digests(item):
    path = Path(item.path)
    return {
        each.relative_to(path).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in path.rglob("*")
        if each.is_file()
    }


def stored():
    return {str(item.tag): digests(item) for item in (*bentoml.bentos.list(), *bentoml.models.list())}


def build():
    for name in TRANSMISSIONS:
        with bentoml.models.create(f"{name}:v1") as model:
            Path(model.path_of("weights")).write_bytes(os.urandom(PART_SIZE + 1000))
    project = Path("project")
    project.mkdir()
    (project / "service.py").write_text(service())
    (project / "weights").write_bytes(os.urandom(2 * PART_SIZE + 1000))
    bentoml.bentos.build(
        "service:Greeter",
        name="greeter",
        version="v1",
        include=["*"],
        python={"lock_packages": False},
        build_ctx=str(project),
    )


def push():
    assert "pushed" in run("push", "greeter:v1")
    again = run("push", "greeter:v1")
    if not metadata.version("bentoml").startswith("1.2."):  # some of 1.2 print nothing
        assert "skipped" in again or "already pushed" in again, again
    assert "pushed" in run("push", "greeter:v1", "--force")
    for model in MODELS:
        run("models", "push", model)


def check_records():
    """Check the lists of the registry by BentoML's client."""
    client = BentoMLContainer.bentocloud_client.get()
    is_old = not hasattr(client, "bento")
    bentos = (client.list_bentos() if is_old else client.bento.list()).items
    models = (client.list_models() if is_old else client.model.list()).items
    assert [
        (item.repository.name, item.version, getattr(item.upload_status, "value", item.upload_status))
        for item in bentos
    ] == [("greeter", "v1", "success")]
    assert sorted(f"{item.repository.name}:{item.version}" for item in models) == sorted(MODELS)
    if not is_old:
        assert [client.bento.get("greeter", version).version for version in (None, "v1")] == ["v1", "v1"]
    if hasattr(getattr(client, "model", None), "get"):
        assert client.model.get("auto", None).upload_status == "success"


def pull():
    """Delete all items of the stores, pull them, and compare."""
    built = stored()
    run("delete", "greeter:v1", "--yes")
    for model in PULLED:
        run("models", "delete", model, "--yes")
    assert not stored().keys() & {"greeter:v1", *PULLED}
    has_option = "--with-models" in run("pull", "--help")
    run("pull", "greeter:v1", *(["--with-models"] if has_option else []))
    for model in PULLED:
        run("models", "pull", model)
    assert stored() == built
    assert "greeter" in run("list")
    assert "auto" in run("models", "list")


def main(what, endpoint, token):
    set_part_size()
    if what == "accelerated":
        from async_bento.integrations.bentoml import accelerate

        assert accelerate()
    if what != "pull":
        build()
        assert sorted(stored()) == sorted(["greeter:v1", *MODELS])
    assert "logged in" in run("cloud", "login", "--endpoint", endpoint, "--api-token", token).lower()
    if what != "pull":
        push()
        check_records()
    pull()


if __name__ == "__main__":
    main(*sys.argv[1:])
