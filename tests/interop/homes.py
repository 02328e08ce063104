"""Homes and registries that async-bento and the real bentoml share.

bentoml is never imported here, but runs in separate processes with the Python of the tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore
from async_bento.registry.server import LocalRegistry

MiB = 1024 * 1024
PART_SIZE = 5 * MiB  # the minimum of S3
SECONDS_TO_RUN = 100
DRIVER = Path(__file__).with_name("driver.py")
COMMANDS = Path(__file__).with_name("commands.py")

OTHERS = {path: Path(path).parents[1].name for path in os.environ.get("BENTOML_PYTHONS", "").split(os.pathsep) if path}
RELEASES = {sys.executable: "own", **OTHERS}
"""The Pythons with a release of BentoML, and its name: first the Python of the tests, last the newest release."""


def tree(path: Path, *, modes: bool = True) -> dict[str, object]:
    """Return the entries at and below a path: kinds, digests, link targets and executable bits."""
    found: dict[str, object] = {}
    for entry in [path, *path.rglob("*")]:
        name = entry.relative_to(path).as_posix()
        status = entry.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("link", str(entry.readlink()))
            continue
        content = "directory" if stat.S_ISDIR(status.st_mode) else hashlib.sha256(entry.read_bytes()).hexdigest()
        found[name] = (content, bool(status.st_mode & stat.S_IXUSR)) if modes else content
    return found


class Requests(logging.Handler):
    """The requests to a registry, such as `PATCH /api/v1/… 200`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.access  # type: ignore[attr-defined] - of `AccessLogger`
        self.lines.append(f"{fields['method']} {fields['path']} {fields['status']}")

    def count(self, ending: str) -> int:
        """Count the requests to a route, by the end of its path."""
        return sum(line.split()[1].endswith(ending) for line in self.lines)


@dataclass
class Registry:
    """A `LocalRegistry` that tests can close and reopen, with a record of its requests."""

    root: Path
    transmission: str = "presigned_url"
    requests: Requests = field(default_factory=Requests)
    running: LocalRegistry | None = None

    @property
    def endpoint(self) -> str:
        """The endpoint of the running registry."""
        assert self.running
        return self.running.endpoint

    @property
    def api_token(self) -> str:
        """The token of the running registry."""
        assert self.running
        return self.running.api_token

    async def open(self) -> None:
        """Open a registry on the directory, as another process would."""
        logger = logging.getLogger(str(self.root))
        logger.setLevel(logging.INFO)
        logger.handlers = [self.requests]
        logger.propagate = False
        self.running = LocalRegistry(self.root, transmission=self.transmission, access_log=logger)  # type: ignore[arg-type]
        await self.running.start()

    async def close(self) -> None:
        """Close the registry, if one runs."""
        if self.running:
            await self.running.close()
        self.running = None


class Home:
    """A `$BENTOML_HOME` that async-bento and the real bentoml share.

    Args:
        path: The directory, which is created if missing. Blocks.

    Attributes:
        path: The directory.
        bentos: The bento store, by async-bento.
        models: The model store, by async-bento.
        driver: The path of the socket of `driver.py`, for all homes.
    """

    driver: ClassVar[Path]

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.bentos = BentoStore(path / "bentos")
        self.models = ModelStore(path / "models")

    def api(self, registry, *, part_size: int = PART_SIZE) -> AsyncBentoAPI:
        """Return an API on this home, with small parts and ranges, so that an item has several."""
        return AsyncBentoAPI(
            endpoint=registry.endpoint,
            api_token=registry.api_token,
            bento_store=self.bentos,
            model_store=self.models,
            config=Config.model_validate({"transfer": {"part_size": part_size, "range_size": MiB}}),
        )

    def environment(self, registry=None) -> dict[str, str]:
        """Return an environment without the caller's BentoML settings; without a registry, no endpoint answers."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENTO", "ASYNC_BENTO"))}
        own = {
            "HOME": str(self.path),
            "HF_HOME": str(self.path / "hf"),
            "BENTOML_HOME": str(self.path),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        cloud = {"BENTO_CLOUD_API_KEY": "none", "BENTO_CLOUD_API_ENDPOINT": "http://127.0.0.1:9"}
        if registry is not None:
            cloud = {"BENTO_CLOUD_API_KEY": registry.api_token, "BENTO_CLOUD_API_ENDPOINT": registry.endpoint}
        return {**kept, **own, **cloud, "NO_PROXY": "127.0.0.1", "PYTHONUTF8": "1", "COLUMNS": "200"}

    async def python(self, *arguments, registry=None, environment=None, interpreter=sys.executable) -> str:
        """Run Python in this home and return its output."""
        process = await asyncio.create_subprocess_exec(
            interpreter,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.path,
            env=self.environment(registry) if environment is None else environment,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), SECONDS_TO_RUN)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{arguments}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    async def commands(
        self, what: str, registry, *, endpoint: str = "", python=sys.executable, **variables: str
    ) -> None:
        """Run `commands.py`, which logs in, so that the environment has no registry."""
        kept = {name: value for name, value in self.environment().items() if not name.startswith("BENTO_CLOUD_")}
        arguments = [str(COMMANDS), what, endpoint or registry.endpoint, registry.api_token]
        await self.python(*arguments, interpreter=python, environment=kept | variables)

    async def bentoml(self, *arguments, registry=None) -> str:
        """Run a command of bentoml and return its output."""
        return await self.python("-m", "bentoml", *arguments, registry=registry)

    async def try_calls(self, *calls, registry=None, environment=None) -> list:
        """Make calls to `driver.py`; some of them may fail."""
        request = {
            "calls": calls,
            "environment": self.environment(registry) if environment is None else environment,
            "cwd": str(self.path),
        }
        reader, writer = await asyncio.open_unix_connection(self.driver, limit=64 * MiB)
        process = int(await reader.readline())
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            out = await asyncio.wait_for(reader.read(), SECONDS_TO_RUN)
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        finally:
            writer.close()
        assert out, f"bentoml's process ended: {calls}"
        return json.loads(out)

    async def calls(self, *calls, registry=None) -> list:
        """Make calls to `driver.py`; all of them must succeed."""
        results = await self.try_calls(*calls, registry=registry)
        for call, result in zip(calls, results, strict=True):
            assert not (isinstance(result, dict) and "error" in result), f"{call}: {result}"
        return results
