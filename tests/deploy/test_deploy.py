"""The files in deploy/: the commands are accepted, what they need is mounted, and the command of the image runs."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
import yaml

from async_bento import AsyncBentoAPI, BentoStore, RestApiClient
from async_bento.cli.registry import Places
from async_bento.cli.serve import serve
from async_bento.registry import LocalRegistry
from tests.builders import contents, make_bento
from tests.registry.proxies import CADDY_MAIN, CERTIFICATE, KEY, replaced, running
from tests.registry.seaweed import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.timer"))

EXPOSURE = 20
"""What `systemd-analyze security` may find at most, in tenths; without any hardening, a unit has 96."""

VARIABLE = re.compile(r"\$\{(\w+)(:\?[^}]*)?\}")


class Command(NamedTuple):
    """A command that runs a registry: its arguments and variables, what is mounted, and the seconds it has to stop."""

    arguments: list[str]
    environment: dict[str, str]
    mounts: list[str]
    stop: int


def read_containerfile() -> dict[str, str]:
    """Return the last instruction of each kind in the last stage."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
    stage = text.rpartition("\nFROM ")[2]
    return dict(re.findall(r"^([A-Z]+) +(.*)$", stage, re.MULTILINE))


def read_documents() -> dict[str, dict[str, Any]]:
    """Return the Kubernetes objects by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def read_unit(path: Path) -> dict[str, str]:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # typeshed takes it for a method
    unit.read(path)
    return dict(unit["Service"])


def read_compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())  # type: ignore[no-any-return]  # YAML


def entry_point() -> list[str]:
    """Return the arguments of `registry serve` in the ENTRYPOINT."""
    command = json.loads(read_containerfile()["ENTRYPOINT"])
    assert command[:3] == ["async-bento", "registry", "serve"]
    return command[3:]


def image() -> Command:
    instructions = read_containerfile()
    arguments = [*entry_point(), *json.loads(instructions["CMD"])]
    return Command(arguments, {}, [instructions["VOLUME"]], stop=10)  # Docker's default


def compose() -> Command:
    service = read_compose()["services"]["registry"]
    values = {"DOMAIN": "bentos.example.com", "POSTGRES_PASSWORD": "a", "S3_SECRET_KEY": "b"}
    service = yaml.safe_load(VARIABLE.sub(lambda found: values[found[1]], yaml.safe_dump(service, width=1000)))
    mounts = [f"/run/secrets/{name}" for name in service["secrets"]] + service["tmpfs"]
    return Command(
        [*entry_point(), *service["command"]],
        service["environment"],
        mounts,
        stop=int(service["stop_grace_period"].removesuffix("s")),
    )


def kubernetes() -> Command:
    pod = read_documents()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    secret = {"database": "postgresql://USER:PASSWORD@HOST/DATABASE"}
    environment = {
        each["name"]: each.get("value") or secret.get(each["valueFrom"]["secretKeyRef"]["key"], "")
        for each in container["env"]
    }
    (*_, seconds) = container["lifecycle"]["preStop"]["exec"]["command"]
    return Command(
        [*entry_point(), *container["args"]],
        environment,
        [each["mountPath"] for each in container["volumeMounts"]],
        stop=pod["terminationGracePeriodSeconds"] - int(seconds),
    )


def unit() -> Command:
    service = read_unit(DEPLOY / "async-bento-registry.service")
    _, registry, subcommand, *arguments = shlex.split(service["ExecStart"].replace("%S", "/var/lib"))
    assert (registry, subcommand, arguments.pop()) == ("registry", "serve", "$OPTIONS")
    mounts = [f"/var/lib/{name}" for name in service["StateDirectory"].split()]
    return Command(arguments, {}, mounts, stop=int(service["TimeoutStopSec"]))


COMMANDS = [image, compose, kubernetes, unit]


@pytest.mark.parametrize("make", COMMANDS)
def test_command_of_deployment_is_accepted(make, monkeypatch: pytest.MonkeyPatch):
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


def test_backup_unit_backs_up_the_directory_of_the_service():
    service, backup = (read_unit(DEPLOY / f"async-bento-registry{name}.service") for name in ("", "-backup"))
    arguments = shlex.split(backup["ExecStart"])
    assert arguments[1:3] == ["registry", "backup"]
    assert arguments[-1] in service["ExecStart"]
    assert backup["User"] == service["User"]
    assert {each.removeprefix("%S/") for each in (arguments[3], arguments[-1])} == set(backup["StateDirectory"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_units_are_valid_and_hardened(tmp_path: Path):
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


def test_services_of_compose_are_hardened():
    for name, service in read_compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_compose_has_no_secret_and_no_default():
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
    """What the Pod Security Standard `restricted` asks for, and a root that is read-only."""
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


def test_images_have_a_version():
    images = [service["image"] for service in read_compose()["services"].values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    images += [read_documents()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]]
    built = "async-bento-registry:local"
    assert all(re.search(r":\d+\.\d+", name) for name in images if name != built), images


def test_kubernetes_objects_select_the_pods():
    objects = read_documents()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    ((path,),) = (rule["http"]["paths"] for rule in objects["Ingress"]["spec"]["rules"])
    assert path["backend"]["service"]["name"] == objects["Service"]["metadata"]["name"]


def test_alerts_name_metrics_of_the_registry(served: LocalRegistry):
    text = (DEPLOY / "prometheus-alerts.yaml").read_text()
    with urllib.request.urlopen(f"{served.endpoint}/metrics") as response:
        exposed = set(re.findall(r"^# TYPE (\w+)", response.read().decode(), re.MULTILINE))

    named = {re.sub("_bucket$", "", name) for name in re.findall(r"async_bento_registry_\w+", text)}

    assert named
    assert named <= exposed
    assert all(rule["alert"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"])


def read_only(writable: Path) -> list[str]:
    """Return a prefix of commands that makes the root read-only but for a directory, where the system allows that."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(writable)]
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    except FileNotFoundError:  # macOS
        return []
    return prefix if tried.returncode == 0 else []


