"""BentoAPI and ModelAPI: the same calls, blocking."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, AsyncModelAPI, BentoAPI, BentoStore, ModelAPI, ModelStore, NotFoundError
from tests.builders import contents, make_bento, make_model, noise

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, BentoStore | ModelStore]:
    """Stores that are empty."""
    home = tmp_path / "elsewhere"
    return {"bento_store": BentoStore(home / "bentos"), "model_store": ModelStore(home / "models")}


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_is_pushed_is_pulled(served: LocalRegistry, home: Path, elsewhere: dict) -> None:
    bento = make_bento(home, "svc:v1", {"src/big": noise(300_000)}, models=["mod:m1"])
    model = make_model(home, "mod:m1")
    with BentoAPI() as api:
        result = api.push("svc:v1")
    assert (result.skipped, [str(model.tag) for model in result.models]) == (False, ["mod:m1"])
    with BentoAPI(**elsewhere) as api:
        pulled = api.pull("svc", with_models=True)
        assert contents(pulled.path) == contents(bento)
        assert contents(elsewhere["model_store"].get("mod").path) == contents(model)


def test_models_have_the_same_calls(served: LocalRegistry, home: Path, elsewhere: dict) -> None:
    model = make_model(home, "mod:m1")
    with BentoAPI(**elsewhere) as api:
        assert not api.models.push(model).skipped
        assert [item.version for item in api.models.list().items] == ["m1"]
        assert [item.version for item in api.models.iter()] == ["m1"]
        assert api.models.get("mod").upload_status == "success"
        assert contents(api.models.pull("mod").path) == contents(model)


def test_iter_is_a_plain_iterator_that_may_be_left_early(served: LocalRegistry, home: Path) -> None:
    for version in ("v1", "v2", "v3"):
        make_bento(home, f"svc:{version}", built=f"2024-01-0{version[1]} 00:00:00")
    with BentoAPI() as api:
        for version in ("v1", "v2", "v3"):
            api.push(f"svc:{version}")
        records = api.iter()
        assert next(records).version == "v3"
        records.close()
        assert [record.version for record in api.iter()] == ["v3", "v2", "v1"]


def test_errors_arrive_as_they_are(served: LocalRegistry) -> None:
    with BentoAPI() as api, pytest.raises(NotFoundError, match="no bento svc:v1 on the registry"):
        api.get("svc", "v1")


def test_several_threads_share_one_api(served: LocalRegistry, home: Path) -> None:
    versions = [f"v{number}" for number in range(6)]
    for version in versions:
        make_bento(home, f"svc:{version}")
    with BentoAPI() as api:
        threads = [threading.Thread(target=api.push, args=(f"svc:{version}",)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(record.version for record in api.list().items) == versions


def test_a_closed_api_opens_again_when_it_is_used(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    api = BentoAPI()
    api.push("svc:v1")
    api.close()
    api.close()
    assert api.get("svc").version == "v1"
    api.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "async-bento"]


def test_it_works_where_a_loop_is_running(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    script = """
import asyncio, warnings
from async_bento import BentoAPI
warnings.simplefilter("ignore", RuntimeWarning)  # that it blocks the loop
async def cell():
    with BentoAPI() as api:
        api.push("svc:v1")
        print(api.get("svc").version)
asyncio.run(cell())
"""
    assert run_script(script) == "v1\n"


@pytest.mark.parametrize(
    ("call", "warned_at"),
    [
        ("api.get('svc'); api.get('svc')", "script.py:5"),
        ("api.models.list()", "script.py:5"),
        ("[*api.iter()]", "script.py:5"),
    ],
)
def test_on_a_loop_that_runs_it_warns_once_and_names_what_does_not_block_it(
    served: LocalRegistry, home: Path, tmp_path: Path, call: str, warned_at: str
) -> None:
    make_bento(home, "svc:v1")
    script = tmp_path / "script.py"
    script.write_text(f"""
import asyncio
from async_bento import BentoAPI
async def main(api):
    {call}
with BentoAPI() as api:
    api.push("svc:v1")
    asyncio.run(main(api))
""")
    run = subprocess.run([sys.executable, "-W", "always", script], capture_output=True, text=True, check=True)
    assert run.stderr.count("RuntimeWarning") == 1
    assert f"{warned_at}: RuntimeWarning: a call of BentoAPI blocks the event loop" in run.stderr
    assert "`await` the same call of AsyncBentoAPI" in run.stderr


def test_where_no_loop_runs_nothing_is_warned_of(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    with warnings.catch_warnings(), BentoAPI() as api:
        warnings.simplefilter("error", RuntimeWarning)
        api.push("svc:v1")
        assert api.get("svc").version == "v1"


def test_a_script_that_does_not_close_ends_all_the_same(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    script = """
from async_bento import BentoAPI
api = BentoAPI()
print(api.push("svc:v1").skipped)
"""
    assert run_script(script) == "False\n"


@pytest.mark.parametrize(
    "interrupt",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        "signal.pthread_kill(threading.get_ident(), signal.SIGINT)",  # which does not wake the main thread
    ],
)
def test_ctrl_c_cancels_waits_for_the_clean_up_and_leaves_the_api_usable(
    served: LocalRegistry, home: Path, interrupt: str
) -> None:
    make_bento(home, "svc:v1")
    script = """
import asyncio, os, signal, threading
from async_bento import BentoAPI
from async_bento.transfer.http import TarBody

write = TarBody.write_with_length

async def interrupt(self, writer, content_length):
    INTERRUPT
    await asyncio.sleep(60)

with BentoAPI() as api:
    TarBody.write_with_length = interrupt
    try:
        api.push("svc:v1")
    except KeyboardInterrupt:
        record = api.get("svc", "v1")
        print(record.upload_status, record.upload_finished_reason)
    TarBody.write_with_length = write
    print(api.push("svc:v1").skipped, api.get("svc").upload_status)
"""
    assert run_script(script.replace("INTERRUPT", interrupt)) == "failed cancelled\nFalse success\n"


@pytest.mark.parametrize(("blocking", "asynchronous"), [(BentoAPI, AsyncBentoAPI), (ModelAPI, AsyncModelAPI)])
def test_each_public_call_has_its_like(blocking: type, asynchronous: type) -> None:
    def calls(api: type) -> dict[str, tuple[list[inspect.Parameter], str | None]]:
        functions = inspect.getmembers(api, inspect.isfunction)
        return {
            name: (list(inspect.signature(function).parameters.values()), inspect.getdoc(function))
            for name, function in functions
            if not name.startswith("_")
        }

    ours, theirs = calls(blocking), calls(asynchronous)
    assert ours.pop("close", None) is not None or blocking is ModelAPI
    theirs.pop("aclose", None)
    assert set(ours) == set(theirs)
    for name, like in ours.items():
        assert like == theirs[name], name
    if blocking is BentoAPI:
        assert inspect.signature(blocking).parameters == inspect.signature(asynchronous).parameters
