"""Run the pods and the CI jobs of the guides: the commands, users, mounts and variables that their YAML states."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from async_bento import BentoAPI
from tests.builders import contents, make_bento, make_model
from tests.docs.test_pages import ENDPOINT, ROOT, blocks, joined
from tests.registry.proxies import replaced
from tests.store.containers import ASYNC_BENTO, Container, Mount, containers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry.server import LocalRegistry

__all__ = ["containers"]

GUIDES = ROOT / "docs" / "guides"

BENTOML_SERVE = """
set -e
mkdir -p "$BENTOML_HOME/bentos" "$BENTOML_HOME/models" "$BENTOML_HOME/envs" "$BENTOML_HOME/tmp"
test "$1 $2" = "serve iris_classifier:v1"
test -w "$HOME"
async-bento store list
async-bento store list --models
"""
"""A script with the needs of `bentoml serve`: writable directories, a home, the bento and its model."""

BENTOML_BUILD = f"""
test "$1 $2" = "build --version"
exec {sys.executable} -c '
import sys
from pathlib import Path
from tests.builders import make_bento
make_bento(Path(sys.argv[1]), f"iris_classifier:{{sys.argv[2]}}")' "$BENTOML_HOME" "$3"
"""


def read(page: str, title: str) -> dict[str, Any]:
    (block,) = (each for each in blocks("yaml", [GUIDES / page]) if each.title == title)
    return yaml.safe_load(block.text)  # type: ignore[no-any-return]  # YAML


def test_guide_yaml_has_tests() -> None:
    titles = {each.title for page in ("ci.md", "clusters.md") for each in blocks("yaml", [GUIDES / page])}
    assert titles == {"deployment.yaml", "job.yaml", ".github/workflows/push.yml", ".gitlab-ci.yml"}


# Pods


@pytest.fixture
def volumes() -> Iterator[Path]:
    """A directory for the volumes of a pod, which every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def make_volumes(pod: dict[str, Any], directory: Path) -> dict[str, Path]:
    """Make the volumes like Kubernetes: `emptyDir` writable by all, others owned by root, with the `fsGroup`."""
    made = {}
    for each in pod["volumes"]:
        path = made[each["name"]] = directory / each["name"]
        path.mkdir(exist_ok=True)
        os.chown(path, 0, pod["securityContext"]["fsGroup"])
        path.chmod(0o2777 if "emptyDir" in each else 0o2775)
    return made


def as_container(pod: dict[str, Any], spec: dict[str, Any], volumes: dict[str, Path], **variables: str) -> Container:
    context = pod["securityContext"] | spec["securityContext"]
    values = {each["name"]: each.get("value", variables.get(each["name"], "")) for each in spec["env"]}
    return Container(
        user=context["runAsUser"],
        groups=(context["fsGroup"],),
        mounts=tuple(
            Mount(each["mountPath"], volumes[each["name"]], is_read_only=each.get("readOnly", False))
            for each in spec["volumeMounts"]
        ),
        has_read_only_root=context["readOnlyRootFilesystem"],
        has_capabilities=context["capabilities"] != {"drop": ["ALL"]},
        environment={name: value.replace(ENDPOINT, variables["endpoint"]) for name, value in values.items()},
        commands={"bentoml": BENTOML_SERVE},
    )


def run_pod(pod: dict[str, Any], volumes: Path, registry: LocalRegistry) -> list[subprocess.CompletedProcess[str]]:
    """Run the containers of a pod one after another, and return their outcomes."""
    made = make_volumes(pod, volumes)
    variables = {"endpoint": registry.endpoint, "BENTO_CLOUD_API_KEY": registry.api_token}
    done = []
    for spec in [*pod.get("initContainers", []), *pod["containers"]]:
        container = as_container(pod, spec, made, **variables)
        done.append(container.run(*map(str, [*spec["command"], *spec.get("args", [])])))
        if done[-1].returncode:
            break
    return done


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> LocalRegistry:
    """A registry with a bento with the label of the guide, and its model."""
    make_model(home, "iris_weights:w1")
    make_bento(home, "iris_classifier:v1", models=["iris_weights:w1"], labels={"stage": "prod"})
    with BentoAPI(progress=False) as api:
        api.push("iris_classifier:v1")
    return served


@pytest.mark.usefixtures("containers")
def test_init_container_pulls(pushed: LocalRegistry, home: Path, volumes: Path) -> None:
    pod = read("clusters.md", "deployment.yaml")["spec"]["template"]["spec"]
    pulled, served = run_pod(pod, volumes, pushed)
    assert pulled.returncode == 0, pulled.stderr
    assert served.returncode == 0, served.stderr
    assert re.findall(r"^\w+:\w+", served.stdout, re.MULTILINE) == ["iris_classifier:v1", "iris_weights:w1"]
    name = "bentos/iris_classifier/v1"
    assert contents(volumes / "bentoml" / name) == contents(home / name)


