"""Hostile tars from a registry change neither the store nor the files next to the store."""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from async_bento import UnsafeArchiveError
from tests.builders import contents, left_in_scratch, make_bento, random_bytes
from tests.fault_proxy import DOWNLOAD, GET
from tests.tar.property import snapshot
from tests.tar.tars import END, block, directory, hard_link, pax, record, symlink

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fault_proxy import Exchange, Fault, FaultProxy
    from tests.fixtures import MakeClient, StartProxy


RECORD = r"GET .*/bento_repositories/svc/bentos/v1$"
WHOLE = block("bento.yaml", content=b"name: svc\nversion: v1\n") + block("src/weights", content=random_bytes(150_000))


def serve(tar: bytes) -> Fault:
    """Answer with other bytes: a storage with a range of them, a registry with all."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.logged.headers.get("Range", ""))
        if asked is None or exchange.logged.path.endswith("/download"):
            return web.Response(body=tar)
        first, last = int(asked[1]), min(int(asked[2]), len(tar) - 1)
        where = {"Content-Range": f"bytes {first}-{last}/{len(tar)}", "ETag": '"it"'}
        return web.Response(status=206, body=tar[first : last + 1], headers=where)

    return fault


def announce(size: int | None) -> Fault:
    """Answer with a record that has another size."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        found: dict[str, Any] = json.loads(answer.body)
        found["manifest"] = None if size is None else found["manifest"] | {"size_bytes": size}
        return web.json_response(found)

    return fault


@pytest.fixture
async def pushed(start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path) -> StartProxy:
    """A registry with `svc:v1`, whose bytes a test can replace."""

    async def push(tar: bytes | None, transmission: str = "presigned_url") -> FaultProxy:
        origin = tmp_path / "origin"
        make_bento(origin, files={"src/weights": random_bytes(150_000)})
        proxy = await start_proxy(transmission)
        proxy.hides_checksums = True
        await make_client(proxy, origin).push("svc:v1")
        if tar is not None:
            proxy.add_fault(f"{GET}|{DOWNLOAD}", serve(tar), times=None)
        return proxy

    return push


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a name that climbs": (WHOLE + block("../../canary", content=b"pwned") + END, "../../canary"),
    "an absolute name": (WHOLE + block("/tmp/pwned", content=b"pwned") + END, "/tmp/pwned"),
    "a link that leads out": (WHOLE + symlink("src/out", "../../canary") + END, "src/out"),
    "a file through a link": (WHOLE + symlink("out", "..") + block("out/canary", content=b"pwned") + END, "out/canary"),
    "a hard link out": (WHOLE + hard_link("out", "../../canary") + END, "out"),
    "bento.yaml as a link": (symlink("bento.yaml", "../../canary") + END, "bento.yaml"),
    "a duplicate": (WHOLE + block("src/weights", content=b"pwned") + END, "src/weights"),
    "a size that lies": (WHOLE + pax(record("size", str(1 << 62))) + block("big") + END, "big"),
    "closed directories, then a link out": (
        WHOLE + directory("src", mode=0) + directory("a/b", mode=0) + symlink("out", "..") + END,
        "out",
    ),
    "directories too deep": (WHOLE + block("/".join("d" * 1500)) + END, "/".join("d" * 1500)),
    "cut": ((WHOLE + END)[:100_000], "src/weights"),
    "garbage at its end": (WHOLE + END + b"garbage", "src/weights"),
    "cut, in gzip": (gzip.compress(WHOLE + END)[:100_000], "src/weights"),
}


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
@pytest.mark.parametrize(("tar", "member"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_tar_changes_nothing(
    pushed: StartProxy,
    make_client: MakeClient,
    home: Path,
    tmp_path: Path,
    tar: bytes,
    member: str,
    transmission: str,
) -> None:
    make_bento(home, files={"mine": b"x"})
    (home / "bentos/svc/latest").write_text("v1")
    make_bento(home, "other:v1")
    (tmp_path / "canary").write_bytes(b"sings")
    proxy = await pushed(tar, transmission)
    api = make_client(proxy)
    before = snapshot(home / "bentos/svc") | snapshot(home / "bentos/other") | snapshot(tmp_path / "canary")

    with pytest.raises(UnsafeArchiveError, match="cannot pull svc:v1: ") as raised:
        await api.pull("svc:v1", force=True)

    assert raised.value.member == member
    assert snapshot(home / "bentos/svc") | snapshot(home / "bentos/other") | snapshot(tmp_path / "canary") == before
    assert {path.name for path in (home / "bentos").iterdir()} == {"svc", "other"}
    assert not left_in_scratch(home)
    assert len(proxy.matching("GET bytes=0-|/download$")) == 1, "it was fetched again"


async def test_excess_bytes_are_rejected(pushed: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await pushed(gzip.compress(WHOLE + block("bomb", content=bytes(1_000_000)) + END))

    with pytest.raises(UnsafeArchiveError, match=r"were announced \(Limits.*\), at 'bomb'\. Raise this limit"):
        await make_client(proxy, limits={"allowance": 10_000}).pull("svc:v1")

    assert not (home / "bentos/svc/v1").exists()
    assert not left_in_scratch(home)


@pytest.mark.parametrize(
    ("size", "limits"),
    [
        (1, {}),
        (150_000, {"allowance": 10_000}),
        (75_500, {"allowance": 0}),
        (0, {"allowance": 0}),
        (None, {"allowance": 0}),
    ],
    ids=["far too little", "about", "half of it", "nothing", "no manifest"],
)
async def test_inexact_size_is_accepted(
    pushed: StartProxy,
    make_client: MakeClient,
    home: Path,
    tmp_path: Path,
    size: int | None,
    limits: dict[str, int],
) -> None:
    proxy = await pushed(None)
    proxy.add_fault(RECORD, announce(size), times=None)

    bento = await make_client(proxy, limits=limits).pull("svc:v1")

    assert bento.path.is_relative_to(home)
    assert contents(bento.path) == contents(tmp_path / "origin/bentos/svc/v1")


async def test_configured_limits_apply(pushed: StartProxy, make_client: MakeClient) -> None:
    proxy = await pushed(WHOLE + END)

    with pytest.raises(UnsafeArchiveError, match="more than 1 members"):
        await make_client(proxy, limits={"members": 1}).pull("svc:v1")
