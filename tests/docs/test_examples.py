"""Run each program in examples/ against a local registry."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer

from async_bento import AsyncBentoAPI, BentoAPI, BentoStore, ProgressEvent
from tests.builders import MiB, make_bento, make_model, random_bytes

if TYPE_CHECKING:
    from types import ModuleType

    from async_bento.registry.server import LocalRegistry

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(name: str) -> list[str]:
    with BentoAPI() as api:
        return [record.version for record in api.list(search=name).items]


def test_every_example_has_test() -> None:
    here = Path(__file__).read_text()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.sh")]:
        assert path.stem in here, f"{path.name} has no test"


def test_quickstart_round_trip() -> None:
    done = run(sys.executable, str(EXAMPLES / "quickstart.py"))

    assert done.returncode == 0, done.stderr
    assert "are identical, bytes and modes" in done.stdout


async def test_aiohttp_reports_progress(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(home, "mod:m1")
    async with AsyncBentoAPI() as api:
        await api.push(make_bento(home, "svc:v1", {"big": random_bytes(20 * MiB)}, models=["mod:m1"]))
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    answers = []

    async with TestClient(TestServer(example("aiohttp_service").make_app("svc:v1"))) as client:
        while not answers or answers[-1][0] == 503:
            response = await client.get("/ready")
            answers.append((response.status, await response.json()))
            await asyncio.sleep(0.01)

    assert answers[0][0] == 503
    done = [body["bytes_done"] for _, body in answers[:-1]]
    assert done == sorted(done)
    assert answers[-1] == (200, {"bento": str(tmp_path / "other" / "bentos" / "svc" / "v1")})
    assert (tmp_path / "other" / "models" / "mod" / "m1" / "model.yaml").exists()


async def test_aiohttp_missing_bento_fails(served: LocalRegistry) -> None:
    async with TestClient(TestServer(example("aiohttp_service").make_app("svc:v1"))) as client:
        while (response := await client.get("/ready")).status == 503:
            await asyncio.sleep(0.01)

        assert response.status == 500
        assert "no bento svc:v1 in the registry" in (await response.json())["error"]


async def test_aiohttp_counts_models(served: LocalRegistry) -> None:
    startup = example("aiohttp_service").Startup("svc:v1")
    for number, kind, tag, done in ((1, "bento", "svc:v1", 10), (2, "model", "mod:m1", 30), (2, "model", "mod:m1", 40)):
        startup.listen(ProgressEvent("pull", kind, tag, "transferring", done, 50, id=number))

    assert startup.progress() == {"bytes_done": 50, "bytes_total": 100}


async def test_fastapi_push_in_background(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    app = example("fastapi_push").app
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        assert (await http.get("/pushes/svc:v1")).status_code == 404
        assert (await http.post("/pushes/svc:v2")).status_code == 404
        for tag in ("svc:v1", "svc"):
            assert (await http.post(f"/pushes/{tag}")).json()["tag"] == "svc:v1"
            while (push := (await http.get(f"/pushes/{tag}")).json())["state"] not in {"done", "skipped", "failed"}:
                await asyncio.sleep(0.01)
            assert push["state"] == ("done" if tag == "svc:v1" else "skipped")
    async with AsyncBentoAPI() as api:
        assert (await api.get("svc", "v1")).upload_status == "success"


def test_ci_script_pushes_once(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    script = str(EXAMPLES / "ci.sh")

    first, second = run(script, "svc:v1"), run(script, "svc:v1")

    assert first.stdout.startswith("svc:v1: "), first.stderr
    assert second.stdout == "svc:v1 is already pushed\n"
    assert versions("svc") == ["v1"]


@pytest.mark.parametrize(
    ("variables", "code", "message"),
    [
        ({}, 3, "There is no svc:v1"),
        ({"BENTO_CLOUD_API_KEY": "wrong"}, 4, "does not accept the token"),
        ({"BENTO_CLOUD_API_ENDPOINT": "http://127.0.0.1:9"}, 5, "cannot be reached"),
    ],
)
def test_ci_script_explains_failures(
    variables: dict[str, str], code: int, message: str, served: LocalRegistry, home: Path
) -> None:
    if variables:
        make_bento(home, "svc:v1")

    done = run(str(EXAMPLES / "ci.sh"), "svc:v1", PATIENCE="0", ASYNC_BENTO_RETRY_ATTEMPTS="1", **variables)

    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_many_at_once_skips_failures(served: LocalRegistry, home: Path) -> None:
    for number in range(5):
        make_bento(home, f"svc{number}:v1", {"data": random_bytes(10_000, number)})
    make_bento(home, "broken:v1", models=["missing:m1"])

    done = run(sys.executable, str(EXAMPLES / "many_at_once.py"))

    assert done.returncode == 1
    assert sorted(line.partition(":")[0] for line in done.stdout.splitlines()) == [f"svc{n}" for n in range(5)]
    assert done.stderr.startswith("broken:v1: ")
    assert versions("svc") == ["v1"] * 5


def test_listener_writes_per_tenth(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", {"big": random_bytes(12 * MiB)})

    done = run(sys.executable, str(EXAMPLES / "listener.py"), "svc:v1")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["phase"] == "planning"
    assert events[-1]["phase"] == "done"
    assert events[-1]["bytes_done"] == events[-1]["bytes_total"] > 12 * MiB
    assert len(events) < 30


def test_spans_have_no_signature(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", {"big": random_bytes(18 * MiB)})  # more than one part

    done = run(sys.executable, str(EXAMPLES / "opentelemetry_spans.py"), "svc:v1")

    assert done.returncode == 0, done.stderr
    spans = [json.loads(line) for line in done.stdout.splitlines()]
    urls = [span["attributes"].get("http.url", "") for span in spans[:-1]]
    assert spans[-1]["name"] == "push"
    assert {span["context"]["trace_id"] for span in spans} == {spans[-1]["context"]["trace_id"]}
    assert any(url.startswith(f"{served.endpoint}/api/v1/bento_repositories") for url in urls)  # the registry
    storage = [url for url in urls if "/api/v1/" not in url]
    assert len(storage) >= 2, urls  # the parts
    assert "?" not in "".join(urls)
    assert BentoStore().get("svc:v1")
