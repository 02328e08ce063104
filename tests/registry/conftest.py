"""Fixtures: registries on a real socket, on each kind of storage, and a plain HTTP client.

A test that starts a registry by `serve`, `caller` or `either` runs on SQLite with files, and on PostgreSQL with a
bucket. A mark selects other storages: `records_only` for tests without bytes, `everywhere` for tests that differ in
each combination. Without an installed PostgreSQL or bucket, its tests are skipped.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest

from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry
from tests.registry import postgres, s3_stores, seaweed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.registry.seaweed import Seaweed

BUILD_AT = "2024-05-01 10:20:30.123456"


class Words(NamedTuple):
    """The names that the API uses for bentos or models."""

    repositories: str
    items: str
    latest: str
    repository_uid: str


BENTOS = Words("bento_repositories", "bentos", "latest_bento", "bento_repository_uid")
MODELS = Words("model_repositories", "models", "latest_model", "model_uid")


class Response(NamedTuple):
    status: int
    headers: Any
    body: bytes
    json: Any


class Caller:
    """Calls one registry, about bentos or models."""

    def __init__(self, registry: LocalRegistry, session: aiohttp.ClientSession, words: Words) -> None:
        self.registry = registry
        self.session = session
        self.words = words

    def about(self, words: Words) -> Caller:
        return Caller(self.registry, self.session, words)

    async def api(self, method: str, path: str, *, token: str | None = None, **kwargs: Any) -> Response:
        headers = kwargs.pop("headers", {}) | {"X-YATAI-API-TOKEN": token or self.registry.api_token}
        return await self.bare(method, f"{self.registry.endpoint}/api/v1{path}", headers=headers, **kwargs)

    async def bare(self, method: str, url: str, **kwargs: Any) -> Response:
        if isinstance(kwargs.get("data"), bytes):
            kwargs["data"] = io.BytesIO(kwargs["data"])  # aiohttp warns of large bare bytes
        async with self.session.request(method, url, **kwargs) as response:
            body = await response.read()
            is_json = response.content_type == "application/json" and method != "HEAD"
            return Response(response.status, response.headers, body, await response.json() if is_json else None)

    async def ok(self, method: str, path: str, **kwargs: Any) -> Any:
        response = await self.api(method, path, **kwargs)
        assert response.status == 200, response
        return response.json

    def items(self, name: str = "iris") -> str:
        return f"/{self.words.repositories}/{name}/{self.words.items}"

    async def create(self, name: str = "iris", version: str = "v1", **fields: Any) -> Any:
        """Create an item, and its repository if it does not exist."""
        await self.api("POST", f"/{self.words.repositories}", json={"name": name, "description": ""})
        body = {"version": version, "description": "", "manifest": {}, "build_at": BUILD_AT, "labels": []}
        return await self.ok("POST", self.items(name), json=body | fields)

    async def get(self, name: str = "iris", version: str = "v1") -> Any:
        return await self.ok("GET", f"{self.items(name)}/{version}")

    async def list(self, path: str | None = None, **query: str | int) -> Any:
        return await self.ok("GET", path or f"/{self.words.items}", params=query)

    async def put_url(self, version: str = "v1") -> str:
        item = await self.ok("PATCH", f"{self.items()}/{version}/presign_upload_url")
        return str(item["presigned_upload_url"])

    async def get_url(self, version: str = "v1") -> str:
        item = await self.ok("PATCH", f"{self.items()}/{version}/presign_download_url")
        return str(item["presigned_download_url"])

    async def start_multipart(self, version: str = "v1") -> str:
        item = await self.ok("PATCH", f"{self.items()}/{version}/start_multipart_upload")
        assert item["upload_id"]
        return str(item["upload_id"])

    async def part_url(self, upload_id: str, number: int, version: str = "v1") -> str:
        body = {"upload_id": upload_id, "part_number": number}
        item = await self.ok("PATCH", f"{self.items()}/{version}/presign_multipart_upload_url", json=body)
        return str(item["presigned_upload_url"])

    async def put_part(self, upload_id: str, number: int, data: bytes, version: str = "v1") -> str:
        response = await self.bare("PUT", await self.part_url(upload_id, number, version), data=data)
        assert response.status == 200, response
        return str(response.headers["ETag"])

    async def complete(self, upload_id: str, etags: list[tuple[int, str]], version: str = "v1") -> Response:
        parts = [{"part_number": number, "etag": etag} for number, etag in etags]
        body = {"upload_id": upload_id, "parts": parts}
        return await self.api("PATCH", f"{self.items()}/{version}/complete_multipart_upload", json=body)

    async def finish(self, version: str = "v1", status: str = "success") -> Any:
        body = {"status": status, "reason": ""}
        return await self.ok("PATCH", f"{self.items()}/{version}/finish_upload", json=body)

    async def upload(self, data: Any, version: str = "v1", **kwargs: Any) -> Response:
        return await self.api("PUT", f"{self.items()}/{version}/upload", data=data, **kwargs)

    async def download(self, version: str = "v1") -> Response:
        return await self.api("GET", f"{self.items()}/{version}/download")


def arguments(storage: Storage) -> list[str]:
    """Return the options that name the places of a registry."""
    places = storage("registry")
    found: list[str] = []
    if "root" in places:
        found += ["--root", str(places["root"])]
    if "database" in places:
        found += ["--database", places["database"]]
    if "bucket" in places:
        name, _, rest = str(places["bucket"]).removeprefix("s3://").partition("/")
        prefix, _, endpoint = rest.removesuffix(")").partition(" (at ")
        found += ["--s3", name, "--s3-endpoint", endpoint, "--s3-prefix", prefix]
    return found


async def clean_up(caller: Caller, *, hours: float) -> None:
    """Run the cleanup of the registry as of a number of hours later."""
    running = caller.registry._running
    assert running is not None
    await running.cleanup.run(datetime.now(timezone.utc) + timedelta(hours=hours))


HAS_S3, HAS_POSTGRES = seaweed.is_installed(), postgres.is_installed()

STORAGES = {
    "disk": True,
    "s3": HAS_S3,
    "postgres": HAS_POSTGRES,
    "postgres-s3": HAS_S3 and HAS_POSTGRES,
}
"""A storage: SQLite or PostgreSQL, the disk or a bucket; and whether its servers are installed."""

disk_only = pytest.mark.storages("disk")
s3_only = pytest.mark.storages("s3")
copies_only = pytest.mark.storages("postgres-s3")
records_only = pytest.mark.storages("disk", "postgres")
everywhere = pytest.mark.storages(*STORAGES)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on the storages of its mark."""
    if "storage" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("storages")
    if mark is not None:
        names = [name for name in mark.args if STORAGES[name]]
    else:  # both databases, and both places of the bytes
        names = ["disk", "postgres-s3"] if STORAGES["postgres-s3"] else [name for name in STORAGES if STORAGES[name]]
    storages = [
        pytest.param(name, marks=[getattr(pytest.mark, part) for part in name.split("-") if part != "disk"])
        for name in names
    ]
    metafunc.parametrize("storage", storages, indirect=True)


