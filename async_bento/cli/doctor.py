"""`async-bento doctor`: check the registry, the API token, the clock, the local store and the disk."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import anyio.to_thread
import click

from async_bento._core.text import human_size, human_time
from async_bento._core.version import __version__
from async_bento.cli.errors import exit_code
from async_bento.cli.options import RegistryOptions, asynchronous, registry_options
from async_bento.cli.output import print_json, wrap
from async_bento.config import BENTOML_VERSION, Config, GiB, bentoml_home
from async_bento.errors import APIError, AuthenticationError, BentoError, ConfigError, ServerError, StoreError
from async_bento.rest.client import RestApiClient
from async_bento.store.store import BentoStore, ModelStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

MAX_CLOCK_SKEW = 60.0
"""Seconds. S3 rejects signatures that are 15 minutes off, and `latest` compares times of different machines."""

MIN_FREE_SPACE = GiB
"""Bytes; the size of a bento with a model."""

_ASK = "Ask the administrator of the registry."
_PACKAGES = ("aiohttp", "bentoml", "huggingface_hub", "aiobotocore")


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `error` is None if it passed."""

    name: str
    message: str
    error: BentoError | None = None


@click.command()
@registry_options
@asynchronous
async def doctor(registry: RegistryOptions) -> None:
    """Check the registry, the token and this machine.

    The checks cover the registry, the API token, the clock, the local store, free disk space and versions. A failed
    check suggests a fix. The exit code is that of the first failed check. The storage behind presigned URLs is not
    checked: a push or a pull shows whether it can be reached.

    \b
    Examples:
      async-bento doctor
      async-bento doctor --context staging
    """
    checks: list[Check] = []
    async for check in run_checks(registry.endpoint, registry.context):
        checks.append(check)
        if not registry.as_json:
            word, colour = ("ok  ", "green") if check.error is None else ("FAIL", "red")
            line = wrap(f"{word}  {check.name + ':':10}", check.message)
            click.echo(click.style(word, fg=colour) + line[len(word) :])
    if registry.as_json:
        records = [{"name": check.name, "ok": check.error is None, "message": check.message} for check in checks]
        print_json(records)
    error = next((check.error for check in checks if check.error is not None), None)
    if error is not None:
        click.get_current_context().exit(exit_code(error))


async def run_checks(endpoint: str | None = None, context: str | None = None) -> AsyncGenerator[Check]:
    """Run all checks, and yield each outcome as soon as it is known."""
    async for check in _check_registry(endpoint, context):
        yield check
    for name, function in (("store", check_store), ("space", check_space), ("versions", list_versions)):
        yield await anyio.to_thread.run_sync(_run, name, function)


async def _check_registry(endpoint: str | None, context: str | None) -> AsyncGenerator[Check]:
    try:
        config = await anyio.to_thread.run_sync(Config.from_env)
        client = RestApiClient(endpoint, context=context, config=config)
        credentials = await anyio.to_thread.run_sync(lambda: client.credentials)
    except BentoError as error:
        yield Check("settings", str(error), error)
        return
    yield Check("settings", f"the API token comes from {credentials.source}")
    async with client:
        try:
            probe = await client.probe()
        except (APIError, ConfigError) as error:
            yield Check(
                "endpoint", _with_remedy(error, "Check the URL, and whether a proxy or a VPN is needed."), error
            )
            return
    if isinstance(probe.error, ServerError):  # its cause is not the token
        yield Check("endpoint", _with_remedy(probe.error, _ASK), probe.error)
    else:
        yield Check("endpoint", f"{credentials.endpoint} responds in {probe.seconds * 1000:.0f} ms")
    if isinstance(probe.error, AuthenticationError):
        yield Check("token", str(probe.error), probe.error)
    elif probe.error is not None and not isinstance(probe.error, ServerError):
        yield Check("token", _with_remedy(probe.error, _ASK), probe.error)
    elif probe.user is not None:
        yield Check("token", f"valid, for user {probe.user.name}")
    yield check_clock(probe.clock_skew)


def check_clock(skew: float | None) -> Check:
    """Compare the clocks; `skew` is how far this machine's is ahead of the registry's, in seconds, if known."""
    if skew is None:
        return Check("clock", "not compared: the registry sends no time")
    if abs(skew) <= MAX_CLOCK_SKEW:
        return Check("clock", "agrees with the registry's clock")
    direction = "ahead of" if skew > 0 else "behind"
    message = f"{human_time(abs(skew))} {direction} the registry's clock. Set this clock, or synchronize it by NTP."
    return Check("clock", message, BentoError(message))


def check_store() -> str:
    """Stage an item in both stores, as a pull does; return where the stores are. Blocks."""
    for store in (BentoStore(), ModelStore()):
        try:
            with store.stage():
                pass
        except StoreError as error:
            parent = store.path.parent
            remedy = f"Make {parent} writable for this user, or set BENTOML_HOME to another directory."
            # The message has this remedy already.
            if "BENTOML_HOME" in str(error):
                raise
            raise StoreError(_with_remedy(error, remedy)) from error
    return f"{bentoml_home()} is writable"


def check_space() -> str:
    """Check that the store's disk has `MIN_FREE_SPACE`; return how much it has. Blocks."""
    home = _existing(bentoml_home())
    free = human_size(usage := shutil.disk_usage(home).free)
    if usage < MIN_FREE_SPACE:
        raise StoreError(
            f"only {free} are free on the disk of {home}. Free some space, or set BENTOML_HOME to another disk."
        )
    return f"{free} are free on the disk of {home}"


def list_versions() -> str:
    """List the versions that a bug report needs. Blocks."""
    versions = [f"async-bento {__version__}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(versions)}; compatible with BentoML {BENTOML_VERSION}"


def _run(name: str, function: Callable[[], str]) -> Check:
    try:
        return Check(name, function())
    except BentoError as error:
        return Check(name, str(error), error)
    except OSError as error:
        unreadable = StoreError(f"cannot read {error.filename}: {error.strerror}")
        return Check(name, str(unreadable), unreadable)


def _with_remedy(error: BentoError, remedy: str) -> str:
    return f"{str(error).rstrip('.')}. {remedy}"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
