"""Pulls of a bento with models on the Hub: by the real huggingface_hub, from a small local Hub."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoError, ConfigError, HubError, HuggingFaceModel, NotFoundError, StoreError, Tag
from async_bento.cli import main
from async_bento.cli.dry_run import plan_pull
from async_bento.progress.events import ENDED
from tests.builders import make_bento, random_bytes
from tests.cli_runner import make_runner
from tests.integrations.huggingface.conftest import HAS_BYTE_BARS
from tests.integrations.huggingface.hub import COMMIT, Hub, Repo
from tests.integrations.huggingface.test_push import on_the_hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento import ProgressEvent
    from tests.fault_proxy import FaultProxy
    from tests.fixtures import MakeClient, StartProxy


FILES = {"config.json": b"{}", "weights.bin": random_bytes(300_000, 1), "weights.h5": random_bytes(200_000, 2)}
TOKEN = "hf_thisIsASecretThatNobodySees"


@pytest.fixture
def pull(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> StartProxy:
    """Pull an already pulled bento with its models."""
    proxies: list[FaultProxy] = []

    async def run(*models: dict[str, Any], **options: Any) -> FaultProxy:
        make_bento(home, models=models)
        if not proxies:
            proxies.append(await start_proxy())
        await make_client(proxies[0], **options).pull("svc:v1", with_models=True)
        return proxies[0]

    return run


def snapshot(cache: Path, model_id: str = "org/bert") -> dict[str, bytes]:
    """Return the files of a model in the Hub cache."""
    root = cache / f"models--{model_id.replace('/', '--')}" / "snapshots" / COMMIT
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_progress_ends_for_every_item(hub: Hub, pull: StartProxy) -> None:
    heard: list[ProgressEvent] = []
    hub.repos["org/bert"] = Repo(FILES)

    await pull(on_the_hub(hub.endpoint), progress=heard.append)
    await pull(on_the_hub(hub.endpoint), progress=heard.append)

    ended = [event.id for event in heard if event.phase in ENDED]
    assert sorted(ended) == sorted({event.id for event in heard})
    assert [event.phase for event in heard if event.kind == "model" and event.phase in ENDED] == ["done", "skipped"]


async def test_download_into_hf_cache(hub: Hub, pull: StartProxy, cache: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)

    proxy = await pull(on_the_hub(hub.endpoint))

    assert snapshot(cache) == FILES
    assert not proxy.matching("model")  # the bento has all metadata


async def test_download_into_bentoml_cache_dir(
    hub: Hub, pull: StartProxy, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    monkeypatch.setenv("BENTOML_HF_CACHE_DIR", str(tmp_path / "other"))

    await pull(on_the_hub(hub.endpoint))

    assert snapshot(tmp_path / "other") == FILES
    assert not cache.exists()


async def test_download_only_matching_files(hub: Hub, pull: StartProxy, cache: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)

    await pull(on_the_hub(hub.endpoint, include=["weights*"], exclude=["*.h5"]))

    assert snapshot(cache).keys() == {"weights.bin"}
    assert len(hub.asked("GET /org/bert/resolve")) == 1


async def test_pull_skips_cached_files(hub: Hub, pull: StartProxy, cache: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    await pull(on_the_hub(hub.endpoint))
    hub.seen.clear()
    events: list[ProgressEvent] = []

    await pull(on_the_hub(hub.endpoint), progress=events.append)

    assert not hub.asked("resolve")
    model = [event for event in events if event.kind == "model"][-1]
    assert model.phase == "skipped"
    assert model.message.startswith(f"nothing to download: its files are in {cache}")


async def test_concurrent_model_downloads(hub: Hub, pull: StartProxy, cache: Path) -> None:
    names = ["org/one", "org/two", "org/three"]
    hub.repos.update({name: Repo({"weights": random_bytes(1000, len(name))}) for name in names})
    hub.together = 3

    await pull(*(on_the_hub(hub.endpoint, name) for name in names))

    assert all(snapshot(cache, name) == hub.repos[name].files for name in names)


@pytest.mark.parametrize("refused", ["async-bento-hub", "async-bento-hub-progress"])
async def test_refused_thread_names_limit(
    hub: Hub, pull: StartProxy, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    with pytest.raises(BentoError, match=r"failed: cannot start a thread: too many processes\."):
        await pull(on_the_hub(hub.endpoint))


async def test_progress_on_event_loop(hub: Hub, pull: StartProxy, cache: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    events: list[ProgressEvent] = []
    threads = set()

    def listen(event: ProgressEvent) -> None:
        threads.add(threading.get_ident())
        if event.kind == "model":
            events.append(event)

    await pull(on_the_hub(hub.endpoint), progress=listen)

    total = sum(map(len, FILES.values()))
    moving = [event for event in events if event.phase == "transferring"]
    assert events[0].phase == "planning"
    if HAS_BYTE_BARS:
        assert len({event.bytes_done for event in moving}) > 4
    assert [event.bytes_done for event in moving] == sorted(event.bytes_done for event in moving)
    assert (events[-1].phase, events[-1].bytes_done) == ("done", total)
    assert events[-1].bytes_total == (total if HAS_BYTE_BARS else None)
    assert str(cache) in events[-1].message
    assert threads == {threading.get_ident()}


async def test_pull_draws_no_hub_bars(hub: Hub, pull: StartProxy, capfd: pytest.CaptureFixture[str]) -> None:
    hub.repos["org/bert"] = Repo(FILES)

    await pull(on_the_hub(hub.endpoint))

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("repo", "error", "status", "message"),
    [
        (
            Repo(FILES, gated="all"),
            HubError,
            403,
            "org/bert on .*: the model is gated. Request access at .*/org/bert, then set HF_TOKEN",
        ),
        (
            Repo(FILES, gated="files"),
            HubError,
            403,
            "org/bert on .*: the model is gated. Request access at .*/org/bert, then set HF_TOKEN",
        ),
        (
            None,
            NotFoundError,
            None,
            "no model org/bert on .*Check the name; for a private or gated model, set HF_TOKEN",
        ),
        (
            Repo(FILES, commit="f" * 40),
            NotFoundError,
            None,
            f"model org/bert on .*: the model has no revision {COMMIT}. Rebuild the bento",
        ),
        (
            Repo(FILES, broken=418),
            HubError,
            418,
            "cannot access the model org/bert on .*: status 418: .* Try again later",
        ),
    ],
    ids=["gated", "gated files", "missing", "removed", "broken"],
)
async def test_hub_errors_state_remedy(
    hub: Hub,
    pull: StartProxy,
    monkeypatch: pytest.MonkeyPatch,
    repo: Repo | None,
    error: type[BentoError],
    status: int | None,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if repo:
        hub.repos["org/bert"] = repo

    with pytest.raises(error, match=message) as raised:
        await pull(on_the_hub(hub.endpoint))

    assert getattr(raised.value, "status", None) == status
    assert TOKEN not in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


async def test_unreachable_hub_named_in_error(pull: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's backoff

    with pytest.raises(
        HubError, match=r"cannot access the model org/bert on http://127\.0\.0\.1:9: Connect\w*Error: .* Check the URL"
    ):
        await pull(on_the_hub("http://127.0.0.1:9"))


async def test_offline_mode_uses_cache(
    hub: Hub, pull: StartProxy, cache: Path, set_offline: Callable[[bool], None]
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    set_offline(True)

    with pytest.raises(
        HubError, match=r"org/bert on .*: the Hugging Face cache lacks some of its files, .* Unset HF_HUB_OFFLINE"
    ):
        await pull(on_the_hub(hub.endpoint))
    assert not hub.seen

    set_offline(False)
    await pull(on_the_hub(hub.endpoint))
    hub.seen.clear()
    set_offline(True)
    await pull(on_the_hub(hub.endpoint))
    assert not hub.seen


async def test_hf_endpoint_replaces_default(
    hub: Hub, pull: StartProxy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    await pull(on_the_hub("https://huggingface.co"))

    assert snapshot(cache) == FILES
    assert {seen.token for seen in hub.seen} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(("path", "where"), [("/cache/blobs/x", ": /cache/blobs/x"), (None, "")])
async def test_unwritable_cache_error(
    hub: Hub, pull: StartProxy, monkeypatch: pytest.MonkeyPatch, path: str | None, where: str
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)

    text = rf"to the Hugging Face cache: No space left on device{where}\. Check .*set HF_HOME"
    with pytest.raises(StoreError, match=f"cannot write the model org/bert {text}"):
        await pull(on_the_hub(hub.endpoint))


async def test_hf_token_sent_to_hf_endpoint(hub: Hub, pull: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    await pull(on_the_hub(hub.endpoint + "/"))

    assert {seen.token for seen in hub.seen} == {f"Bearer {TOKEN}"}


async def test_hf_token_not_sent_elsewhere(hub: Hub, pull: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/bert"] = Repo(FILES, gated="files")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_ENDPOINT")

    with pytest.raises(HubError, match=f"to send the token to that host, set HF_ENDPOINT={hub.endpoint}"):
        await pull(on_the_hub(hub.endpoint))

    assert {seen.token for seen in hub.seen} == {None}


async def test_invalid_hf_token_not_shown(hub: Hub, pull: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x01mine")

    with pytest.raises(HubError) as raised:
        await pull(on_the_hub(hub.endpoint))

    assert TOKEN not in str(raised.value)


async def test_cancelled_pull_stops_download(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, cache: Path
) -> None:
    hub.repos["org/bert"] = Repo({f"weights{number}": random_bytes(4_000_000, number) for number in range(12)})
    hub.pause = 0.05
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    events: list[ProgressEvent] = []
    under_way = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        events.append(event)
        if event.bytes_done:
            under_way.set()

    task = asyncio.create_task(make_client(proxy, progress=listen).pull("svc:v1", with_models=True))
    await under_way.wait()
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert events[-1].phase == "interrupted"
    if not HAS_BYTE_BARS:  # its thread cannot be stopped
        return
    assert time.monotonic() - began < 1.9  # its thread has ended
    before = len(events)
    asked = len(hub.seen)
    await asyncio.sleep(0.5)
    assert len(events) == before
    assert len(hub.seen) == asked
    assert len(hub.cut) == len(hub.asked("GET /org/bert/resolve")) < 12


async def test_cancelled_pull_with_stalled_hub(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_bento.integrations.huggingface.client.SECONDS_TO_STOP", 0.2)
    hub.repos["org/bert"] = Repo({"weights": random_bytes(1_000_000)})
    hub.stall_after = 500_000
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    under_way = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.bytes_done:
            under_way.set()

    task = asyncio.create_task(make_client(proxy, progress=listen).pull("svc:v1", with_models=True))
    await under_way.wait()
    await asyncio.sleep(0.1)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert 0.2 <= time.monotonic() - began < 1
    hub.stall_after = None  # the abandoned thread ends with the next chunk
    await asyncio.sleep(0.3)


async def test_cancelled_before_model_start(
    hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    names = [f"org/m{number}" for number in range(6)]  # more than the concurrent downloads
    hub.repos.update({name: Repo({"weights": random_bytes(4_000_000)}) for name in names})
    hub.pause = 0.05
    hub.together = 4
    make_bento(home, models=[on_the_hub(hub.endpoint, name) for name in names])
    proxy = await start_proxy()
    under_way = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.bytes_done:
            under_way.set()

    task = asyncio.create_task(make_client(proxy, progress=listen).pull("svc:v1", with_models=True))
    await under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len({seen.line for seen in hub.asked("GET /org")}) == 4


async def test_failed_model_spares_others(hub: Hub, pull: StartProxy, cache: Path) -> None:
    hub.repos["org/slow"] = Repo({"weights": random_bytes(500_000)})
    hub.pause = 0.05

    with pytest.raises(NotFoundError, match=r"pulled svc:v1, but its model \S*gone\S* failed: .*org/gone"):
        await pull(on_the_hub(hub.endpoint, "org/slow"), on_the_hub(hub.endpoint, "org/gone"))

    assert snapshot(cache, "org/slow") == hub.repos["org/slow"].files


async def test_missing_extra_named_in_error(
    hub: Hub, pull: StartProxy, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "huggingface_hub":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = on_the_hub(hub.endpoint)

    proxy = await pull()  # only bentos with models on the Hub need the package

    with pytest.raises(ConfigError, match=r"model org--bert:.* Run `pip install \"async-bento\[huggingface\]\"`"):
        await pull(model)
    with pytest.raises(ConfigError, match=r"pip install"):
        await make_client(proxy).push("svc:v1")


@pytest.fixture
async def registered(hub: Hub, start_proxy: StartProxy, make_client: MakeClient, home: Path) -> tuple[FaultProxy, str]:
    """A registry with the record of a model on the Hub, and the tag of this model."""
    hub.repos["org/bert"] = Repo(FILES)
    model = on_the_hub(hub.endpoint, include=["weights*"])
    make_bento(home, models=[model])
    proxy = await start_proxy()
    result = await make_client(proxy).push("svc:v1")
    return proxy, str(result.models[0].tag)


async def test_pull_by_tag_returns_files(
    registered: tuple[FaultProxy, str], make_client: MakeClient, home: Path, cache: Path
) -> None:
    proxy, tag = registered
    events: list[ProgressEvent] = []
    api = make_client(proxy, progress=events.append)

    model = await api.models.pull(tag.partition(":")[0])

    path = cache / "models--org--bert" / "snapshots" / COMMIT
    assert model == HuggingFaceModel(Tag.parse(tag), path, "org/bert", COMMIT)
    assert snapshot(cache).keys() == {"weights.bin", "weights.h5"}
    assert (events[-1].phase, events[-1].message) == ("done", f"its files are in {path}")
    assert {event.id for event in events} == {events[0].id}
    assert await api.models.pull(tag) == model
    assert events[-1].phase == "skipped"
    assert not (home / "models").exists()


async def test_pull_hub_model_to_dir_refused(
    registered: tuple[FaultProxy, str], make_client: MakeClient, hub: Hub, tmp_path: Path
) -> None:
    proxy, tag = registered

    with pytest.raises(ConfigError, match=r"its files are on the Hugging Face Hub\. Pull without a directory"):
        await make_client(proxy).models.pull(tag, path=tmp_path / "bert")

    assert not (tmp_path / "bert").exists()
    assert not hub.asked("resolve")


async def test_pull_to_dir_caches_hub_models(
    registered: tuple[FaultProxy, str], make_client: MakeClient, tmp_path: Path, cache: Path
) -> None:
    proxy, _ = registered

    api = make_client(proxy)
    plans = await plan_pull(api, "svc:v1", force=False, with_models=True, output=tmp_path / "svc")
    assert [plan.note.partition(", to ")[2] for plan in plans] == [str(tmp_path / "svc"), "the Hugging Face cache"]
    assert not (tmp_path / "svc").exists()

    bento = await api.pull("svc:v1", path=tmp_path / "svc", with_models=True)

    assert bento.path == tmp_path / "svc"
    assert sorted(entry.name for entry in bento.path.iterdir()) == ["bento.yaml", "src"]
    assert snapshot(cache).keys() == {"weights.bin", "weights.h5"}


async def test_cli_pull_prints_model_path(
    registered: tuple[FaultProxy, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, tag = registered
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", proxy.endpoint)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", proxy.registry.api_token)

    def run(*arguments: str) -> str:
        result = make_runner().invoke(main, ["models", "pull", tag, *arguments])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    planned = await asyncio.to_thread(run, "--dry-run")
    printed = await asyncio.to_thread(run)

    assert planned.endswith(", to the Hugging Face cache.\n")
    assert printed == f"{tag} is in {Path(cache) / 'models--org--bert/snapshots' / COMMIT}\n"


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_import_excludes_huggingface_hub() -> None:
    code = "import async_bento, sys; sys.exit(any('huggingface_hub' in name for name in sys.modules))"

    assert run_python(code).returncode == 0


PULL = """
import sys
from async_bento import BentoAPI
with BentoAPI(endpoint="http://127.0.0.1:9", api_token="x", progress=False) as api:
    api.pull("svc:v1", with_models=True)
