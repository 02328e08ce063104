"""Run the Python, the commands and the messages of the documentation, and build the site strictly."""

from __future__ import annotations

import ast
import asyncio
import errno
import html
import inspect
import json
import logging
import os
import re
import shlex
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest
from aiohttp import web

import async_bento.errors
import async_bento.registry
from async_bento import (
    AsyncBentoAPI,
    AsyncModelAPI,
    BentoAPI,
    BentoError,
    BentoStore,
    Config,
    ModelAPI,
    RetryPolicy,
    Timeouts,
)
from async_bento.cli import main
from async_bento.errors import StoreError
from async_bento.registry.server import LocalRegistry
from tests.builders import make_bento, make_model
from tests.cli_runner import make_runner
from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TROUBLESHOOTING = ROOT / "docs" / "guides" / "troubleshooting.md"
CERTIFICATE = ROOT / "tests" / "tls" / "certificate.pem"
ENDPOINT = "https://registry.example.com"


class Block(NamedTuple):
    """A fenced block on a page."""

    page: Path
    line: int
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str = "python", pages: list[Path] = PAGES) -> list[Block]:
    fence = re.compile(rf'^```{language}(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[1] or "", found[2])
        for page in pages
        for text in [page.read_text()]
        for found in fence.finditer(text)
    ]


def joined(text: str) -> str:
    """Join the lines that a backslash continues."""
    return re.sub(r"\\\n\s*", "", text)


def commands() -> list[str]:
    """Return every `async-bento` command in a shell block, an indented block, a table or a sentence, each once."""
    found: set[str] = set()
    for page in PAGES:
        text = joined(page.read_text())
        shell = joined("\n".join(block.text for block in blocks("sh", [page])))
        found.update(re.findall(r"^async-bento (.*)$", shell, re.MULTILINE))
        found.update(re.findall(r"^    async-bento (.*)$", text, re.MULTILINE))
        found.update(re.findall(r"`async-bento ((?!\[).*?)`", text))
    return sorted(re.split(r" [<|>#]|, or| ;", line)[0] for line in found)


PYTHON = [block for block in blocks() if not block.title]
TESTS = [block for block in blocks() if block.title.startswith("test_")]


@pytest.fixture
def ready(served: LocalRegistry, home: Path) -> LocalRegistry:
    """Provide a registry and a home with the items of the pages."""
    make_model(home, "iris_weights:w1", labels={"stage": "prod"})
    make_bento(home, "iris_classifier:v1", models=["iris_weights:w1"], labels={"stage": "prod"})
    for name in ("fraud_detector", "greeter"):
        make_bento(home, f"{name}:v1")
    for name, version in (("bentos/iris_classifier", "v1"), ("bentos/greeter", "v1"), ("models/iris_weights", "w1")):
        (home / name / "latest").write_text(version)
    with BentoAPI() as api:
        api.push(["iris_classifier:v1", "fraud_detector:v1", "greeter:v1"])
    return served


@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_python_on_pages_runs(
    block: Block,
    ready: LocalRegistry,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.NOTSET, "async_bento")  # restores the level that a block sets
    text = block.text.replace(ENDPOINT, ready.endpoint)
    code = compile(text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"tmp_path": tmp_path / "page", "token": ready.api_token}

    async with AsyncExitStack() as stack:
        if 'context="production"' in text:
            production = await stack.enter_async_context(LocalRegistry(tmp_path / "production"))
            await asyncio.to_thread(write_contexts, home, staging=ready, production=production)
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)  # type: ignore[misc]
        else:
            await asyncio.to_thread(eval, code, names)


def write_contexts(home: Path, **registries: LocalRegistry) -> None:
    contexts = [
        {"name": name, "endpoint": registry.endpoint, "api_token": registry.api_token}
        for name, registry in registries.items()
    ]
    text = json.dumps({"contexts": contexts, "current_context_name": contexts[0]["name"]})
    (home / ".yatai.yaml").write_text(text)


@pytest.mark.parametrize("owner", [AsyncBentoAPI, BentoAPI, AsyncModelAPI, ModelAPI])
async def test_examples_of_methods_run(owner: type, ready: LocalRegistry) -> None:
    for name in ("push", "pull", "list", "get"):
        await run_example(getattr(owner, name).__doc__)


