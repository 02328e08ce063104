"""BentoAPI and ModelAPI: the same calls, blocking."""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import (
    AsyncBentoAPI,
    AsyncModelAPI,
    BentoAPI,
    BentoStore,
    ClosedError,
    ModelAPI,
    ModelStore,
    NotFoundError,
    RestApiClient,
)
from async_bento.api.loop_thread import _RunningLoop
from tests.api.blocking_docstrings import BLOCKING_APIS, CLIENT, with_blocking_docstrings
from tests.builders import contents, make_bento, make_model, random_bytes

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, BentoStore | ModelStore]:
    """Empty stores."""
    home = tmp_path / "elsewhere"
    return {"bento_store": BentoStore(home / "bentos"), "model_store": ModelStore(home / "models")}


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_push_and_pull_keep_bytes(served: LocalRegistry, home: Path, elsewhere: dict) -> None:
    bento = make_bento(home, "svc:v1", {"src/big": random_bytes(300_000)}, models=["mod:m1"])
    model = make_model(home, "mod:m1")
    with BentoAPI() as api:
        result = api.push("svc:v1")
    assert (result.skipped, [str(model.tag) for model in result.models]) == (False, ["mod:m1"])
    with BentoAPI(**elsewhere) as api:
        pulled = api.pull("svc", with_models=True)
        assert contents(pulled.path) == contents(bento)
        assert contents(elsewhere["model_store"].get("mod").path) == contents(model)


def test_models_push_list_get_pull(served: LocalRegistry, home: Path, elsewhere: dict) -> None:
    model = make_model(home, "mod:m1")
    with BentoAPI(**elsewhere) as api:
        assert not api.models.push(model).skipped
        assert [item.version for item in api.models.list().items] == ["m1"]
        assert [item.version for item in api.models.iter()] == ["m1"]
        assert api.models.get("mod").upload_status == "success"
        assert (api.models.exists("mod:m1"), api.exists("mod:m1")) == (True, False)
        assert contents(api.models.pull("mod").path) == contents(model)