"""


def test_pull_obeys_hf_variables(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repos["org/bert"] = Repo(FILES)
    make_bento(home, models=[{"tag": "org--bert:v1", "registry": "huggingface"}])  # HF_ENDPOINT names the Hub
    environment = {"HF_HOME": str(tmp_path / "mine"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}

    offline = run_python(PULL, **environment, HF_HUB_OFFLINE="1")
    assert "HubError" in offline.stderr
    assert not hub.seen
    online = run_python(PULL, **environment)

    assert (online.returncode, online.stdout, online.stderr) == (0, "", "")
    assert snapshot(tmp_path / "mine" / "hub") == FILES
    assert {seen.token for seen in hub.seen} == {f"Bearer {TOKEN}"}


STALLED = """
import asyncio, json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from async_bento.cli import main
from async_bento.cli.dry_run import plan_pull
main(["pull", "svc:v1", "--with-models"])
"""


async def test_ctrl_c_during_hub_stall_exits(hub: Hub, start_proxy: StartProxy, home: Path, tmp_path: Path) -> None:
    hub.repos["org/bert"] = Repo({f"weights{number}": random_bytes(1_000_000, number) for number in range(3)})
    hub.stall_after = 500_000
    make_bento(home, models=[on_the_hub(hub.endpoint)])
    proxy = await start_proxy()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", STALLED),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ
        | {
            "HF_HOME": str(tmp_path / "hf"),
            "BENTO_CLOUD_API_KEY": proxy.registry.api_token,
            "BENTO_CLOUD_API_ENDPOINT": proxy.endpoint,
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[2])]),
        },
    )
    while len([seen for seen in hub.asked("GET") if "resolve" in seen.line]) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()

    assert process.returncode == 130
    assert b"Interrupted. Run the same command again to resume." in err
    assert time.monotonic() - began < 5