HAS_PROXIES = all(shutil.which(name) for name in ("nginx", "caddy"))

collect_ignore = ([] if HAS_S3 else ["test_s3.py", "test_s3_faults.py"]) + (
    [] if HAS_S3 and HAS_POSTGRES else ["test_copies.py"]
)
collect_ignore += [] if HAS_PROXIES else ["test_proxies.py"]
collect_ignore += [] if find_spec("bentoml") is not None else ["test_bentoml.py"]
collect_ignore += [] if find_spec("playwright") is not None else ["test_pages_browser.py"]
collect_ignore += [] if s3_stores.is_installed() else ["test_stores.py"]

Storage = "Callable[[str], dict[str, Any]]"

BUCKET = "registries"


def sync_client(weed: Seaweed) -> Any:
    """Create a blocking S3 client."""
    from botocore.session import get_session

    return get_session().create_client(
        "s3",
        endpoint_url=weed.endpoint,
        region_name="us-east-1",
        aws_access_key_id="admin",
        aws_secret_access_key="admin",
    )


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A running SeaweedFS with a bucket."""
    with seaweed.seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        client = sync_client(running)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running PostgreSQL."""
    with postgres.postgres() as url:
        yield url


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The credentials of SeaweedFS's admin, instead of those in the environment."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "admin",
        "AWS_SECRET_ACCESS_KEY": "admin",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return the arguments for the places of a registry, by name; each test has its own places."""
    test = uuid.uuid4().hex
    in_s3, in_postgres = "s3" in request.param, "postgres" in request.param
    weed: Seaweed | None = request.getfixturevalue("weed") if in_s3 else None
    server: str | None = request.getfixturevalue("postgres_server") if in_postgres else None
    if in_s3:
        request.getfixturevalue("credentials")

    databases: dict[str, str] = {}

    def places(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"root": tmp_path / name}
        if weed and server:
            found = {"token_file": tmp_path / f"{name}.token"}
        if weed:
            found["bucket"] = S3Bucket(BUCKET, endpoint=weed.endpoint, prefix=f"{test}/{name}")
        if server:
            if name not in databases:  # a second copy of a registry keeps the data of the first
                databases[name] = postgres.empty_database(server, name)
            found["database"] = databases[name]
        return found

    return places


if TYPE_CHECKING:
    Serve = Callable[..., Awaitable[Caller]]


@pytest.fixture
async def serve(storage: Storage) -> AsyncIterator[Serve]:
    """Start registries, which stop with the test; the callers are about bentos by default."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(name: str = "registry", words: Words = BENTOS, **options: Any) -> Caller:
            places = storage(name)
            if "api_token" in options:
                places.pop("token_file", None)
            registry = LocalRegistry(**places, **({"grace": 0.2} | options))
            return Caller(await stack.enter_async_context(registry), session, words)

        yield start


