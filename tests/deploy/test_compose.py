"""The registry copies of the compose file, on a real PostgreSQL and SeaweedFS."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, BentoStore
from tests.builders import contents, make_bento, random_bytes
from tests.deploy.deployments import compose, registry_running
from tests.registry.conftest import sync_client
from tests.registry.postgres import empty_database

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.seaweed import Seaweed

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.processes]


@pytest.mark.usefixtures("credentials")
def test_copies_share_token_and_items(home: Path, tmp_path: Path, weed: Seaweed, postgres_server: str):
    client = sync_client(weed)
    client.create_bucket(Bucket="bentos")
    client.close()
    (tmp_path / "token").write_text("a-token\n")
    command = compose()
    environment = {name: os.environ.get(name, value) for name, value in command.environment.items()}
    environment["ASYNC_BENTO_REGISTRY_DATABASE"] = empty_database(postgres_server, "compose")
    changes = {
        "http://seaweedfs:8333": weed.endpoint,
        "https://s3.bentos.example.com": weed.endpoint,
        "/run/secrets/admin_token": str(tmp_path / "token"),
    }
    before = contents(make_bento(home, "svc:v1", files={"weights": random_bytes(11_000_000)}))

    with ExitStack() as stack:
        (one, first), (other, second) = (
            stack.enter_context(registry_running(command._replace(environment=environment), changes, tmp_path))
            for _ in range(2)
        )
        with BentoAPI(endpoint=f"http://127.0.0.1:{first}", api_token="a-token") as api:
            api.push("svc:v1")
        with BentoAPI(endpoint=f"http://127.0.0.1:{second}", api_token="a-token") as api:
            pulled = api.pull("svc:v1", bento_store=BentoStore(tmp_path / "other" / "bentos"))
        for process in (one, other):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0

    assert contents(pulled.path) == before
