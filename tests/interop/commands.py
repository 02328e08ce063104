"""BentoML's own commands against one registry: `python commands.py ENDPOINT TOKEN`, in an empty `$BENTOML_HOME`.

It builds a bento with models, logs in, pushes, lists, deletes the local copies, pulls, and compares. A start of BentoML
takes seconds, so one process runs all commands. The names of the models are the ways of their bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from pathlib import Path

import bentoml
from bentoml._internal.cloud import bento as cloud_bento, model as cloud_model
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml_cli.cli import cli

PART_SIZE = 5 * 2**20
TRANSMISSIONS = ("presigned_url", "proxy", "auto")

SERVICE = """
import bentoml


@bentoml.service
class Greeter:
    model = bentoml.models.BentoModel("presigned_url:v1")

    @bentoml.api
    def greet(self, name: str) -> str:
        return name
"""


def run(*arguments):
    """Run a command, and return what it prints."""
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
    (project / "service.py").write_text(SERVICE)
    (project / "weights").write_bytes(os.urandom(2 * PART_SIZE + 1000))
    bentoml.bentos.build(
        "service:Greeter",
        name="greeter",
        version="v1",
        include=["*"],
        python={"lock_packages": False},
        build_ctx=str(project),
    )


def main(endpoint, token):
    cloud_bento.FILE_CHUNK_SIZE = cloud_model.FILE_CHUNK_SIZE = PART_SIZE
    build()
    built = stored()
    models = [f"{name}:v1" for name in TRANSMISSIONS]
    assert sorted(built) == sorted(["greeter:v1", *models])

    assert "Logged in" in run("cloud", "login", "--endpoint", endpoint, "--api-token", token)
    assert "Successfully pushed" in run("push", "greeter:v1")
    assert "Push skipped" in run("push", "greeter:v1")
    assert "Successfully pushed" in run("push", "greeter:v1", "--force")
    for model in models:
        run("models", "push", model)

    client = BentoMLContainer.bentocloud_client.get()
    bentos = client.bento.list().items
    assert [(item.repository.name, item.version, item.upload_status) for item in bentos] == [
        ("greeter", "v1", "success")
    ]
    assert sorted(f"{item.repository.name}:{item.version}" for item in client.model.list().items) == sorted(models)
    assert [client.bento.get("greeter", version).version for version in (None, "v1")] == ["v1", "v1"]
    assert client.model.get("auto", None).upload_status == "success"

    run("delete", "greeter:v1", "--yes")
    for model in models:
        run("models", "delete", model, "--yes")
    assert stored() == {}
    run("pull", "greeter:v1", "--with-models")
    for model in models:
        run("models", "pull", model)
    assert stored() == built
    assert "greeter" in run("list")
    assert "auto" in run("models", "list")


if __name__ == "__main__":
    main(*sys.argv[1:])
