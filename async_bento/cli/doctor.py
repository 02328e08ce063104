"""`async-bento doctor`: check everything that push and pull depend on."""

from __future__ import annotations

import json
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
from async_bento.cli.options import asynchronous, connection
from async_bento.cli.output import wrapped
from async_bento.config import BENTOML_VERSION, Config, GiB, bentoml_home
from async_bento.errors import APIError, AuthenticationError, BentoError, StoreError
from async_bento.rest.client import RestApiClient
from async_bento.store.store import BentoStore, ModelStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path


@click.command()
@connection
@asynchronous
async def doctor(endpoint: str | None, context: str | None, as_json: bool) -> None:
    """Look at all that a push and a pull need, and say what to do about what is wrong.

    These are the registry, the token, this machine's clock, the local store, the room on its disk, and the versions at
    work. The exit code is that of the first fault.

    \b
    Examples:
      async-bento doctor
      async-bento doctor --context staging
    """
    findings: list[Finding] = []
    async for finding in examine(endpoint, context):
        findings.append(finding)
        if not as_json:
            word, colour = ("ok  ", "green") if finding.error is None else ("FAIL", "red")
            line = wrapped(f"{word}  {finding.name + ':':10}", finding.said)
            click.echo(click.style(word, fg=colour) + line[len(word) :])
    if as_json:
        looked_at = [{"name": one.name, "ok": one.error is None, "said": one.said} for one in findings]
        click.echo(json.dumps(looked_at))
    wrong = next((one.error for one in findings if one.error is not None), None)
    if wrong is not None:
        click.get_current_context().exit(exit_code(wrong))


LARGEST_SKEW = 60.0
"""Seconds that two clocks may differ: storages refuse what was signed a quarter of an hour ahead or ago, and of two
machines, the one whose clock is behind builds what never becomes the latest."""

LEAST_ROOM = GiB
"""Bytes that should be free: bentos with a model in them have as many."""

_PACKAGES = ("aiohttp", "bentoml", "huggingface_hub", "aiobotocore")


@dataclass(frozen=True)
class Finding:
    """What one look has found.

    Attributes:
        name: What was looked at.
        said: How it is, or what is wrong and what to do.
        error: What is wrong; None where nothing is.
    """

    name: str
    said: str
    error: BentoError | None = None


async def examine(endpoint: str | None = None, context: str | None = None) -> AsyncGenerator[Finding]:
    """Look at all that a push and a pull need.

    Args:
        endpoint: The registry, instead of the configured one.
        context: A context, instead of the current one.

    Yields:
        One finding after the other, as they come.
    """
    async for finding in _look_at_registry(endpoint, context):
        yield finding
    for name, look in (("store", look_at_store), ("space", look_at_space), ("versions", versions)):
        yield await anyio.to_thread.run_sync(_checked, name, look)


async def _look_at_registry(endpoint: str | None, context: str | None) -> AsyncGenerator[Finding]:
    try:
        config = await anyio.to_thread.run_sync(Config.from_env)
        client = RestApiClient(endpoint, context=context, config=config)
        credentials = await anyio.to_thread.run_sync(lambda: client.credentials)
    except BentoError as error:
        yield Finding("settings", str(error), error)
        return
    yield Finding("settings", f"the token from {credentials.source}")
    async with client:
        try:
            probe = await client.probe()
        except APIError as error:
            yield Finding("endpoint", f"{error}; see whether the URL is right, and a proxy or a VPN is needed", error)
            return
    yield Finding("endpoint", f"{credentials.endpoint} answers in {probe.seconds * 1000:.0f} ms")
    if probe.error is not None:
        what_to_do = "" if isinstance(probe.error, AuthenticationError) else "; ask whoever runs the registry"
        yield Finding("token", f"{probe.error}{what_to_do}", probe.error)
    elif probe.user is not None:
        yield Finding("token", f"it is that of {probe.user.name}")
    yield look_at_clock(probe.clock_skew)


def look_at_clock(skew: float | None) -> Finding:
    """Say whether this machine's clock is right.

    Args:
        skew: How far it is ahead of the registry's, in seconds; None where that is not known.

    Returns:
        The finding.
    """
    if skew is None:
        return Finding("clock", "the registry does not tell its time")
    if abs(skew) <= LARGEST_SKEW:
        return Finding("clock", "it agrees with the registry's")
    where = "ahead of" if skew > 0 else "behind"
    said = f"it is {human_time(abs(skew))} {where} the registry's: set it, or let it be set by NTP"
    return Finding("clock", said, BentoError(said))


def look_at_store() -> str:
    """Do in both stores what a pull begins with. Blocks.

    Returns:
        Where they are.

    Raises:
        StoreError: Nothing can be written there, or be moved into a store in one step.
    """
    stores = (BentoStore(), ModelStore())
    for store in stores:
        try:
            with store.stage():
                pass
        except StoreError as error:
            raise StoreError(
                f"{error}; let this user write to {store.path.parent}, or set BENTOML_HOME to another directory"
            ) from error
    return f"{stores[0].path.parent} can be written to"


def look_at_space() -> str:
    """See how much room there is. Blocks.

    Returns:
        How much.

    Raises:
        StoreError: It is too little.
    """
    home = _existing(bentoml_home())
    free = shutil.disk_usage(home).free
    if free < LEAST_ROOM:
        raise StoreError(
            f"the disk of {home} has {human_size(free)} free: make room, or set BENTOML_HOME to another disk"
        )
    return f"{human_size(free)} are free on the disk of {home}"


def versions() -> str:
    """Name what is at work, for who reports a fault. Blocks.

    Returns:
        The versions of this package, of Python, and of those packages that are there.
    """
    found = [f"async-bento {__version__}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}; it speaks as BentoML {BENTOML_VERSION} does"


def _checked(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, look())
    except BentoError as error:
        return Finding(name, str(error), error)
    except OSError as error:
        wrong = StoreError(f"cannot look at {error.filename}: {error.strerror}")
        return Finding(name, str(wrong), wrong)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
