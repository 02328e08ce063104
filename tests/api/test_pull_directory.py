"""A pull into a directory: the whole item or nothing, and no store."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import (
    Bento,
    BentoAPI,
    BentoStore,
    ConfigError,
    Model,
    NotFoundError,
    PartError,
    PathExistsError,
    StoreError,
    Tag,
)
from async_bento.progress.events import ENDED
from tests.builders import contents, make_bento, make_model, random_bytes
from tests.fault_proxy import GET, FaultProxy, Hold, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_bento import ProgressEvent
    from async_bento.registry.server import LocalRegistry
    from tests.fixtures import MakeClient, StartProxy

Pushed = tuple[FaultProxy, dict[str, Any]]


@pytest.fixture
async def pushed(start_proxy: StartProxy, make_client: MakeClient, tmp_path: Path) -> Pushed:
    """A registry with `svc:v1` and its model `mod:m1`, and the contents of the bento."""
    origin = tmp_path / "origin"
    proxy = await start_proxy()
    make_model(origin, "mod:m1", {"weights": random_bytes(100_000, 3)})
    bento = make_bento(origin, files={"data": random_bytes(300_000), "src/service.py": b"pass\n"}, models=["mod:m1"])
    await make_client(proxy, origin).push("svc:v1")
    proxy.requests.clear()
    return proxy, contents(bento)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """The parent of the pulled directories; the fixture checks that nothing else is left in it."""
    place = tmp_path / "at"
    place.mkdir()
    return place


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


async def test_directory_holds_the_item(pushed: Pushed, make_client: MakeClient, home: Path, at: Path) -> None:
    proxy, expected = pushed
    events: list[ProgressEvent] = []
    api = make_client(proxy, progress=events.append)

    bento = await api.pull("svc:v1", path=at / "svc")
    model = await api.models.pull("mod", path=str(at / "mod"))

    assert (bento.tag, bento.path) == (Tag("svc", "v1"), at / "svc")
    assert contents(at / "svc") == expected
    assert isinstance(model, Model)
    assert (model.path, entries(model.path)) == (at / "mod", ["model.yaml", "weights"])
    assert entries(at) == ["mod", "svc"]
    assert not home.exists()
    assert [event.phase for event in events if event.phase in ENDED] == ["done", "done"]
    assert [event.phase for event in events][-2:] == ["finishing", "done"]
    assert await asyncio.to_thread(Bento.from_path, at / "svc") == bento


async def test_directory_ignores_store(pushed: Pushed, make_client: MakeClient, home: Path, at: Path) -> None:
    proxy, expected = pushed
    make_bento(home, files={"mine": b"x"})
    before = contents(home)

    await make_client(proxy).pull("svc", path=at / "svc")

    assert contents(at / "svc") == expected
    assert contents(home) == before


async def test_empty_or_new_directory_works(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, expected = pushed
    (at / "empty").mkdir(mode=0o750)
    (at / "link").symlink_to("target")
    (at / "target").mkdir()

    for name in ("empty", "new/er/dir", "link"):
        assert (await make_client(proxy).pull("svc:v1", path=at / name)).path == at / name
        assert contents(at / name) == expected

    assert (at / "empty").stat().st_mode & 0o777 == 0o750
    assert (at / "link").is_symlink()
    assert entries(at) == ["empty", "link", "new", "target"]
    assert entries(at / "new/er") == ["dir"]


async def test_directory_may_be_relative(
    pushed: Pushed, make_client: MakeClient, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, expected = pushed
    monkeypatch.chdir(at)

    bento = await make_client(proxy).pull("svc:v1", path="svc")

    assert bento.path == at / "svc"
    assert contents(bento.path) == expected


async def test_directory_may_be_cwd(
    pushed: Pushed, make_client: MakeClient, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename would leave the shell in a deleted directory."""
    proxy, expected = pushed
    monkeypatch.chdir(at)
    inode = at.stat().st_ino

    for force in (False, True):
        await make_client(proxy).pull("svc:v1", path=".", force=force)
        assert contents(Path.cwd()) == expected

    assert at.stat().st_ino == inode


