"""A registry that is killed at random moments during pushes and pulls must keep all confirmed versions.

python -m tests.registry.kills --kills 200 --seed 1
python -m tests.registry.kills --kills 200 --seed 1 --copies

Four clients push new versions, replace old ones and pull each other's, and retry while the registry is down.
Afterwards every version has the files of the last push that succeeded, or of a later one that was interrupted, and
`registry check` finds no damage: neither in the registry nor in a backup from during the run.

With `--copies`, a second copy of the registry is never killed, and half of the clients use it. Both share PostgreSQL
and SeaweedFS, which must be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento import AsyncBentoAPI, BentoError, BentoStore, Config, NotFoundError, RetryPolicy
from tests.builders import contents, make_bento
from tests.eventually import eventually
from tests.registry.conftest import sync_client
from tests.registry.postgres import empty_database, postgres
from tests.registry.seaweed import seaweed
from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Sequence

_CLIENTS = 4
_VERSIONS = 6
"""Versions per client; few, so that most pushes replace one."""

_LARGEST = 12_000_000
"""The sizes of bentos in bytes; some have two parts."""

_CONFIG = Config(retry=RetryPolicy(attempts=10, wait_initial=0.05, wait_max=1.0))


@dataclass
class Truth:
    """The possible contents of one version."""

    confirmed: str | None = None
    sent_since: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)


@dataclass
class Storm:
    """Clients of a registry that is killed and restarted."""

    scratch: Path
    kills: int
    seed: int
    places: Sequence[str]
    token_file: Path
    has_copies: bool
    truths: dict[str, Truth] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    n_pushes: int = 0
    n_pulls: int = 0
    n_errors: int = 0
    _is_over: bool = False

    async def run(self) -> None:
        """Run the clients, then compare all versions."""
        self.ports = free_ports(2)
        backups: list[asyncio.Task[None]] = []
        choose = random.Random(self.seed)
        async with AsyncExitStack() as stack:
            if self.has_copies:
                await stack.enter_async_context(self._serving(self.ports[1]))
            async with self._serving(self.ports[0]):
                token = self.token_file.read_text().strip()
                clients = [asyncio.create_task(self._client(number, token)) for number in range(_CLIENTS)]
                await self._work(choose)
            for number in range(self.kills - 1):
                async with self._serving(self.ports[0]):
                    if number % 25 == 1 and not self.has_copies:
                        backups.append(asyncio.create_task(self._command("backup", self.scratch / "backup")))
                    await self._work(choose)
            async with self._serving(self.ports[0]):
                self._is_over = True
                await asyncio.gather(*clients, *backups)
                await self._compare(token)
        await self._command("check")
        if backups:
            restored = str(self.scratch / "restored")
            await self._command("restore", self.scratch / "backup", places=["--root", restored])
            await self._command("check", places=["--root", restored])

    async def _work(self, choose: random.Random) -> None:
        """Wait for a successful call, and a random time after it."""
        before = self.n_pushes + self.n_pulls
        await eventually(lambda: self.n_pushes + self.n_pulls > before)
        await asyncio.sleep(choose.random() * 1.5)

    @asynccontextmanager
    async def _serving(self, port: int) -> AsyncGenerator[None]:
        """Run the registry in the block, and kill it."""
        arguments = ["-m", "async_bento", "registry", "serve", *self.places, "--port", str(port)]
        arguments += ["--token-file", str(self.token_file)]
        with (self.scratch / "registry.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    if process.returncode is not None or time.monotonic() > until:
                        raise
                    await asyncio.sleep(0.02)
            writer.close()
            yield
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _client(self, number: int, token: str) -> None:
        """Push and pull until the run ends."""
        choose = random.Random(f"{self.seed} {number}")
        home = self.scratch / f"home-{number}"
        store = BentoStore(home / "bentos")
        async with AsyncBentoAPI(
            endpoint=self._endpoint(number), api_token=token, bento_store=store, config=_CONFIG, progress=False
        ) as api:
            while not self._is_over:
                if choose.random() < 0.5 or not self.truths:
                    await self._push(api, home, f"svc-{number}:v{choose.randrange(_VERSIONS)}", choose)
                else:
                    await self._pull(api, choose.choice(sorted(self.truths)))

    async def _push(self, api: AsyncBentoAPI, home: Path, tag: str, choose: random.Random) -> None:
        shutil.rmtree(home / "bentos" / Path(*tag.split(":")), ignore_errors=True)
        bento = make_bento(home, tag, {"weights": choose.randbytes(int(_LARGEST ** choose.random()))})
        truth, digest = self.truths.setdefault(tag, Truth()), _digest(bento)
        truth.sent_since.add(digest)
        truth.sent.add(digest)
        if await self._counted(api.push(tag, force=True)):
            truth.confirmed, truth.sent_since = digest, set()
            self.n_pushes += 1

    async def _pull(self, api: AsyncBentoAPI, tag: str) -> None:
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            target = Path(directory, "bento")
            is_confirmed = self.truths[tag].confirmed is not None
            try:
                if not await self._counted(api.pull(tag, path=target, force=True)):
                    return
            except NotFoundError:
                if is_confirmed:
                    self.complaints.append(f"{tag} was confirmed, and is not found")
                return
            self.n_pulls += 1
            if _digest(target) not in self.truths[tag].sent:
                self.complaints.append(f"{tag} has files that were never pushed")

    async def _counted(self, call: Awaitable[object]) -> bool:
        try:
            await call
        except NotFoundError:
            raise
        except BentoError:
            self.n_errors += 1
            return False
        return True

    async def _compare(self, token: str) -> None:
        """Pull every version that was confirmed."""
        async with AsyncBentoAPI(endpoint=self._endpoint(0), api_token=token, config=_CONFIG, progress=False) as api:
            for tag, truth in self.truths.items():
                if truth.confirmed is None:
                    continue
                target = self.scratch / "compared" / tag.replace(":", "-")
                await api.pull(tag, path=target, force=True)
                if _digest(target) not in {truth.confirmed, *truth.sent_since}:
                    self.complaints.append(f"{tag} has other files than the last push that succeeded")
                if truth.confirmed and (await api.get(tag)).upload_status != "success" and not truth.sent_since:
                    self.complaints.append(f"{tag} is not complete")

    def _endpoint(self, client: int) -> str:
        return f"http://127.0.0.1:{self.ports[client % 2 if self.has_copies else 0]}"

    async def _command(self, *words: object, places: Sequence[str] | None = None) -> None:
        arguments = ["-m", "async_bento", "registry", *map(str, words), *(places or self.places)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        if process.returncode != 0:
            self.complaints.append(f"{words[0]} failed: {out.decode()}{err.decode()}")


def _digest(directory: Path) -> str:
    found = contents(directory)
    return sha256(repr({name: data for name, data in found.items() if name != "bento.yaml"}).encode()).hexdigest()


async def play(scratch: Path, *, kills: int, seed: int) -> Storm:
    """Kill a registry in a directory a number of times, and return the counts."""
    places = ["--root", str(scratch / "registry")]
    storm = Storm(scratch, kills, seed, places, scratch / "token", has_copies=False)
    await storm.run()
    return storm


async def play_with_copies(scratch: Path, *, kills: int, seed: int) -> Storm:
    """Kill one of two copies of a registry a number of times."""
    (scratch / "weed").mkdir()
    with postgres() as server, seaweed(scratch / "weed") as weed:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "admin",
            "AWS_SECRET_ACCESS_KEY": "admin",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = sync_client(weed)
        client.create_bucket(Bucket="bentos")
        client.close()
        places = ["--database", empty_database(server, "kills"), "--s3", "bentos", "--s3-endpoint", weed.endpoint]
        storm = Storm(scratch, kills, seed, places, scratch / "token", has_copies=True)
        await storm.run()
    return storm


def main() -> None:
    """Run a storm, and exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--copies", action="store_true", help="kill one of two copies on PostgreSQL and S3")
    options = parser.parse_args()
    played = play_with_copies if options.copies else play
    with tempfile.TemporaryDirectory() as scratch:
        storm = asyncio.run(played(Path(scratch), kills=options.kills, seed=options.seed))
    print(f"{options.kills} kills: {storm.n_pushes} pushes, {storm.n_pulls} pulls, {storm.n_errors} errors of calls")
    for complaint in storm.complaints:
        print(complaint)
    sys.exit(bool(storm.complaints))


if __name__ == "__main__":
    main()