@pytest.mark.usefixtures("containers")
def test_root_init_container_pulls(pushed: LocalRegistry, volumes: Path) -> None:
    pod = read("clusters.md", "deployment.yaml")["spec"]["template"]["spec"]
    pod["initContainers"][0]["securityContext"]["runAsUser"] = 0
    done = run_pod(pod, volumes, pushed)
    assert [each.returncode for each in done] == [0, 0], done[-1].stderr


@pytest.mark.usefixtures("containers")
def test_job_pulls_once(pushed: LocalRegistry, volumes: Path) -> None:
    pod = read("clusters.md", "job.yaml")["spec"]["template"]["spec"]
    files = []
    for _ in range(2):
        (done,) = run_pod(pod, volumes, pushed)
        assert (done.returncode, done.stdout) == (
            0,
            "iris_classifier:v1 is in /bentoml/bentos/iris_classifier/v1\n",
        ), done.stderr
        files.append((volumes / "bentoml" / "bentos" / "iris_classifier" / "v1" / "bento.yaml").stat().st_ino)
    assert files[0] == files[1]
    assert (volumes / "bentoml" / "models" / "iris_weights" / "w1").is_dir()


@pytest.mark.parametrize("title", ["deployment.yaml", "job.yaml"])
def test_guide_pods_are_restricted(title: str) -> None:
    """Check the Pod Security Standard `restricted`, and a read-only root."""
    pod = read("clusters.md", title)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in [*pod.get("initContainers", []), *pod["containers"]]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in each["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


# Dockerfile


def test_dockerfile_pulls(pushed: LocalRegistry, home: Path, tmp_path: Path) -> None:
    (block,) = blocks("dockerfile", [GUIDES / "clusters.md"])
    (tmp_path / "token").write_text(f"{pushed.api_token}\n")
    changes = {
        ENDPOINT: pushed.endpoint,
        "/run/secrets/bento_token": str(tmp_path / "token"),
        "install -d -o 10001 -g 10001 /bentoml": f"mkdir {tmp_path}/image",
    }
    lines = re.findall(r"^RUN (?:--mount=\S+ )?(.*)$", replaced(joined(block.text), changes), re.MULTILINE)
    installed = run_script(lines, tmp_path, {"BENTOML_HOME": str(tmp_path / "image")})
    assert installed == "install bentoml async-bento\n"
    assert contents(tmp_path / "image/bentos/iris_classifier/v1") == contents(home / "bentos/iris_classifier/v1")
    assert (tmp_path / "image/models/iris_weights/w1/model.yaml").exists()


# CI


def run_script(lines: list[str], directory: Path, variables: dict[str, str]) -> str:
    """Run the lines of a job without pip's downloads and BentoML's build; return the arguments of pip."""
    programs = directory / "programs"
    programs.mkdir()
    scripts = {
        "async-bento": f'exec {" ".join(ASYNC_BENTO)} "$@"',
        "bentoml": BENTOML_BUILD,
        "pip": f'echo "$@" >> {directory}/installed',
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(lines)],
        cwd=directory,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (directory / "installed").read_text()


def check_pushed(version: str) -> None:
    with BentoAPI() as api:
        record = api.get("iris_classifier", version)
        assert (record.upload_status, {each.key: each.value for each in record.labels}) == (
            "success",
            {"stage": "staging"},
        )


def test_github_job_pushes(served: LocalRegistry, tmp_path: Path) -> None:
    workflow = read("ci.md", ".github/workflows/push.yml")
    job = workflow["jobs"]["push"]
    contexts = {
        "secrets.BENTO_CLOUD_API_ENDPOINT": served.endpoint,
        "secrets.BENTO_CLOUD_API_KEY": served.api_token,
        "github.workspace": str(tmp_path),
    }
    variables = {
        name: re.sub(r"\$\{\{ (\S+) \}\}", lambda found: contexts[found[1]], value)
        for name, value in job["env"].items()
    }
    lines = [step["run"] for step in job["steps"] if "run" in step]
    installed = run_script(lines, tmp_path, {**variables, "GITHUB_SHA": "0123456789abcdef0123456789abcdef01234567"})
    assert installed == "install bentoml async-bento\n"
    check_pushed("0123456789ab")


def test_gitlab_job_pushes(served: LocalRegistry, tmp_path: Path) -> None:
    job = read("ci.md", ".gitlab-ci.yml")["push"]
    given = {"CI_PROJECT_DIR": str(tmp_path), "CI_COMMIT_SHORT_SHA": "01234567"}
    variables = {
        name: re.sub(r"\$(\w+)", lambda found: given[found[1]], value) for name, value in job["variables"].items()
    }
    secrets = {"BENTO_CLOUD_API_ENDPOINT": served.endpoint, "BENTO_CLOUD_API_KEY": served.api_token}
    installed = run_script(job["script"], tmp_path, {**given, **variables, **secrets})
    assert installed == "install bentoml async-bento\n"
    check_pushed("01234567")