@pytest.fixture
def on_another_filesystem(tmp_path: Path) -> Iterator[Path]:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        yield tmp_path / "same"
        return
    with tempfile.TemporaryDirectory(dir=shm) as directory:
        yield Path(directory)


async def test_directory_on_other_filesystem(
    pushed: Pushed, make_client: MakeClient, on_another_filesystem: Path
) -> None:
    proxy, expected = pushed

    await make_client(proxy).pull("svc:v1", path=on_another_filesystem / "svc")

    assert contents(on_another_filesystem / "svc") == expected
    assert entries(on_another_filesystem) == ["svc"]


def has_file(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_bytes(b"x")


def has_bento(path: Path) -> None:
    path.mkdir()
    (path / "bento.yaml").write_bytes(b"mine")


@pytest.mark.parametrize(
    ("prepare", "force", "message"),
    [
        (has_file, False, "the directory is not empty and has no bento.yaml. Choose another directory."),
        (has_file, True, "the directory is not empty and has no bento.yaml. Choose another directory."),
        (has_bento, False, r"the directory already has a bento. Pull with force \(`--force`\) to replace it, or"),
        (lambda path: path.write_bytes(b"x"), True, ".*svc is a file. Choose another directory."),
    ],
)
async def test_nonempty_directory_rejected(
    pushed: Pushed, make_client: MakeClient, at: Path, prepare: Callable[[Path], None], force: bool, message: str
) -> None:
    proxy, _ = pushed
    prepare(at / "svc")
    before = contents(at)

    for tag in ("svc:v1", "svc"):
        with pytest.raises(PathExistsError, match=f"cannot pull to {re.escape(str(at / 'svc'))}: {message}") as raised:
            await make_client(proxy).pull(tag, path=at / "svc", force=force)
        assert isinstance(raised.value, FileExistsError)

    assert not proxy.requests
    assert contents(at) == before


async def test_force_replaces_directory(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, expected = pushed
    (at / "svc").mkdir()
    (at / "svc/bento.yaml").write_bytes(b"old")
    (at / "svc/mine").write_bytes(b"old")
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", path=at / "svc", force=True))
    await held.arrived.wait()
    meanwhile = contents(at / "svc")
    held.released.set()
    await pulling

    assert meanwhile == {"bento.yaml": b"old", "mine": b"old"}
    assert contents(at / "svc") == expected
    assert entries(at) == ["svc"]


def absent(path: Path) -> None: ...


def empty(path: Path) -> None:
    path.mkdir(parents=True)


@pytest.mark.parametrize("prepare", [absent, empty, has_bento])
async def test_failure_keeps_directory(
    pushed: Pushed, make_client: MakeClient, at: Path, prepare: Callable[[Path], None]
) -> None:
    proxy, _ = pushed
    prepare(at / "svc")
    before = contents(at)
    proxy.add_fault(GET, refuse(500), skip=2, times=None)

    with pytest.raises(PartError):
        await make_client(proxy).pull("svc:v1", path=at / "svc", force=True)

    assert proxy.matching("GET bytes")
    assert contents(at) == before


@pytest.mark.parametrize("prepare", [absent, empty])
async def test_cancelled_pull_restarts(
    pushed: Pushed, make_client: MakeClient, at: Path, prepare: Callable[[Path], None]
) -> None:
    proxy, expected = pushed
    target = at / "new/svc" if prepare is absent else at / "svc"
    prepare(target)
    before = contents(at)
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", path=target))
    await held.arrived.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    held.released.set()
    after = contents(at)
    proxy.requests.clear()
    await make_client(proxy).pull("svc:v1", path=target)

    assert after == before
    assert contents(target) == expected
    assert proxy.matching("GET bytes=0-")


async def test_cancelled_pull_cleans_cwd(
    pushed: Pushed, make_client: MakeClient, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, _ = pushed
    monkeypatch.chdir(at)
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", path=at))
    await held.arrived.wait()
    meanwhile = entries(at)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    held.released.set()

    assert meanwhile == [".async-bento"]
    assert entries(at) == []


async def test_files_added_meanwhile_kept(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, _ = pushed
    held = Hold()
    proxy.add_fault(GET, held, skip=2)

    pulling = asyncio.create_task(make_client(proxy).pull("svc:v1", path=at / "svc"))
    await held.arrived.wait()
    has_file(at / "svc")
    held.released.set()
    with pytest.raises(PathExistsError):
        await pulling

    assert contents(at) == {"svc": None, "svc/mine": b"x"}


async def test_directory_below_file_rejected(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, _ = pushed
    (at / "file").write_bytes(b"")

    file = re.escape(str(at / "file"))
    with pytest.raises(PathExistsError, match=f"cannot pull to {file}.svc.deep: {file} is a file"):
        await make_client(proxy).pull("svc:v1", path=at / "file/svc/deep")

    assert entries(at) == ["file"]
    assert not proxy.requests


@pytest.mark.posix("/proc")
async def test_unwritable_directory_fails(pushed: Pushed, make_client: MakeClient) -> None:
    proxy, _ = pushed

    with pytest.raises(StoreError, match=r"^cannot pull svc:v1: cannot .*/proc"):
        await make_client(proxy).pull("svc:v1", path="/proc/new/svc")


async def test_directory_includes_models(
    pushed: Pushed, make_client: MakeClient, start_proxy: StartProxy, home: Path, at: Path
) -> None:
    proxy, expected = pushed

    bento = await make_client(proxy).pull("svc:v1", path=at / "svc", with_models=True)

    inside = contents(bento.path)
    assert inside.pop("models/mod/m1/weights") == random_bytes(100_000, 3)
    models = {name for name in inside if name.startswith("models")}
    assert models == {"models", "models/mod", "models/mod/latest", "models/mod/m1", "models/mod/m1/model.yaml"}
    assert {name: content for name, content in inside.items() if name not in models} == expected
    assert not home.exists()
    other = await start_proxy("proxy")
    result = await make_client(other).push(bento.path)
    assert [str(model.tag) for model in result.models] == ["mod:m1"]


async def test_failed_model_leaves_nothing(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, _ = pushed
    proxy.add_fault("GET /blobs/models", refuse(500), times=None)

    with pytest.raises(PartError, match=r"^cannot pull svc:v1: its model mod:m1 failed: "):
        await make_client(proxy).pull("svc:v1", path=at / "svc", with_models=True)

    assert entries(at) == []


async def test_missing_item_leaves_nothing(pushed: Pushed, make_client: MakeClient, at: Path) -> None:
    proxy, _ = pushed

    with pytest.raises(NotFoundError, match="no bento gone:v1 in the registry"):
        await make_client(proxy).pull("gone:v1", path=at / "new/gone")

    assert entries(at) == []


async def test_directory_and_store_rejected(pushed: Pushed, make_client: MakeClient, tmp_path: Path) -> None:
    proxy, _ = pushed

    with pytest.raises(ConfigError, match="a store and a directory at once"):
        await make_client(proxy).pull("svc:v1", path=tmp_path / "svc", bento_store=BentoStore(tmp_path / "store"))


def test_blocking_pull_directory(served: LocalRegistry, home: Path, at: Path) -> None:
    bento = make_bento(home, models=["mod:m1"])
    make_model(home)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        assert api.pull("svc:v1", path=at / "svc").path == at / "svc"
        assert api.models.pull("mod", path=at / "mod").path == at / "mod"
        with pytest.raises(PathExistsError):
            api.pull("svc:v1", path=at / "svc")
    assert contents(at / "svc") == contents(bento)