@contextmanager
def image_running(root: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command of the image, with another directory and a free port, and yield its process and port."""
    changes = {"/data": str(root), "0.0.0.0": "127.0.0.1"}
    assert set(changes) <= set(image().arguments)
    (port,) = free_ports(1)
    arguments = [*(changes.get(each, each) for each in image().arguments), "--port", str(port)]
    root.mkdir()
    process = subprocess.Popen(
        [*read_only(root), sys.executable, "-m", "async_bento", "registry", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert any("Serving" in line for line in process.stderr)
        yield process, port
    finally:
        process.kill()
        process.communicate()


@pytest.mark.processes
def test_command_of_image_runs_until_its_stop_signal(tmp_path: Path):
    instructions = read_containerfile()
    probe = json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])
    (container,) = read_documents()["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {each["httpGet"]["path"] for name, each in container.items() if name.endswith("Probe")}
    with image_running(tmp_path / "data") as (process, port):
        health = [sys.executable, *(each.replace("3000", str(port)) for each in probe[1:])]
        assert subprocess.run(health, check=False).returncode == 0
        for path in paths:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                assert response.status == 200
        process.send_signal(signal.Signals[instructions["STOPSIGNAL"]])
        assert process.wait(30) == 0
    assert instructions["EXPOSE"] == "3000"
    assert subprocess.run(health, check=False, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.proxies
async def test_push_and_pull_through_caddyfile(home: Path, tmp_path: Path):
    ports = free_ports(2)
    endpoint = f"https://127.0.0.1:{ports[0]}"
    block = (DEPLOY / "Caddyfile").read_text().partition("\n\n")[0]
    upstream = re.search(r"dynamic a \{.*?\}", block, re.DOTALL)
    assert upstream is not None
    changes = {
        "{$DOMAIN} {": f"{endpoint} {{\n\ttls {CERTIFICATE} {KEY}",
        upstream[0]: f"to 127.0.0.1:{ports[1]}",
    }
    (tmp_path / "conf").write_text(CADDY_MAIN + replaced(block, changes))
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(tmp_path / "conf")]
    before = contents(make_bento(home, "svc:v1"))
    registry = LocalRegistry(tmp_path / "registry", port=ports[1], public_url=endpoint)
    async with registry, running(command, ports[0], tmp_path):
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        client = RestApiClient(endpoint, registry.api_token, ssl=trusting)
        async with client, AsyncBentoAPI(client) as api:
            await api.push("svc:v1")
            pulled = await api.pull("svc:v1", bento_store=BentoStore(tmp_path / "other" / "bentos"))
            assert contents(pulled.path) == before
        async with aiohttp.ClientSession() as session, session.get(f"{endpoint}/metrics", ssl=trusting) as response:
            assert response.status == 404
