"""The files in deploy/: valid commands, all needed mounts, and a run of the image's command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from async_bento.cli.registry import Places
from async_bento.cli.serve import serve
from tests.deploy.deployments import (
    DEPLOY,
    VARIABLE,
    compose,
    image,
    kubernetes,
    read_compose,
    read_containerfile,
    read_documents,
    read_unit,
    registry_running,
    unit,
)

if TYPE_CHECKING:
    from async_bento.registry import LocalRegistry

UNITS = sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.timer"))

EXPOSURE = 20
"""The highest allowed exposure by `systemd-analyze security`, in tenths; a unit without hardening has 96."""

COMMANDS = [image, compose, kubernetes, unit]


@pytest.mark.parametrize("make", COMMANDS)
def test_deployment_command_is_valid(make, monkeypatch: pytest.MonkeyPatch):
    command = make()
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)

    given = serve.make_context("serve", list(command.arguments)).params
    names = ("root", "database", "bucket_name", "s3_endpoint", "s3_prefix")
    bucket = Places(*(given[name] for name in names)).bucket(given["s3_public_endpoint"])

    paths = [value for value in given.values() if isinstance(value, str) and value.startswith("/")]
    assert paths
    for path in paths:
        assert any(Path(path).is_relative_to(mount) for mount in command.mounts), f"{path} is not mounted"
    assert given["grace"] < command.stop
    assert (bucket is None) == (given["root"] is not None)


def test_backup_unit_matches_service():
    service, backup = (read_unit(DEPLOY / f"async-bento-registry{name}.service") for name in ("", "-backup"))
    arguments = shlex.split(backup["ExecStart"])
    assert arguments[1:3] == ["registry", "backup"]
    assert arguments[-1] in service["ExecStart"]
    assert backup["User"] == service["User"]
    assert {each.removeprefix("%S/") for each in (arguments[3], arguments[-1])} == set(backup["StateDirectory"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_units_valid_and_hardened(tmp_path: Path):
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/async-bento/bin/async-bento", sys.executable))
    names = [str(tmp_path / path.name) for path in UNITS]

    verified = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False)

    assert (verified.returncode, verified.stderr) == (0, "")
    for name in names:
        if name.endswith(".timer"):
            continue
        security = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", name]
        rated = subprocess.run(security, capture_output=True, text=True, check=False)
        assert rated.returncode == 0, rated.stdout[-200:]


def test_compose_is_hardened():
    for name, service in read_compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_compose_requires_variables():
    text = (DEPLOY / "compose.yaml").read_text()
    required = {found[1] for found in VARIABLE.finditer(text) if found[2]}
    assert (
        required == {found[1] for found in VARIABLE.finditer(text)} == {"DOMAIN", "POSTGRES_PASSWORD", "S3_SECRET_KEY"}
    )
    assert text.count("$") == len(VARIABLE.findall(text))
    for line in re.findall(r".*(?:PASSWORD|SECRET)\w*:.*", text):
        assert "${" in line
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert {".env", "secrets/"} <= set(ignored)


def test_pods_are_restricted():
    """Check the Pod Security Standard `restricted`, and a read-only root."""
    pod = read_documents()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == read_containerfile()["USER"].partition(":")[0]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_images_have_version():
    images = [service["image"] for service in read_compose()["services"].values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    images += [read_documents()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]]
    built = "async-bento-registry:local"
    assert all(re.search(r":\d+\.\d+", name) for name in images if name != built), images


def test_kubernetes_selectors_match():
    objects = read_documents()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    ((path,),) = (rule["http"]["paths"] for rule in objects["Ingress"]["spec"]["rules"])
    assert path["backend"]["service"]["name"] == objects["Service"]["metadata"]["name"]


def test_alerts_name_known_metrics(served: LocalRegistry):
    text = (DEPLOY / "prometheus-alerts.yaml").read_text()
    with urllib.request.urlopen(f"{served.endpoint}/metrics") as response:
        exposed = set(re.findall(r"^# TYPE (\w+)", response.read().decode(), re.MULTILINE))

    named = {re.sub("_bucket$", "", name) for name in re.findall(r"async_bento_registry_\w+", text)}

    assert named
    assert named <= exposed
    assert all(rule["alert"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"])


@pytest.mark.processes
def test_image_runs_until_stop_signal(tmp_path: Path):
    instructions = read_containerfile()
    probe = json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])
    (container,) = read_documents()["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {each["httpGet"]["path"] for name, each in container.items() if name.endswith("Probe")}
    data = tmp_path / "data"
    data.mkdir()
    with registry_running(image(), {"/data": str(data)}, data) as (process, port):
        health = [sys.executable, *(each.replace("3000", str(port)) for each in probe[1:])]
        assert subprocess.run(health, check=False).returncode == 0
        for path in paths:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                assert response.status == 200
        process.send_signal(signal.Signals[instructions["STOPSIGNAL"]])
        assert process.wait(30) == 0
    assert instructions["EXPOSE"] == "3000"
    assert subprocess.run(health, check=False, stderr=subprocess.DEVNULL).returncode != 0