async def run_example(docstring: str) -> None:
    text = "".join(f"{line}\n" for line in re.findall(r"^ +(?:>>>|\.\.\.) (.*)$", docstring, re.MULTILINE))
    assert "api." in text
    code = compile(text, "the example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    if code.co_flags & inspect.CO_COROUTINE:
        async with AsyncBentoAPI() as api:
            await eval(code, {"api": api})  # type: ignore[misc]
    else:
        with await asyncio.to_thread(BentoAPI) as blocking:
            await asyncio.to_thread(eval, code, {"api": blocking})
            await asyncio.to_thread(blocking.close)


@pytest.mark.parametrize("block", TESTS, ids=str)
def test_tests_on_pages_pass(block: Block, tmp_path: Path) -> None:
    (tmp_path / block.title).write_text(block.text)
    (conftest,) = (other for other in blocks(pages=[block.page]) if other.title == "conftest.py")
    (tmp_path / conftest.title).write_text(conftest.text)
    wanted = block.text.count("def test_")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert f"{wanted} passed" in done.stdout, done.stdout


def test_all_python_is_covered() -> None:
    assert {block.title for block in blocks()} == {
        "",
        "accelerate.py",
        "conftest.py",
        *(block.title for block in TESTS),
    }
    assert len(PYTHON) > 15
    assert sum(page.read_text().count("```python") for page in PAGES) == len(blocks())


def is_run(line: str) -> bool:
    """Whether a command pushes, pulls, lists or gets something."""
    names = ("push", "pull", "list", "get")
    return re.match(r"(models )?(push|pull|list|get)\b(?! \./)", line) is not None and not line.endswith(names)


def test_transfer_commands_run(ready: LocalRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands() if is_run(line)]
    assert len(lines) > 10
    for number, line in enumerate(lines):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        done = make_runner().invoke(main, shlex.split(line))
        assert done.exit_code == 0, f"async-bento {line}\n{done.output}"


@pytest.mark.parametrize("line", [line for line in commands() if not is_run(line)])
def test_other_commands_are_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse(main, shlex.split(line))


def parse(command: click.Command, arguments: list[str]) -> None:
    if not isinstance(command, click.Group):
        command.make_context("async-bento", arguments)
    elif [argument for argument in arguments if argument[0] != "-"]:  # `async-bento models` alone names the whole group
        context = command.make_context("async-bento", arguments)
        _, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert sub is not None
        parse(sub, rest)


def test_reference_has_public_names() -> None:
    documented = set(
        re.findall(r"^::: async_bento\.(\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    )
    errors = {name for name in async_bento.__all__ if name.endswith("Error")}
    registry = {f"registry.{name}" for name in async_bento.registry.__all__}
    modules = {"errors", "integrations.bentoml", "integrations.pytest_plugin"}

    assert documented == {*async_bento.__all__, *registry, *modules} - errors - {"__version__"}
    assert errors == {name for name in vars(async_bento.errors) if name.endswith("Error")}


def test_invalid_commands_raise() -> None:
    for line in ("pul iris_classifier", "pull iris_classifier --with-model", "registry serve --port x"):
        with pytest.raises(Exception, match=r"No such|is not a valid"):
            parse(main, shlex.split(line))


async def serve(handler: Callable[[web.Request], Awaitable[web.Response]]) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def refuse(number: int) -> Callable[..., None]:
    """Return a function of the file system that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/store")

    return fail


async def store_messages(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Pull into stores with refused calls, and return the reported errors."""
    (make_bento(home, "linked:v2") / "link").symlink_to("nowhere")
    messages = []
    async with AsyncBentoAPI() as api:
        await api.push("linked:v2")
        for number, (path, name, error_number) in enumerate(
            [
                ("pathlib.Path.mkdir", "linked:v2", errno.EACCES),
                ("os.symlink", "linked:v2", errno.EPERM),
                ("fcntl.flock", "iris_classifier:v1", errno.ENOLCK),
            ]
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(path, refuse(error_number))
                try:
                    await api.pull(name, bento_store=BentoStore(tmp_path / f"refusing-{number}" / "bentos"))
                except StoreError as error:
                    messages.append(str(error))
        messages += [record.getMessage() for record in caplog.records if "cannot lock files" in record.getMessage()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("async_bento.store.store._NAME_TIMEOUT", 0.0)
            store = BentoStore(tmp_path / "locked" / "bentos")
            lock = await asyncio.to_thread(store._staging.name_lock, "linked")
            await asyncio.to_thread(lock.acquire)
            with pytest.raises(StoreError) as caught:
                await asyncio.to_thread(store.delete, "linked:v2")
            await asyncio.to_thread(lock.release)
        messages.append(str(caught.value))
    return messages


def write_to_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def other_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Meet a certificate that is not trusted, a full disk, a model's name and a port in use."""
    messages = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    async with AsyncBentoAPI(endpoint=f"https://127.0.0.1:{port}", api_token="any") as api:
        with pytest.raises(BentoError) as untrusted:
            await api.list()
    registry = LocalRegistry(tmp_path / "second", port=port)
    with pytest.raises(BentoError) as in_use:
        await registry.start()
    await runner.cleanup()
    async with AsyncBentoAPI() as api:
        monkeypatch.setattr("async_bento.transfer.tar.writer.TreeWriter.write", write_to_full_disk)
        with pytest.raises(BentoError) as full:
            await api.pull("iris_classifier:v1", bento_store=BentoStore(tmp_path / "full" / "bentos"))
    messages += [str(caught.value) for caught in (untrusted, in_use, full)]
    command = [sys.executable, "-m", "async_bento", "pull", "iris_weights"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    return [*messages, done.stderr.strip()]


async def test_troubleshooting_is_current(  # noqa: PLR0915 - one statement per message
    ready: LocalRegistry,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    once = Config(retry=RetryPolicy(attempts=1), timeouts=Timeouts(stall=0.3))
    messages = []

    async def note(act: Callable[[AsyncBentoAPI], object], **arguments: object) -> None:
        with pytest.raises(BentoError) as caught:
            async with AsyncBentoAPI(config=once, **arguments) as api:  # type: ignore[arg-type]
                await act(api)  # type: ignore[misc]
        messages.append(str(caught.value))

    async def closed(api: AsyncBentoAPI) -> None:
        task = asyncio.create_task(api.push("iris_classifier:v1", force=True))
        await asyncio.sleep(0)
        await api.aclose()
        await task

    async def use_after_close(api: AsyncBentoAPI) -> None:
        await api.aclose()
        await api.list()

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        raise NotImplementedError

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome</html>", content_type="text/html")

    def refusing(status: int) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def refuse_request(request: web.Request) -> web.Response:
            return web.Response(text="<html></html>", content_type="text/html", status=status)

        return refuse_request

    async def without_database(request: web.Request) -> web.Response:
        return web.json_response({"message": "get api token: dial tcp: connection refused"}, status=403)

    (page_runner, page_url), (hanging_runner, hanging_url) = await serve(page), await serve(hang)
    troubled_runner, troubled_url = await serve(without_database)

    await note(lambda api: api.list(), api_token="wrong")
    await note(lambda api: api.list(), endpoint="http://127.0.0.1:9", api_token="any")
    await note(lambda api: api.list(), endpoint=page_url, api_token="any")
    await note(lambda api: api.list(), endpoint=troubled_url, api_token="any")
    await note(lambda api: api.list(), endpoint=f"{ready.endpoint}/path", api_token="any")
    await note(lambda api: api.push("nothing:v1"))
    await note(lambda api: api.pull("nothing"))
    await note(lambda api: api.push("no tag"))
    await note(closed)
    await note(use_after_close)
    (make_bento(home, "linked:v1") / "weights").symlink_to("../../../hf/blobs/1")
    await note(lambda api: api.push("linked:v1"))
    make_bento(home, "bare:v1")
    async with AsyncBentoAPI() as api:
        await api.push("bare:v1", bare=True)
    elsewhere = BentoStore(tmp_path / "elsewhere" / "bentos")
    await note(lambda api: api.pull("bare:v1", bento_store=elsewhere))
    await note(lambda api: api.pull("bare:v1", path=home / "models"))
    with monkeypatch.context() as patch:
        full = type("Usage", (), {"free": 10})
        patch.setattr("async_bento.transfer.resumable_extract.shutil.disk_usage", lambda path: full)
        await note(lambda api: api.pull("iris_classifier:v1", bento_store=elsewhere))
    await note(lambda api: api.list(), api_token="two\nlines")
    messages += await store_messages(home, tmp_path, caplog)
    with pytest.MonkeyPatch.context() as patch:
        messages += await other_messages(tmp_path, patch)
    async with LocalRegistry(tmp_path / "hanging", public_url=hanging_url) as other:
        await note(lambda api: api.push("bare:v1"), endpoint=other.endpoint, api_token=other.api_token)
    https_url = page_url.replace("http:", "https:")
    await note(lambda api: api.list(), endpoint=https_url, api_token="any")
    for proxy in ("socks5://127.0.0.1:1080", "http://[::1"):
        with monkeypatch.context() as patch:
            patch.setenv("ALL_PROXY", proxy)
            patch.delenv("NO_PROXY", raising=False)
            await note(lambda api: api.list(), endpoint="http://registry.example", api_token="any")

    async def no_way(request: web.Request) -> web.Response:
        item = {"version": "v1", "upload_status": "success", "presigned_download_url": "http://127.0.0.1:9/key"}
        if request.path.endswith("/download"):
            return web.json_response({"error": "no such way"}, status=405)
        return web.json_response(item)

    async def redirected(request: web.Request) -> web.Response:
        if request.method == "GET" and "/api/" not in request.path:
            return web.Response(status=307, headers={"Location": "ftp://127.0.0.1/key"})
        return web.json_response({"version": "v1", "presigned_download_url": f"http://{request.host}/key"})

    async def damaged(request: web.Request) -> web.Response:
        if "/api/" not in request.path:
            return web.Response(body=bytes(1024))
        url, checksums = f"http://{request.host}/key", {"size": 1024, "etag": "", "parts": [[1024, "0" * 32]]}
        return web.json_response({"version": "v1", "presigned_download_url": url, "checksums": checksums})

    async def full_registry(request: web.Request) -> web.Response:
        return web.json_response({"error": f"the registry's disk is full: {os.strerror(errno.ENOSPC)}"}, status=507)

    for status in (413, 429, 503):
        runner, url = await serve(refusing(status))
        await note(lambda api: api.list(), endpoint=url, api_token="any")
        await close_server(runner)
    for handler in (no_way, redirected, damaged, full_registry):
        runner, url = await serve(handler)
        await note(lambda api: api.pull("other:v1", bento_store=elsewhere), endpoint=url, api_token="any")
        await close_server(runner)
    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    monkeypatch.delenv("BENTO_CLOUD_API_ENDPOINT")
    await note(lambda api: api.list())
    (home / ".yatai.yaml").write_text(
        f"contexts: [{{name: mine, endpoint: '{ready.endpoint}', api_token: secret}}]\ncurrent_context_name: mine\n"
    )
    await note(lambda api: api.list(), context="yours")
    await note(lambda api: api.list(), endpoint=page_url)
    await close_server(page_runner)
    await close_server(hanging_runner)
    await close_server(troubled_runner)

    explained = re.findall(r"^### `(.*)`$", TROUBLESHOOTING.read_text(), re.MULTILINE)
    patterns = [re.compile(".*".join(map(re.escape, text.split("…"))), re.DOTALL) for text in explained]
    unexplained = [message for message in messages if not any(pattern.search(message) for pattern in patterns)]
    unraised = [
        text for text, pattern in zip(explained, patterns, strict=True) if not any(map(pattern.search, messages))
    ]
    assert (unexplained, unraised) == ([], [])
    assert len(explained) == TROUBLESHOOTING.read_text().count("# `")


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("401 unauthorized", "guides/troubleshooting.md"),
        ("403 forbidden", "guides/troubleshooting.md"),
        ("429 too many requests", "guides/troubleshooting.md"),
        ("asyncio.run() running event loop", "guides/troubleshooting.md"),
        ("audit log", "guides/registry.md"),
        ("backup", "guides/registry.md"),
        ("bandwidth", "guides/tuning.md"),
        ("connection refused", "guides/troubleshooting.md"),
        ("cors", "guides/pages.md"),
        ("debug", "guides/troubleshooting.md"),
        ("delete old bentos", "guides/registry.md"),
        ("disk full", "guides/troubleshooting.md"),
        ("docker", "guides/clusters.md"),
        ("dockerfile", "guides/clusters.md"),
        ("exit codes", "guides/ci.md"),
        ("github actions", "guides/ci.md"),
        ("gunicorn", "guides/threads-and-processes.md"),
        ("hangs", "guides/troubleshooting.md"),
        ("interrupt cell", "guides/notebooks.md"),
        ("kubernetes", "guides/clusters.md"),
        ("latest version", "guides/push-and-pull.md"),
        ("migrate sqlite to postgresql", "guides/registry.md"),
        ("minio", "registry-on-s3.md"),
        ("multiple registries", "guides/login.md"),
        ("no space left on device", "guides/troubleshooting.md"),
        ("oom", "guides/tuning.md"),
        ("out of memory", "guides/tuning.md"),
        ("permission denied", "guides/troubleshooting.md"),
        ("powershell", "guides/login.md"),
        ("private models", "guides/models.md"),
        ("progress bars", "guides/notebooks.md"),
        ("proxy", "guides/network.md"),
        ("rate limit", "guides/troubleshooting.md"),
        ("read-only filesystem", "guides/clusters.md"),
        ("resume interrupted push", "guides/push-and-pull.md"),
        ("roll back", "guides/labels.md"),
        ("rollback", "guides/labels.md"),
        ("self-signed certificate", "guides/network.md"),
        ("slow", "guides/troubleshooting.md"),
        ("stuck", "guides/troubleshooting.md"),
        ("timeout", "guides/network.md"),
        ("timeout", "guides/tuning.md"),
        ("token", "guides/login.md"),
        ("trio", "installation.md"),
        ("unclosed client session", "guides/troubleshooting.md"),
        ("windows", "reliability.md"),
    ],
)
def test_search_words_are_prominent(query: str, page: str) -> None:
    lines = (ROOT / "docs" / page).read_text().lower().splitlines()
    first = "\n".join(lines[1:]).strip().partition("\n\n")[0]
    places = [first, *(line for line in lines if line.startswith("#"))]
    assert any(all(word in place for word in query.split()) for place in places)


@pytest.mark.parametrize("block", blocks("mermaid"), ids=str)
def test_diagram_has_no_semicolon(block: Block) -> None:
    """Mermaid ends a statement at a semicolon, and shows the page an error instead of the diagram."""
    assert ";" not in block.text


def test_site_build_has_no_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )

    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / "site").rglob("*.py*")]  # the hooks
    reference, cli, variables, architecture, parity = (
        (tmp_path / "site" / page / "index.html").read_text()
        for page in ("reference", "cli", "environment-variables", "architecture", "parity")
    )
    assert "the most parts in flight at once" in reference.lower()  # from a docstring
    assert 'class="mermaid"' in architecture
    assert "blob/main/tests/api/test_push.py" in parity
    assert "::test" not in parity  # each test is a link
    signatures = [line for line in text_of_code(reference) if line[0] not in "│├└"]  # the tree of the errors is wider
    assert max(map(len, signatures)) <= 100
    for command in ("push", "models pull", "store prune", "registry serve", "registry prune", "completion"):
        assert f'id="async-bento-{command.replace(" ", "-")}"' in cli, command
    assert "async-bento push ./bentos/iris_classifier/v3 --force" in text_of_code(cli)
    assert "<td><code>-t, --threads INTEGER RANGE</code></td>\n<td>Maximum number of parts" in cli
    assert "  --" not in "\n".join(text_of_code(cli))  # the options are in tables
    assert "<code>ASYNC_BENTO_PROGRESS</code>" in variables
    assert "ASYNC_BENTO_TRANSFER_PART_SIZE</code></td>\n<td><code>16777216</code> (16.0 MiB)</td>" in variables


def text_of_code(page: str) -> list[str]:
    """Return the lines of all blocks of code on a page."""
    found = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    text = "\n".join(html.unescape(re.sub(r"<[^>]+>", "", block)) for block in found)
    return [line for line in text.splitlines() if line]