def test_paging_crosses_threads_by_page(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BentoAPI(progress=False) as api:
        for number in range(5):
            make_bento(home, f"svc:v{number}")
            api.push(f"svc:v{number}", bare=True)
        calls: list[object] = []
        run = api._loop.run
        monkeypatch.setattr(api._loop, "run", lambda *arguments: calls.append(arguments) or run(*arguments))

        assert len([*api.iter()]) == 5

    assert len(calls) <= 3  # the page, the end, the close


def test_iter_can_be_closed_early(served: LocalRegistry, home: Path) -> None:
    for version in ("v1", "v2", "v3"):
        make_bento(home, f"svc:{version}", built=f"2024-01-0{version[1]} 00:00:00")
    with BentoAPI() as api:
        for version in ("v1", "v2", "v3"):
            api.push(f"svc:{version}")
        records = api.iter()
        assert next(records).version == "v3"
        records.close()
        assert [record.version for record in api.iter()] == ["v3", "v2", "v1"]


def test_errors_are_raised_unchanged(served: LocalRegistry) -> None:
    with BentoAPI() as api, pytest.raises(NotFoundError, match="no bento svc:v1 in the registry"):
        api.get("svc", "v1")


def test_api_serves_several_threads(served: LocalRegistry, home: Path) -> None:
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


def test_closed_api_leaves_no_thread(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    api = BentoAPI()
    api.push("svc:v1")
    api.close()
    api.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "async-bento"]


def test_closed_api_closes_its_client(served: LocalRegistry) -> None:
    """The owner of the client has no event loop to close it on."""
    client = RestApiClient()
    with BentoAPI(client) as api:
        api.list()
    with pytest.raises(ClosedError, match="the client was closed"):
        asyncio.run(client.current_user())


def test_call_in_running_loop_works(served: LocalRegistry, home: Path) -> None:
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
def test_call_in_running_loop_warns(
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
    assert f"{warned_at}: RuntimeWarning: BentoAPI blocks the event loop that is running in this thread" in run.stderr
    assert "Await the same method of AsyncBentoAPI instead." in run.stderr


def test_call_without_loop_is_silent(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    with warnings.catch_warnings(), BentoAPI() as api:
        warnings.simplefilter("error", RuntimeWarning)
        api.push("svc:v1")
        assert api.get("svc").version == "v1"


def test_script_without_close_exits(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    script = """
from async_bento import BentoAPI
api = BentoAPI()
print(api.push("svc:v1").skipped)
"""
    assert run_script(script) == "False\n"


@pytest.mark.posix("kill that is not an end")
@pytest.mark.parametrize(
    "interrupt",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        "signal.pthread_kill(threading.get_ident(), signal.SIGINT)",  # which does not wake the main thread
    ],
)
def test_ctrl_c_cancels_and_cleans_up(served: LocalRegistry, home: Path, interrupt: str) -> None:
    make_bento(home, "svc:v1")
    script = """
import asyncio, os, signal, threading
from async_bento import BentoAPI
from async_bento.transfer.body import TarBody

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


def test_early_ctrl_c_is_raised(served: LocalRegistry) -> None:
    with BentoAPI() as api, pytest.MonkeyPatch.context() as patch:

        def interrupted(running: _RunningLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
            patch.undo()  # cancels the call before its start
            coroutine.close()
            raise KeyboardInterrupt

        patch.setattr(_RunningLoop, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.list()
        assert len(api.list()) == 0


BLOCKING_TYPES = {"AsyncBentoAPI": "BentoAPI", "AsyncGenerator": "Iterator", "AsyncRemote": "Remote"}
"""The types that differ between the async and the blocking signatures."""


def public_methods(api: type) -> dict[str, inspect.Signature]:
    functions = inspect.getmembers(api, inspect.isfunction)
    return {name: inspect.signature(function) for name, function in functions if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "asynchronous"), [(BentoAPI, AsyncBentoAPI), (ModelAPI, AsyncModelAPI)])
def test_methods_match_async(blocking: type, asynchronous: type) -> None:
    ours, theirs = public_methods(blocking), public_methods(asynchronous)
    assert (ours.pop("close", None), theirs.pop("aclose", None)).count(None) in {0, 2}
    assert ours.keys() == theirs.keys()
    for name, signature in ours.items():
        original = theirs[name]
        parameters = [each.replace(annotation=blocking_type(each.annotation)) for each in original.parameters.values()]
        returned = blocking_type(original.return_annotation)
        # Parameters compare by name, kind, default and annotation.
        assert signature == original.replace(parameters=parameters, return_annotation=returned), name


def blocking_type(annotation: str) -> str:
    for word, replacement in BLOCKING_TYPES.items():
        annotation = annotation.replace(word, replacement) if isinstance(annotation, str) else annotation
    return annotation


def test_constructor_matches_async() -> None:
    assert inspect.signature(BentoAPI) == inspect.signature(AsyncBentoAPI)


def test_docstrings_match_async() -> None:
    for path in BLOCKING_APIS:
        source = path.read_text(encoding="utf-8")

        assert source == with_blocking_docstrings(source), "run `python -m tests.api.blocking_docstrings`"


def test_docstrings_are_in_source() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in BLOCKING_APIS]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    for api in (BentoAPI, ModelAPI):
        written = {
            node.name: ast.get_docstring(node)
            for node in [*classes[api.__name__].body, *classes["BlockingItemAPI"].body]
            if isinstance(node, ast.FunctionDef) and not node.decorator_list  # the overloads have none
        }
        for name in public_methods(api):
            assert written[name], name
            assert inspect.getdoc(getattr(api, name)) == written[name]


def test_class_documents_arguments() -> None:
    text = inspect.getdoc(BentoAPI) or ""
    for name in inspect.signature(BentoAPI).parameters:
        assert f"\n    {name}: " in text, name
    assert CLIENT.findall(text) != CLIENT.findall(inspect.getdoc(AsyncBentoAPI) or "")
