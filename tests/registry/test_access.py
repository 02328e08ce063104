"""Access to every route: tokens, roles, prefixes, expiry, rotation and revocation."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta, timezone
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.errors import ConfigError, NotFoundError
from async_bento.registry.access import API_PREFIX, Access, AccessDeniedError, GuessThrottle, TooManyGuessesError
from async_bento.registry.app import Api
from async_bento.registry.errors import StorageError
from async_bento.registry.loading import load_backend, load_pages
from async_bento.registry.records.tokens import TokenRecords
from async_bento.registry.server import LocalRegistry
from async_bento.registry.tokens import ROLES, Actor, Token
from async_bento.registry.transmission import TransmissionPolicy
from tests.eventually import eventually
from tests.platforms import IS_WINDOWS
from tests.registry.conftest import MODELS, Caller, disk_only, records_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Response, Serve

pytestmark = records_only

READ = [
    "GET /auth/current",
    "GET /current_org",
    "GET /labels",
    "GET /version",
    "GET /model_repositories/{name}/models/{version}/bentos",
]
READ_OF_EACH = [
    "GET /{items}",
    "GET /{repositories}",
    "GET /{repositories}/{name}",
    "GET /{repositories}/{name}/{items}",
    "GET /{repositories}/{name}/{items}/{version}",
    "GET /{repositories}/{name}/{items}/{version}/download",
    "PATCH /{repositories}/{name}/{items}/{version}/presign_download_url",
]
PUSH_OF_EACH = [
    "POST /{repositories}",
    "POST /{repositories}/{name}/{items}",
    "PATCH /{repositories}/{name}",
    "PATCH /{repositories}/{name}/{items}/{version}",
    "PATCH /{repositories}/{name}/{items}/{version}/complete_multipart_upload",
    "PATCH /{repositories}/{name}/{items}/{version}/finish_upload",
    "PATCH /{repositories}/{name}/{items}/{version}/presign_multipart_upload_url",
    "PATCH /{repositories}/{name}/{items}/{version}/presign_upload_url",
    "PATCH /{repositories}/{name}/{items}/{version}/start_multipart_upload",
    "PATCH /{repositories}/{name}/{items}/{version}/start_upload",
    "PUT /{repositories}/{name}/{items}/{version}/upload",
]
ADMIN_OF_EACH = [
    "DELETE /{repositories}/{name}",
    "DELETE /{repositories}/{name}/{items}/{version}",
]
REFUSED = [f"* /{name}" for name in ("api_tokens", "clusters", "deployments", "instance_types", "org_secrets")]
"""Routes without an implementation: 501 for every token."""

OPEN = ["GET /healthz", "GET /metrics", "GET /readyz"]
"""Routes without a token."""

PAGES = [
    "GET /",
    "GET /bentos",
    "GET /bentos/{name}",
    "GET /bentos/{name}/{version}",
    "GET /models",
    "GET /models/{name}",
    "GET /models/{name}/{version}",
    "GET /storage",
]
"""Routes with a session, tested by `test_pages.py`."""

LOGIN = ["GET /login", "GET /robots.txt", "GET /static/{file}", "POST /login", "POST /logout"]
"""Routes that create a session."""

PRESIGNED = ["* /blobs/{key}"]
"""Routes with a signature instead of a token."""


def each(routes: list[str]) -> list[str]:
    kinds = (("bento_repositories", "bentos"), ("model_repositories", "models"))
    return [
        route.replace("{repositories}", repositories).replace("{items}", items)
        for route in routes
        for repositories, items in kinds
    ]


ROLE_OF = (
    dict.fromkeys([*READ, *each(READ_OF_EACH)], "read")
    | dict.fromkeys(each(PUSH_OF_EACH), "push")
    | dict.fromkeys(each(ADMIN_OF_EACH), "admin")
)


ADDRESSES = count()
"""The last numbers of client addresses, since wrong tokens delay later requests from the same address."""


async def routes_of(root: Path) -> list[str]:
    """The method and path of all routes of a registry."""
    backend = await load_backend(root=root, database=None, bucket=None)
    async with backend.open(url_expiry=60) as opened:
        pages = await load_pages()
        api = Api(opened, TransmissionPolicy("presigned_url", None, presign=True), pages=pages)
        found = {
            f"{route.method} {route.resource.canonical}"
            for route in api.application().router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    return sorted(found)


async def create_token(caller: Caller, name: str, role: Any, **options: Any) -> str:
    return await records_of(caller).create(name, role, by=Actor("test"), **options)


def records_of(caller: Caller) -> TokenRecords:
    return tokens_of(caller.registry)


def tokens_of(registry: LocalRegistry) -> TokenRecords:
    running = registry._running
    assert running is not None
    return TokenRecords(running.retention._database)


@pytest.fixture
async def item(serve: Serve) -> Caller:
    """A registry behind a proxy, with the complete bento and the complete model `iris:v1`."""
    caller = await serve(forwarded_allow_ips=["127.0.0.1"])
    for one in (caller, caller.about(MODELS)):
        await one.create()
        assert (await one.upload(b"bytes")).status == 200
    return caller


async def call(caller: Caller, route: str, token: str) -> Response:
    method, path = route.format(name="iris", version="v1").split(" ")
    body = b"bytes" if method == "PUT" else None
    kwargs: dict[str, Any] = {"data": body} if body else {}
    headers = {"X-Forwarded-For": f"10.0.0.{next(ADDRESSES) % 250}"}
    return await caller.api(method, path, token=token, headers=headers, **kwargs)


# Roles


async def test_every_route_has_role(tmp_path: Path):
    routes = await routes_of(tmp_path / "registry")
    with_token = [route.replace(f" {API_PREFIX}", " ") for route in routes if f" {API_PREFIX}" in route]
    refused = [route for route in with_token if route.startswith("*")]
    assert sorted(ROLE_OF) == [route for route in with_token if route not in refused]
    assert [route.partition("{")[0] for route in refused] == REFUSED
    others = [route for route in routes if f" {API_PREFIX}" not in route and not route.startswith("* /api/v2/")]
    assert others == sorted(OPEN + PAGES + LOGIN + PRESIGNED)


@pytest.mark.parametrize("role", ROLES)
async def test_role_limits_routes(item: Caller, role: str):
    token = await create_token(item, "robot", role)
    for route, needed in ROLE_OF.items():
        is_allowed = ROLES.index(role) >= ROLES.index(needed)
        response = await call(item, route, token)
        if is_allowed:
            assert response.status != 403, route
        else:
            message = f"access denied: the token robot has the role {role}, and this request needs the role {needed}."
            assert (response.status, response.json["message"].partition(" Use")[0]) == (403, message), route


async def test_refused_upload_is_not_read(item: Caller):
    token = await create_token(item, "robot", "read")
    headers = {"Expect": "100-continue"}
    response = await item.upload(b"bytes", token=token, headers=headers)
    assert response.status == 403


# Prefixes


async def test_prefix_limits_named_routes(item: Caller):
    token = await create_token(item, "team", "admin", prefix="team-")
    named = [route for route in ROLE_OF if "{name}" in route]
    assert len(named) > len(ROLE_OF) / 2
    for route in named:
        response = await call(item, route, token)
        message = "access denied: the token team is for repositories whose names begin with team-. Use another token."
        assert (response.status, response.json) == (403, {"message": message}), route


async def test_prefix_limits_creation(caller: Caller):
    token = await create_token(caller, "team", "push", prefix="team-")
    for name, status in (("other", 403), ("team", 403), ("team-a", 200)):
        body = {"name": name, "description": ""}
        response = await caller.api("POST", "/bento_repositories", json=body, token=token)
        assert response.status == status, name


async def test_prefix_limits_lists(caller: Caller):
    labels = [{"key": "owner", "value": "them"}]
    for name in ("iris", "team-a", "team_b", "teamwork"):
        await caller.create(name, labels=labels if name == "iris" else [{"key": "owner", "value": name}])
    token = await create_token(caller, "team", "read", prefix="team_")  # not a wildcard of SQL

    async def listed(path: str, **query: str) -> Any:
        response = await caller.api("GET", path, params=query, token=token)
        assert response.status == 200, response
        return response.json

    for query in ({}, {"search": "t"}, {"q": "label:owner"}):
        page = await listed("/bentos", **query)
        assert (page["total"], [found["repository"]["name"] for found in page["items"]]) == (1, ["team_b"]), query
    repositories = await listed("/bento_repositories")
    assert (repositories["total"], [found["name"] for found in repositories["items"]]) == (1, ["team_b"])
    assert await listed("/labels") == [{"key": "owner", "values": ["team_b"]}]


async def test_prefix_hides_other_models(caller: Caller):
    models = caller.about(MODELS)
    for name in ("team-weights", "secret-weights"):
        await models.create(name)
    await caller.create("team-a", manifest={"models": ["team-weights:v1", "secret-weights:v1"]})
    await caller.create("other", manifest={"models": ["team-weights:v1"]})
    token = await create_token(caller, "team", "read", prefix="team-")
    bento = await caller.ok("GET", f"{caller.items('team-a')}/v1", token=token)
    assert [model["repository"]["name"] for model in bento["models"]] == ["team-weights"]
    using = await caller.ok("GET", f"{models.items('team-weights')}/v1/bentos", token=token)
    assert (using["total"], [found["repository"]["name"] for found in using["items"]]) == (1, ["team-a"])


# Expiry, revocation and rotation


async def test_expired_token_is_refused(item: Caller):
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    await refused_everywhere(item, await create_token(item, "old", "admin", expires_at=past))
    await create_token(item, "old", "read")
    assert [token.name for token in await records_of(item).list()] == ["admin", "old"]


def test_token_expires_at_its_time():
    now = datetime.now(timezone.utc)
    token = Token(1, "robot", "read", "", now, now, None)
    assert token.is_expired(now)
    assert not token.is_expired(now - timedelta(microseconds=1))


async def test_revoked_token_is_refused(item: Caller):
    token = await create_token(item, "gone", "admin")
    assert (await call(item, "GET /auth/current", token)).status == 200
    await records_of(item).revoke("gone", by=Actor("test"))
    await refused_everywhere(item, token)


async def refused_everywhere(caller: Caller, token: str) -> None:
    for route in ROLE_OF:
        response = await call(caller, route, token)
        assert response.status == 403, route


async def test_rotated_token_keeps_role(item: Caller):
    old = await create_token(item, "robot", "push", prefix="iris")
    soon = datetime.now(timezone.utc) + timedelta(seconds=1)
    new = await records_of(item).rotate("robot", old_until=soon, expires_at=None, by=Actor("test"))
    for route, needed in ROLE_OF.items():
        status = (await call(item, route, new)).status
        assert (status == 403) == (needed == "admin"), route

    async def is_refused() -> bool:
        return (await call(item, "GET /auth/current", old)).status == 403

    await eventually(is_refused)
    assert (await call(item, "GET /auth/current", new)).status == 200


async def test_token_name_is_unique(caller: Caller):
    await create_token(caller, "robot", "push")
    with pytest.raises(ConfigError, match="cannot create the token robot: it exists"):
        await create_token(caller, "robot", "read")
    records = records_of(caller)
    with pytest.raises(NotFoundError, match="there is no token nobody"):
        await records.revoke("nobody", by=Actor("test"))
    with pytest.raises(NotFoundError, match="there is no token nobody"):
        await records.rotate("nobody", old_until=datetime.now(timezone.utc), expires_at=None, by=Actor("test"))
    await records.revoke("robot", by=Actor("test"))
    await create_token(caller, "robot", "read")


async def test_token_is_stored_as_digest(caller: Caller):
    token = await create_token(caller, "robot", "push")
    async with records_of(caller)._database.reading() as connection:
        rows = (await connection.exec_driver_sql("SELECT * FROM tokens")).all()
        others = (await connection.exec_driver_sql("SELECT * FROM settings")).all()
    assert len(rows) == 2
    stored = str(rows) + str(others)
    assert token not in stored
    assert caller.registry.api_token not in stored


async def test_token_records_last_use(caller: Caller):
    token = await create_token(caller, "robot", "read")

    async def last_use() -> datetime | None:
        return {found.name: found.last_used_at for found in await records_of(caller).list()}["robot"]

    assert await last_use() is None
    await caller.ok("GET", "/auth/current", token=token)
    used_at = await last_use()
    assert used_at is not None
    await caller.ok("GET", "/auth/current", token=token)
    assert await last_use() == used_at  # at most once per minute


@pytest.mark.parametrize(("age", "is_recorded"), [(None, True), (60, False), (61, True)])
async def test_failed_record_of_use_allows_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, age: int | None, is_recorded: bool
):
    """A locked database must not stop requests that only read."""
    now = datetime.now(timezone.utc)
    used_at = None if age is None else now - timedelta(seconds=age)
    token = Token(1, "robot", "read", "", now, None, used_at)

    async def find(_: str) -> Token:
        return token

    async def set_used(*_: object) -> None:
        raise StorageError("ServiceUnavailable", "the database is locked", status=503)

    monkeypatch.setattr("async_bento.registry.access.utc_now", lambda: now)
    records: Any = SimpleNamespace(find=find, set_used=set_used)
    assert await Access(records).check("secret", "10.0.0.1") == token
    expected = "cannot record the use of the token robot: the database is locked"
    assert caplog.messages == ([expected] if is_recorded else [])


async def test_user_and_creator_are_token(caller: Caller):
    token = await create_token(caller, "robot", "push")
    user = await caller.ok("GET", "/auth/current", token=token)
    assert (user["name"], user["email"], user["is_super_admin"]) == ("robot", "robot@localhost", False)
    assert (await caller.ok("GET", "/auth/current"))["is_super_admin"] is True
    await caller.ok("POST", "/bento_repositories", json={"name": "iris", "description": ""}, token=token)
    body = {"version": "v1", "description": "", "manifest": {}, "build_at": "2024-05-01 10:20:30.123456", "labels": []}
    await caller.ok("POST", caller.items(), json=body, token=token)
    bento = await caller.get()
    assert (bento["creator"]["name"], bento["repository"]["creator"]["name"]) == ("robot", "robot")
    assert bento["creator"]["is_super_admin"] is False


# Guesses


async def test_wrong_tokens_are_throttled(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.access._FREE_GUESSES", 2)
    monkeypatch.setattr("async_bento.registry.access._MAX_DELAY", 0.5)
    caller = await serve(forwarded_allow_ips=["127.0.0.1"])

    async def guess(address: str, token: str = "wrong") -> Response:
        return await caller.api("GET", "/auth/current", token=token, headers={"X-Forwarded-For": address})

    assert [(await guess("10.0.0.1")).status for _ in range(3)] == [403, 403, 429]
    refused = await guess("10.0.0.1")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
    assert "too many wrong tokens" in refused.json["error"]
    assert (await guess("10.0.0.1", caller.registry.api_token)).status == 200
    assert (await guess("10.0.0.2")).status == 403


async def test_wrong_tokens_wait(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def find(_: str) -> None:
        return None

    access = Access(SimpleNamespace(find=find))  # type: ignore[arg-type]
    access._guesses = GuessThrottle(lambda: 1000.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(20):
        with pytest.raises(AccessDeniedError):
            await access.check("wrong", "10.0.0.1")
    with pytest.raises(TooManyGuessesError) as refused:
        await access.check("wrong", "10.0.0.1")
    assert waited == [0.0] * 10 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert refused.value.retry_after == 11


def test_throttle_grows_and_recovers():
    now = 1000.0
    throttle = GuessThrottle(lambda: now)
    assert [throttle.delay("10.0.0.1") for _ in range(12)] == [0.0] * 10 + [1.0, 2.0]
    assert throttle.delay("10.0.0.2") == 0.0
    assert {throttle.delay("10.0.0.1") for _ in range(100)} == {3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0}
    now += 15
    assert throttle.delay("10.0.0.1") == 0.0


def test_throttle_by_ipv6_network():
    throttle = GuessThrottle(lambda: 1000.0)
    delays = [throttle.delay(f"2001:db8:1:2::{number:x}") for number in range(11)]
    assert delays[-1] == 1.0
    assert throttle.delay("2001:db8:1:3::1") == 0.0


def test_throttle_bounds_addresses():
    throttle = GuessThrottle(lambda: 1000.0)
    for number in range(10_050):
        throttle.delay(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._next) == 10_000
    assert [throttle.delay("10.9.9.9") for _ in range(11)][-1] == 1.0  # the newest addresses stay


@pytest.mark.parametrize(
    ("allowed", "forwarded", "expected"),
    [
        ([], "10.9.9.9", "127.0.0.1"),
        (["127.0.0.1"], "10.9.9.9", "10.9.9.9"),
        (["127.0.0.1"], "1.1.1.1, 10.9.9.9", "10.9.9.9"),
        (["127.0.0.1", "10.0.0.0/8"], "1.1.1.1, 10.9.9.9", "1.1.1.1"),
        (["*"], "1.1.1.1, 10.9.9.9", "10.9.9.9"),
        (["127.0.0.1"], None, "127.0.0.1"),
    ],
)
async def test_wrong_token_logs_address(
    serve: Serve, caplog: pytest.LogCaptureFixture, allowed: list[str], forwarded: str | None, expected: str
):
    caller = await serve(forwarded_allow_ips=allowed)
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    with caplog.at_level(logging.WARNING, "async_bento.registry"):
        assert (await caller.api("GET", "/auth/current", token="wr0ng", headers=headers)).status == 403
    assert f"refused a wrong token from {expected}" in caplog.messages
    assert "wr0ng" not in caplog.text


# The first token


@disk_only
async def test_first_token_file_is_private(tmp_path: Path, storage: object):
    file = tmp_path / "secrets" / "token"
    file.parent.mkdir()
    async with LocalRegistry(tmp_path / "root", token_file=file) as registry:
        assert registry.has_new_token
        assert (registry.token_file, file.read_text()) == (file, f"{registry.api_token}\n")
        assert registry.api_token.startswith("abt_")
        first = registry.api_token
    assert IS_WINDOWS or file.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "root" / "api_token").exists()
    async with LocalRegistry(tmp_path / "root", token_file=file) as registry:
        assert (registry.api_token, registry.has_new_token) == (first, False)


@disk_only
async def test_edited_file_replaces_token(tmp_path: Path, storage: object):
    root = tmp_path / "root"
    async with LocalRegistry(root) as registry:
        old = registry.api_token
    (root / "api_token").write_text("chosen-by-the-operator\n")
    async with LocalRegistry(root) as registry:
        records = tokens_of(registry)
        assert await records.find(old) is None
        found = await records.find("chosen-by-the-operator")
        assert found is not None
        assert (found.name, found.role) == ("admin", "admin")


@disk_only
async def test_revoked_token_stays_revoked(tmp_path: Path, storage: object, caplog: pytest.LogCaptureFixture):
    async with LocalRegistry(tmp_path / "root") as registry:
        await tokens_of(registry).revoke("admin", by=Actor("test"))
    async with LocalRegistry(tmp_path / "root") as registry:
        assert await tokens_of(registry).find(registry.api_token) is None
    assert "was revoked or has expired. Write another one into the file." in caplog.text


@disk_only
@pytest.mark.parametrize("content", [b"two\nlines\n", b"\xff\xfe"])
async def test_invalid_token_file_raises(tmp_path: Path, storage: object, content: bytes):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        await LocalRegistry(tmp_path / "root", token_file=file).start()
    assert file.read_bytes() == content


@disk_only
async def test_missing_token_dir_raises(tmp_path: Path, storage: object):
    with pytest.raises(ConfigError, match=r"cannot use the token file .*: No such file or directory"):
        await LocalRegistry(tmp_path / "root", token_file=tmp_path / "none" / "token").start()


@disk_only
async def test_first_token_must_be_admin(tmp_path: Path, storage: object):
    async with LocalRegistry(tmp_path / "root") as registry:
        token = await tokens_of(registry).create("ci", "push", by=Actor("test"))
        other = await tokens_of(registry).create("ops", "admin", by=Actor("test"))
    with pytest.raises(ConfigError, match="it is the token ci of the role push"):
        await LocalRegistry(tmp_path / "root", api_token=token).start()
    async with LocalRegistry(tmp_path / "root", api_token=other) as registry:
        found = await tokens_of(registry).find(other)
        assert found is not None
        assert found.name == "ops"


@pytest.mark.storages("postgres-s3")
async def test_no_directory_requires_token(storage: Any, tmp_path: Path):
    places = {name: value for name, value in storage("registry").items() if name != "token_file"}
    with pytest.raises(ConfigError, match=r"the registry has no token yet. Pass --token-file"):
        await LocalRegistry(**places).start()
    async with LocalRegistry(**places, token_file=tmp_path / "token") as registry:
        first = registry.api_token
    async with LocalRegistry(**places) as registry:
        with pytest.raises(ConfigError, match="was started without a token"):
            _ = registry.api_token
        assert not registry.has_new_token
        assert await tokens_of(registry).find(first) is not None
