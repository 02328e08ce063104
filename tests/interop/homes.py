"""Where async-bento and the real bentoml meet: homes that both live in, and a registry between them.

bentoml is never imported here. It runs as a process of its own, with the Python that runs the tests.
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
PART_SIZE = 5 * MiB  # S3's smallest
SECONDS_TO_RUN = 100
DRIVER = Path(__file__).with_name("driver.py")
COMMANDS = Path(__file__).with_name("commands.py")

OTHERS = {path: Path(path).parents[1].name for path in os.environ.get("BENTOML_PYTHONS", "").split(os.pathsep) if path}
RELEASES = {sys.executable: "own", **OTHERS}
"""The Pythons that have a release of BentoML, by their release: the one that runs the tests first, the newest last."""


def tree(path: Path, *, modes: bool = True) -> dict[str, object]:
    """What lies at and below a path, to be compared: kinds, contents, where links lead, and executable bits."""
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
    """The requests that a registry had, like `PATCH /api/v1/… 200`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.access  # type: ignore[attr-defined] - of `AccessLogger`
        self.lines.append(f"{fields['method']} {fields['path']} {fields['status']}")

    def count(self, ending: str) -> int:
        """How many of them went to a route, by the end of its path."""
        return sum(line.split()[1].endswith(ending) for line in self.lines)


@dataclass
class Registry:
    """A `LocalRegistry` that can be closed and opened again, and the requests it had."""

    root: Path
    transmission: str = "presigned_url"
    requests: Requests = field(default_factory=Requests)
    running: LocalRegistry | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        assert self.running
        return self.running.endpoint

    @property
    def api_token(self) -> str:
        """What to send."""
        assert self.running
        return self.running.api_token

    async def open(self) -> None:
        """Open it on its directory, as another process would."""
        logger = logging.getLogger(str(self.root))
        logger.setLevel(logging.INFO)
        logger.handlers = [self.requests]
        logger.propagate = False
        self.running = LocalRegistry(self.root, transmission=self.transmission, access_log=logger)  # type: ignore[arg-type]
        await self.running.start()

    async def close(self) -> None:
        """Close it."""
        if self.running:
            await self.running.close()
        self.running = None


class Home:
    """A `$BENTOML_HOME` in which async-bento and the real bentoml both live.

    Args:
        path: The directory; it is made where there is none. Blocks.

    Attributes:
        path: The directory.
        bentos: Its bentos, as async-bento sees them.
        models: Its models, as async-bento sees them.
        driver: The path of the socket at which `driver.py` listens, for all homes.
    """

    driver: ClassVar[Path]

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.bentos = BentoStore(path / "bentos")
        self.models = ModelStore(path / "models")

    def api(self, registry, *, part_size: int = PART_SIZE) -> AsyncBentoAPI:
        """async-bento on this home; its parts and ranges are small, so that there are several."""
        return AsyncBentoAPI(
            endpoint=registry.endpoint,
            api_token=registry.api_token,
            bento_store=self.bentos,
            model_store=self.models,
            config=Config.model_validate({"transfer": {"part_size": part_size, "range_size": MiB}}),
        )

    def environment(self, registry=None) -> dict[str, str]:
        """Nothing of the caller's BentoML, and a registry that answers or none at all."""
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
        """Run Python here, and return what it prints."""
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
        """Run `commands.py`, without a registry in the environment: it logs in."""
        kept = {name: value for name, value in self.environment().items() if not name.startswith("BENTO_CLOUD_")}
        arguments = [str(COMMANDS), what, endpoint or registry.endpoint, registry.api_token]
        await self.python(*arguments, interpreter=python, environment=kept | variables)

    async def bentoml(self, *arguments, registry=None) -> str:
        """Run bentoml's own command, and return what it prints."""
        return await self.python("-m", "bentoml", *arguments, registry=registry)

    async def try_calls(self, *calls, registry=None, environment=None) -> list:
        """Make calls to `driver.py`, of which some may return an error."""
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
        """Make calls to `driver.py` that have to succeed."""
        results = await self.try_calls(*calls, registry=registry)
        for call, result in zip(calls, results, strict=True):
            assert not (isinstance(result, dict) and "error" in result), f"{call}: {result}"
        return results