@pytest.fixture
async def caller(serve: Serve) -> Caller:
    """A registry with default options, about bentos."""
    return await serve()


@pytest.fixture(params=[BENTOS, MODELS], ids=["bentos", "models"])
def words(request: pytest.FixtureRequest) -> Words:
    return request.param


@pytest.fixture
async def either(serve: Serve, words: Words) -> Caller:
    """A registry with default options, about bentos and about models."""
    return await serve(words=words)


class Stored:
    """Lists the stored files or objects."""

    def __init__(self, storage: str, find: Callable[[], list[str]]) -> None:
        self.storage = storage
        self.find = find

    def __call__(self) -> list[str]:
        """Return the names of files, or of objects and uploads."""
        return self.find()

    def has_count(self, *, disk: int, s3: int) -> bool:
        """Compare the number of files on the disk, or of objects and uploads in the bucket."""
        return len(self.find()) == {"disk": disk, "s3": s3}[self.storage]


@pytest.fixture
def stored_files(storage: Storage, tmp_path: Path, request: pytest.FixtureRequest) -> Stored:
    """The stored files or objects of the registry named `registry`; empty directories count, too."""
    bucket = storage("registry").get("bucket")

    def find_files() -> list[str]:
        root = tmp_path / "registry" / "blobs"
        found = []
        for path in root.rglob("*"):
            with suppress(FileNotFoundError):  # the registry has removed the directory since it was listed
                if path.is_file() or not any(path.iterdir()):
                    found.append(path.relative_to(root))
        return [path.as_posix() for path in found if len(path.parts) > 1 and path.name != "upload"]

    def find_objects() -> list[str]:
        client = sync_client(request.getfixturevalue("weed"))
        prefix = f"{str(bucket).partition(f'{BUCKET}/')[2].partition(' ')[0]}blobs/"
        objects = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
        client.close()
        return [entry["Key"] for entry in objects] + [f"upload {entry['UploadId']}" for entry in uploads]

    return Stored("s3", find_objects) if bucket else Stored("disk", find_files)
