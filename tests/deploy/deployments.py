"""Reads the files in deploy/, and runs their commands."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
VARIABLE = re.compile(r"\$\{(\w+)(:\?[^}]*)?\}")


class Command(NamedTuple):
    """A command that runs a registry: arguments, variables, mounts, and the seconds until a kill."""

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


def read_only(writable: Path) -> list[str]:
    """Return a command prefix that makes all but a directory read-only, if the system allows that."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(writable)]
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    except FileNotFoundError:  # macOS
        return []
    return prefix if tried.returncode == 0 else []


@contextmanager
def registry_running(
    command: Command, changes: dict[str, str], writable: Path
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the registry of a deployment, with some values of options replaced, and yield its process and port."""
    (port,) = free_ports(1)
    arguments = "\0".join(command.arguments)
    for old, new in {**changes, "0.0.0.0": "127.0.0.1"}.items():
        assert old in arguments
        arguments = arguments.replace(old, new)
    serve = [sys.executable, "-m", "async_bento", "registry", "serve", *arguments.split("\0"), "--port", str(port)]
    process = subprocess.Popen(
        [*read_only(writable), *serve],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | command.environment,
    )
    try:
        assert process.stderr is not None
        lines: list[str] = []
        while not any("Serving" in line for line in lines[-1:]):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        yield process, port
    finally:
        process.kill()
        process.communicate()
