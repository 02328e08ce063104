"""`async-bento doctor`: each line is ok, or states a remedy."""

from __future__ import annotations

import errno
import json
import platform
import shutil
import time
from email.utils import formatdate
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from async_bento import BentoStore, ConfigError, RestApiClient, ServerError, StoreError, __version__
from async_bento.cli.doctor import (
    MIN_FREE_SPACE,
    Check,
    check_clock,
    check_space,
    check_store,
    list_versions,
    run_checks,
)
from async_bento.config import BENTOML_VERSION
from tests.builders import left_in_scratch
from tests.cli.test_cli import NOWHERE, done, run
from tests.platforms import REFUSED
from tests.servers import close_server

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Return `ok` or `FAIL`, and the message, for each check."""
    found = [line.split(maxsplit=2) for line in text.splitlines()]
    return {name.rstrip(":"): (word, message) for word, name, message in found}


def test_doctor_prints_ok(served: LocalRegistry, home: Path) -> None:
    message = lines(done("doctor"))
    assert [*message] == ["settings", "endpoint", "token", "clock", "store", "space", "versions"]
    assert {word for word, _ in message.values()} == {"ok"}
    assert message["settings"][1] == "the API token comes from BENTO_CLOUD_API_KEY"
    assert message["endpoint"][1].startswith(f"{served.endpoint} responds in ")
    assert message["clock"][1] == "agrees with the registry's clock"
    assert message["store"][1] == f"{home} is writable"
    assert f"async-bento {__version__}, Python 3." in message["versions"][1]
    assert not left_in_scratch(home)


def test_terminal_wraps_long_lines(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 40)
    message = done("doctor").splitlines()
    at = next(number for number, line in enumerate(message) if "versions:" in line)
    assert len(message) > at + 1
    assert all(line.startswith(" " * 16) for line in message[at + 1 :])
    assert max(map(len, message[at:])) <= 40


def test_no_token_runs_local_checks(home: Path) -> None:
    result = run("doctor")
    message = lines(result.stdout)
    assert result.exit_code == 2
    assert [name for name, (word, _) in message.items() if word == "FAIL"] == ["settings"]
    assert "set BENTO_CLOUD_API_KEY" in message["settings"][1]
    assert message["store"][0] == "ok"


def test_late_settings_error_is_reported(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: RestApiClient) -> None:
        raise ConfigError("invalid SSL_CERT_FILE: no such file.")

    monkeypatch.setattr(RestApiClient, "probe", fail)
    result = run("doctor")
    word, message = lines(result.stdout)["endpoint"]
    assert (result.exit_code, word) == (2, "FAIL")
    assert "invalid SSL_CERT_FILE" in message
    assert lines(result.stdout)["store"][0] == "ok"


def test_unreachable_registry_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "a-secret")
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", NOWHERE)
    result = run("doctor")
    word, message = lines(result.stdout)["endpoint"]
    assert (result.exit_code, word) == (5, "FAIL")
    assert f"cannot reach the registry at {NOWHERE}: {REFUSED}" in message
    assert "Check the URL, and whether a proxy or a VPN is needed." in message


def test_rejected_token_not_shown(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("doctor")
    message = lines(result.stdout)
    assert result.exit_code == 4
    assert (message["endpoint"][0], message["token"][0], message["clock"][0]) == ("ok", "FAIL", "ok")
    assert "Check the API token from BENTO_CLOUD_API_KEY" in message["token"][1]
    assert "not-this-one" not in result.output


@pytest.mark.parametrize(
    ("skew", "ok", "message"),
    [
        (None, True, "not compared: the registry sends no time"),
        (-59, True, "agrees with the registry's clock"),
        (60, True, "agrees with the registry's clock"),
        (61, False, "1 min 01 s ahead of the registry's clock. Set this clock, or synchronize it by NTP."),
        (3700, False, "1 h 01 min ahead of the registry's clock. Set this clock, or synchronize it by NTP."),
        (-300, False, "5 min 00 s behind the registry's clock. Set this clock, or synchronize it by NTP."),
    ],
)
def test_check_clock_reports_skew(skew: float | None, ok: bool, message: str) -> None:
    check = check_clock(skew)
    assert (check.error is None, check.message) == (ok, message)


async def checks_at(date: str, monkeypatch: pytest.MonkeyPatch, status: int = 200) -> dict[str, Check]:
    async def current(_: web.Request) -> web.Response:
        return web.json_response({"name": "me"}, headers={"Date": date}, status=status)

    app = web.Application()
    app.router.add_get("/api/v1/auth/current", current)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", "token")
        host, port = runner.addresses[0][:2]
        return {check.name: check async for check in run_checks(f"http://{host}:{port}")}
    finally:
        await close_server(runner)


async def test_clock_uses_date_header(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await checks_at(formatdate(time.time() - 600, usegmt=True), monkeypatch)
    assert found["token"].message == "valid, for user me"
    assert "ahead of the registry's clock" in found["clock"].message
    assert found["clock"].message.startswith(("10 min 0", "9 min 5"))


@pytest.mark.parametrize("date", ["yesterday", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"])
async def test_invalid_date_is_ignored(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await checks_at(date, monkeypatch))["clock"].message == "not compared: the registry sends no time"


async def test_server_error_is_no_token_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await checks_at(formatdate(time.time(), usegmt=True), monkeypatch, status=503)
    assert "token" not in found
    assert isinstance(found["endpoint"].error, ServerError)
    assert found["endpoint"].message.endswith("try again later. Ask the administrator of the registry.")
    assert found["clock"].error is None


def test_unwritable_store_fails(served: LocalRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))
    result = run("doctor")
    word, message = lines(result.stdout)["store"]
    assert (result.exit_code, word) == (1, "FAIL")
    assert message.endswith(
        f"Make {tmp_path / 'file'} writable for this user, or set BENTOML_HOME to another directory."
    )


def test_doctor_reports_full_disk(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=5 * 2**20)
    monkeypatch.setattr("async_bento.cli.doctor.shutil.disk_usage", lambda _: usage)
    result = run("doctor")
    word, message = lines(result.stdout)["space"]
    assert (result.exit_code, word) == (1, "FAIL")
    assert "only 5.0 MiB are free on the disk of " in message
    assert "Free some space" in message


def test_space_of_missing_home_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "new" / "bentoml"))
    free = {tmp_path: MIN_FREE_SPACE}
    monkeypatch.setattr("async_bento.cli.doctor.shutil.disk_usage", lambda path: SimpleNamespace(free=free[path]))
    assert check_space() == f"1.0 GiB are free on the disk of {tmp_path}"
    free[tmp_path] -= 1
    with pytest.raises(StoreError, match="are free on the disk of"):
        check_space()


async def test_unreadable_disk_is_reported(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/srv")

    monkeypatch.setattr("async_bento.cli.doctor.shutil.disk_usage", refuse)
    found = {check.name: check async for check in run_checks()}
    assert found["space"].message == "cannot read /srv: Permission denied"
    assert isinstance(found["space"].error, StoreError)
    assert found["versions"].error is None


def test_store_remedy_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "cannot write into /srv: read-only. Set BENTOML_HOME to another directory."

    def fail(_: BentoStore) -> None:
        raise StoreError(message)

    monkeypatch.setattr(BentoStore, "stage", fail)
    with pytest.raises(StoreError) as caught:
        check_store()
    assert str(caught.value) == message


def test_versions_list_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name not in {"aiohttp", "aiobotocore"}:
            raise PackageNotFoundError(name)
        return "4.5.6"

    monkeypatch.setattr("async_bento.cli.doctor.version", installed)
    own = f"async-bento {__version__}, Python {platform.python_version()}"
    assert list_versions() == f"{own}, aiohttp 4.5.6, aiobotocore 4.5.6; compatible with BentoML {BENTOML_VERSION}"


def test_json_has_name_ok_message(served: LocalRegistry) -> None:
    found = json.loads(done("doctor", "--json"))
    assert [check["name"] for check in found][:3] == ["settings", "endpoint", "token"]
    assert all(check.keys() == {"name", "ok", "message"} for check in found)
    assert all(check["ok"] for check in found)
