"""Messages for errors of users: what failed, why, and the remedy."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, ConfigError, InvalidTagError, NotFoundError
from async_bento.errors import (
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    ArchiveError,
    AuthenticationError,
    BentoError,
    ServerError,
    StoreError,
)
from async_bento.transfer.tar import scan as scan_module
from async_bento.transfer.tar.reader import TarReader
from async_bento.transfer.tar.writer import TreeWriter
from tests.builders import contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.fault_proxy import Hold, answer_json, answer_page

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy


CONTEXTS = """
contexts:
- {name: office, endpoint: http://127.0.0.1:1, api_token: t0ken}
- {name: cloud, endpoint: https://cloud.bentoml.com, api_token: t0ken}
current_context_name: office
"""


# Credentials


async def test_missing_token_states_remedy(home: Path) -> None:
    contexts = re.escape(str(home / ".yatai.yaml"))
    where = rf"no API token: .*{contexts} has one\. Log in with `async-bento login`, or set BENTO_CLOUD_API_KEY"

    async with AsyncBentoAPI() as api:
        with pytest.raises(ConfigError, match=where):
            await api.list()


async def test_unknown_context_lists_known(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text(CONTEXTS)

    async with AsyncBentoAPI(context="home") as api:
        with pytest.raises(
            ConfigError, match=r"no context 'home' in .*\.yatai\.yaml: the file has only cloud, office\."
        ):
            await api.list()


@pytest.mark.parametrize(("status", "message"), [(401, "who are you"), (403, "not for you")])
async def test_rejected_token_names_source(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, status: int, message: str
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault("/api/v1/", answer_json(status, {"message": message}), times=None)
    api = make_client(proxy)

    for call in (api.push("svc:v1"), api.pull("svc:v2"), api.list(), api.get("svc"), api.models.pull("mod:m1")):
        with pytest.raises(AuthenticationError, match=f"{message}.*API token from the api_token argument"):
            await call

    assert len(proxy.requests) == 5  # no retry with the same token


async def test_rejected_token_never_shown(start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = await start_proxy()
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "wr0ng-s3cret")
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", proxy.endpoint)

    async with AsyncBentoAPI() as api:
        with pytest.raises(AuthenticationError, match="BENTO_CLOUD_API_KEY") as caught:
            await api.list()

    assert "s3cret" not in str(caught.value) + repr(caught.value) + repr(api)


# The registry


async def test_unreachable_registry_named(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"

    with pytest.raises(
        APIConnectionError,
        match=rf"cannot reach the registry at {proxy.endpoint}: .*refused.*Check that the registry is running",
    ):
        await make_client(proxy).push("svc:v1")


@pytest.mark.parametrize("status", [200, 404], ids=["page", "not found"])
async def test_non_registry_endpoint_named(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, status: int
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault("", answer_page(status), times=None)
    api = make_client(proxy)

    for call in (api.push("svc:v1"), api.pull("svc:v2"), api.list(), api.get("svc")):
        with pytest.raises(
            APIResponseError, match=r"Check that the endpoint is a BentoCloud or Yatai registry\."
        ) as caught:
            await call
        assert proxy.endpoint in str(caught.value)
        assert "secret words" not in str(caught.value)


async def test_registry_error_has_message(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    proxy.add_fault("", answer_json(500, {"error": "the database is gone"}), times=None)

    with pytest.raises(ServerError, match="the database is gone"):
        await make_client(proxy).push("svc:v1")

    assert len(proxy.requests) == 3


async def test_silent_registry_times_out(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    held = Hold()
    proxy.add_fault("", held, times=None)

    with pytest.raises(APITimeoutError, match=r"no response within 0\.1 s"):
        await make_client(proxy, timeouts={"api": 0.1}, retry={"attempts": 1}).push("svc:v1")
    held.released.set()


# Tags and local items


@pytest.mark.parametrize("tag", ["svc:", "Svc:!", "svc:v1:v2", "", "-svc", "a" * 64, "svc:" + "v" * 64])
async def test_malformed_tag_rejected(start_proxy: StartProxy, make_client: MakeClient, tag: str) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)

    for call in (api.push(tag), api.pull(tag), api.models.push(tag), api.models.pull(tag), api.get(tag)):
        with pytest.raises(InvalidTagError):
            await call

    assert not proxy.requests


async def test_tag_pattern_states_remedy(start_proxy: StartProxy, make_client: MakeClient) -> None:
    api = make_client(await start_proxy())

    for call, tags in (
        (api.push("iris_*"), "BentoStore().list()"),
        (api.models.push("iris_*"), "ModelStore().list()"),
        (api.pull("iris_*"), "api.list()"),
        (api.models.pull("iris_*"), "api.models.list()"),
    ):
        with pytest.raises(InvalidTagError) as caught:
            await call
        verb = "pull" if "api" in tags else "push"
        assert str(caught.value) == (
            f"cannot {verb} 'iris_*': only the command expands patterns. "
            f"In Python, select from the tags of `{tags}` and {verb} each."
        )


@pytest.mark.parametrize("thing", [None, 7, b"svc:v1", object()], ids=["None", "int", "bytes", "object"])
async def test_wrong_type_tag_rejected(start_proxy: StartProxy, make_client: MakeClient, thing: object) -> None:
    api = make_client(await start_proxy())

    for call in (api.push(thing), api.pull(thing)):  # type: ignore[arg-type]
        with pytest.raises(InvalidTagError, match=f"invalid tag of type {type(thing).__name__}"):
            await call


async def test_missing_bento_lists_versions(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, "svc:v1")
    make_bento(home, "svd:v2")
    api = make_client(await start_proxy())

    with pytest.raises(
        NotFoundError, match=r"no bento svc:v9 in .*[/\\]bentoml[/\\]bentos: svc has v1\..*async-bento pull"
    ):
        await api.push("svc:v9")
    with pytest.raises(NotFoundError, match=r"no bento nothing in .*: the store has svc, svd\."):
        await api.push("nothing")
    with pytest.raises(NotFoundError, match=r"no model mod in .*[/\\]models: the store is empty\."):
        await api.models.push("mod")


BROKEN = {
    "missing": (None, "svc: the directory has no bento.yaml"),
    "no YAML": (b"a: [", "bento.yaml: the file is not valid YAML"),
    "no mapping": (b"- a", "bento.yaml: the file is not a YAML mapping"),
    "no version": (b"name: svc\nservice: s\n", "the field `version` is missing"),
    "wrong models": (b"name: svc\nversion: v1\nservice: s\nmodels: 3\n", "the field `models`"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
async def test_non_bento_dir_names_fault(
    start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path, text: bytes | None, message: str
) -> None:
    directory = tmp_path / "svc"
    directory.mkdir()
    if text is not None:
        (directory / "bento.yaml").write_bytes(text)
    proxy = await start_proxy()

    with pytest.raises(StoreError, match=message) as caught:
        await make_client(proxy).push(directory)

    assert str(directory) in str(caught.value)
    assert not proxy.requests


async def test_missing_directory_named(start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError, match=f"cannot read {re.escape(str(tmp_path / 'nowhere'))}: there is no such directory"
    ):
        await make_client(await start_proxy()).push(tmp_path / "nowhere")


async def test_dangling_latest_is_repaired(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, "svc:v1")
    (home / "bentos/svc/latest").write_text("gone")

    result = await make_client(await start_proxy()).push("svc:latest")

    assert str(result.tag) == "svc:v1"


async def test_latest_of_no_versions_fails(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    (home / "bentos/svc").mkdir(parents=True)
    (home / "bentos/svc/latest").write_text("gone")

    with pytest.raises(NotFoundError, match="no bento svc in"):
        await make_client(await start_proxy()).push("svc")


# The disk


@pytest.mark.posix("unreadable files")
async def test_unreadable_file_fails_early(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = make_bento(home, files={"secret": b"x"}) / "secret"
    secret.chmod(0)
    allowed = os.access
    monkeypatch.setattr(  # root can read every file
        scan_module.os, "access", lambda path, *args, **kwargs: path != str(secret) and allowed(path, *args, **kwargs)
    )
    proxy = await start_proxy()

    with pytest.raises(ArchiveError, match=f"cannot pack {re.escape(str(secret))}: permission denied"):
        await make_client(proxy).push("svc:v1")

    assert "POST svc" not in proxy.steps()


async def test_push_disk_error_reported(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, files={"data": b"x"})
    proxy = await start_proxy()

    def fails(self: TarReader, *_: object) -> bytes:
        raise ArchiveError("cannot read data: Input/output error")

    monkeypatch.setattr(TarReader, "_read_small", fails)

    with pytest.raises(ArchiveError, match="Input/output error"):
        await make_client(proxy).push("svc:v1")

    (finish,) = proxy.matching("finish_upload")
    assert finish.json == {"status": "failed", "reason": "cannot read data: Input/output error"}
    assert len(proxy.matching("^PUT")) <= 1  # a retry would read the same file


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_pull_full_disk_keeps_store(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    transmission: str,
) -> None:
    make_bento(home, files={"data": random_bytes(500_000)})
    proxy = await start_proxy(transmission)
    await make_client(proxy).push("svc:v1")
    proxy.requests.clear()
    make_bento(elsewhere, files={"mine": b"x"})
    (elsewhere / "bentos/svc/latest").write_text("v1")
    before = contents(elsewhere / "bentos")
    write, left = TreeWriter.write, 100_000

    def write_until_full(self: TreeWriter, data: memoryview) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(TreeWriter, "write", write_until_full)

    with pytest.raises(StoreError, match=r"cannot pull svc:v1: cannot write data: No space left on device"):
        await make_client(proxy, elsewhere).pull("svc:v1", force=True)

    assert contents(elsewhere / "bentos") == before
    assert not left_in_scratch(elsewhere)
    asked = proxy.steps("^GET (bytes|svc/v1/download)")
    assert len(asked) == len(set(asked))  # a retry would meet the same full disk


async def test_schema_error_is_bento_error(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    proxy = await start_proxy()
    make_model(home)
    proxy.add_fault("start_multipart", answer_json(200, {"upload_id": "x"}))

    with pytest.raises(BentoError, match="version"):
        await make_client(proxy).models.push("mod:m1")


async def test_broken_copy_states_remedy(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    bento = make_bento(home, "svc:v1")
    api = make_client(await start_proxy())
    await api.push("svc:v1")
    (bento / "bento.yaml").write_text("name: svc")

    with pytest.raises(StoreError, match=r"the field `version` is missing.*\. Pull with force to replace"):
        await api.pull("svc:v1")
    assert (await api.pull("svc:v1", force=True)).info.service == "service:Svc"


async def test_unreadable_copy_states_remedy(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced pull may lack the write permission, too. Root can read every file, so the answer is simulated."""
    make_bento(home, "svc:v1")
    api = make_client(await start_proxy())
    await api.push("svc:v1")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("async_bento.store.metadata._read_yaml", refuse)
    with pytest.raises(StoreError, match=r"bento.yaml: Permission denied.*\. Make it readable for this user.$"):
        await api.pull("svc:v1")
