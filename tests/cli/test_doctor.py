"""`async-bento doctor`: each line is ok, or says what to do."""

from __future__ import annotations

import json
import shutil
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from async_bento import __version__
from async_bento.cli.doctor import Finding, examine, look_at_clock
from tests.builders import left_in_scratch
from tests.cli.test_cli import NOWHERE, done, run

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry


def lines(text: str) -> dict[str, tuple[str, str]]:
    """What was said of each thing: `ok` or `FAIL`, and the rest."""
    found = [line.split(maxsplit=2) for line in text.splitlines()]
    return {name.rstrip(":"): (word, said) for word, name, said in found}


def test_where_all_is_well_each_line_is_ok(served: LocalRegistry, home: Path) -> None:
    said = lines(done("doctor"))
    assert [*said] == ["settings", "endpoint", "token", "clock", "store", "space", "versions"]
    assert {word for word, _ in said.values()} == {"ok"}
    assert said["settings"][1] == "the token from BENTO_CLOUD_API_KEY"
    assert said["endpoint"][1].startswith(f"{served.endpoint} answers in ")
    assert said["clock"][1] == "it agrees with the registry's"
    assert said["store"][1] == f"{home} can be written to"
    assert f"async-bento {__version__}, Python 3." in said["versions"][1]
    assert not left_in_scratch(home)


def test_on_a_terminal_long_lines_are_wrapped(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento.cli.output.terminal_width", lambda: 40)
    said = done("doctor").splitlines()
    at = next(number for number, line in enumerate(said) if "versions:" in line)
    assert len(said) > at + 1
    assert all(line.startswith(" " * 16) for line in said[at + 1 :])
    assert max(map(len, said[at:])) <= 40


def test_no_token_is_said_and_the_rest_is_looked_at(home: Path) -> None:
    result = run("doctor")
    said = lines(result.stdout)
    assert result.exit_code == 2
    assert [name for name, (word, _) in said.items() if word == "FAIL"] == ["settings"]
    assert "set BENTO_CLOUD_API_KEY" in said["settings"][1]
    assert said["store"][0] == "ok"


def test_a_registry_that_does_not_listen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "a-secret")
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", NOWHERE)
    result = run("doctor")
    word, said = lines(result.stdout)["endpoint"]
    assert (result.exit_code, word) == (5, "FAIL")
    assert f"cannot reach the registry at {NOWHERE}: Connection refused" in said
    assert "see whether the URL is right" in said


def test_a_token_that_is_not_accepted_is_said_and_not_shown(
    served: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "not-this-one")
    result = run("doctor")
    said = lines(result.stdout)
    assert result.exit_code == 4
    assert (said["endpoint"][0], said["token"][0], said["clock"][0]) == ("ok", "FAIL", "ok")
    assert "does not accept the API token from BENTO_CLOUD_API_KEY" in said["token"][1]
    assert "not-this-one" not in result.output


@pytest.mark.parametrize(
    ("skew", "ok", "said"),
    [
        (None, True, "the registry does not tell its time"),
        (-59, True, "it agrees with the registry's"),
        (3700, False, "it is 1 h 01 min ahead of the registry's: set it, or let it be set by NTP"),
        (-300, False, "it is 5 min 00 s behind the registry's: set it, or let it be set by NTP"),
    ],
)
def test_a_clock_that_is_wrong_is_said(skew: float | None, ok: bool, said: str) -> None:
    finding = look_at_clock(skew)
    assert (finding.error is None, finding.said) == (ok, said)


async def found_at(date: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    async def current(_: web.Request) -> web.Response:
        return web.json_response({"name": "me"}, headers={"Date": date})

    app = web.Application()
    app.router.add_get("/api/v1/auth/current", current)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", "token")
        host, port = runner.addresses[0][:2]
        return {finding.name: finding async for finding in examine(f"http://{host}:{port}")}
    finally:
        await runner.cleanup()


async def test_the_clock_is_compared_with_the_date_that_the_registry_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await found_at(formatdate(time.time() - 600, usegmt=True), monkeypatch)
    assert found["token"].said == "it is that of me"
    assert "ahead of the registry's" in found["clock"].said
    assert found["clock"].said.startswith(("it is 10 min 0", "it is 9 min 5"))


async def test_a_date_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await found_at("yesterday", monkeypatch))["clock"].said == "the registry does not tell its time"


def test_a_store_that_cannot_be_written_to_is_said(
    served: LocalRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))
    result = run("doctor")
    word, said = lines(result.stdout)["store"]
    assert (result.exit_code, word) == (1, "FAIL")
    assert said.endswith(f"let this user write to {tmp_path}/file, or set BENTOML_HOME to another directory")


def test_a_disk_without_room_is_said(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=5 * 2**20)
    monkeypatch.setattr("async_bento.cli.doctor.shutil.disk_usage", lambda _: usage)
    result = run("doctor")
    word, said = lines(result.stdout)["space"]
    assert (result.exit_code, word) == (1, "FAIL")
    assert "5.0 MiB free: make room" in said


def test_a_machine_reads_json(served: LocalRegistry) -> None:
    found = json.loads(done("doctor", "--json"))
    assert [one["name"] for one in found][:3] == ["settings", "endpoint", "token"]
    assert all(one["ok"] for one in found)
