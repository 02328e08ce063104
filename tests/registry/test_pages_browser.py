"""The pages in Chromium: by keyboard and on a phone, light and dark, without errors or breaches of their policy."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from anyio.from_thread import start_blocking_portal
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.registry.conftest import BENTOS, MODELS, Caller
from tests.registry.test_pages import tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from async_bento.registry import LocalRegistry

pytestmark = pytest.mark.pages

README = f"# Iris\n\nClassifies irises.\n\n```python\n{'x' * 200}\n```\n\n| a | b |\n|---|---|\n| 1 | {'y' * 200} |\n"
LONG = "a" * 63
TAR = tar_of("src/service.py", f"deep/{LONG}{LONG}/{LONG}.bin")
PATHS = ("/bentos", "/bentos/iris", "/bentos/iris/v1", "/models", f"/models/{LONG}/{LONG}", "/storage", "/none")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def registry(served: LocalRegistry) -> LocalRegistry:
    """A registry with a bento and a model, whose names and texts are long."""

    async def fill() -> None:
        async with aiohttp.ClientSession() as session:
            caller = Caller(served, session, BENTOS)
            await caller.about(MODELS).create(LONG, LONG, labels=[{"key": "k" * 300, "value": "v" * 300}])
            manifest = {"models": [f"{LONG}:{LONG}"], "long": "x" * 300}
            await caller.create(description=README, manifest=manifest, labels=[{"key": "team", "value": "vision"}])
            assert (await caller.upload(TAR)).status == 200
            await caller.create("other", "v1")

    with start_blocking_portal() as portal:  # Playwright runs an event loop in this thread
        portal.call(fill)
    return served


class Watched:
    """A page in a browser, and what its console has reported."""

    def __init__(self, browser: Browser, registry: LocalRegistry, **options: Any) -> None:
        self.context = browser.new_context(base_url=registry.endpoint, **options)
        self.page: Page = self.context.new_page()
        self.messages: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))

    def log_in(self, token: str) -> None:
        self.page.goto("/login")
        self.page.get_by_label("API token").fill(token)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url("**/bentos")

    def close(self) -> None:
        self.context.close()
        unexpected = [text for text in self.messages if "404 (Not Found)" not in text and "403 (Forbidden)" not in text]
        assert unexpected == []


@pytest.fixture
def opened(chromium: Browser, registry: LocalRegistry) -> Iterator[Watched]:
    """The list of bentos, after a login."""
    watched = Watched(chromium, registry)
    watched.log_in(registry.api_token)
    yield watched
    watched.close()


def test_login_search_and_open_item(chromium: Browser, registry: LocalRegistry):
    watched = Watched(chromium, registry)
    page = watched.page
    page.goto("/models?q=none")
    page.get_by_label("API token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("API token").fill(registry.api_token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/models?q=none")
    page.get_by_role("link", name="Bentos", exact=True).click()
    page.get_by_label("Search bentos").fill("label:team=vision")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/bentos?q=*")
    assert page.get_by_role("rowheader").all_inner_texts() == ["iris:v1"]
    page.get_by_role("link", name="v1").click()
    page.get_by_role("heading", name="iris:v1").wait_for()
    assert page.get_by_text("Classifies irises.").is_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto("/bentos")
    assert "/login" in page.url
    watched.close()


def test_keyboard_reaches_everything(chromium: Browser, registry: LocalRegistry):
    watched = Watched(chromium, registry)
    page = watched.page
    page.goto("/")
    page.keyboard.type(registry.api_token)  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_url("**/bentos")
    page.keyboard.press("Tab")
    assert focused(page)["text"] == "Skip to content"
    assert focused(page)["x"] >= 0  # it has become visible
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("iris")
    page.keyboard.press("Enter")
    page.wait_for_url("**/bentos?q=iris")
    seen: list[str] = []
    while "v1" not in seen:
        page.keyboard.press("Tab")
        found = focused(page)
        seen.append(found["text"])
        assert found["outline"] != "none", seen
        assert len(seen) < 30, seen
    page.keyboard.press("Enter")
    page.wait_for_url("**/bentos/iris/v1")
    watched.close()


def focused(page: Page) -> dict[str, Any]:
    script = """() => { const found = document.activeElement; return {
        text: found.textContent.trim(),
        x: found.getBoundingClientRect().x,
        outline: getComputedStyle(found).outlineStyle,
    } }"""
    return dict(page.evaluate(script))


@pytest.mark.parametrize(
    ("width", "scheme"), [(320, "light"), (320, "dark"), (768, "light"), (1280, "light"), (1280, "dark")]
)
def test_page_is_accessible_and_fits(chromium: Browser, registry: LocalRegistry, width: int, scheme: Any):
    watched = Watched(chromium, registry, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = watched.page
    page.goto("/login")
    check(page, width, scheme)
    watched.log_in(registry.api_token)
    for path in PATHS:
        page.goto(path)
        check(page, width, scheme)
    watched.close()


def check(page: Page, width: int, scheme: str) -> None:
    """Check that a page needs no horizontal scrolling, has the colours of the scheme, and breaks no rule of axe."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
    red = int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
    assert (red > 128) == (scheme == "light"), page.url
    found = Axe().run(page).response["violations"]
    assert not found, f"{page.url}: {json.dumps(found, indent=1)}"


def test_command_is_copied(opened: Watched, registry: LocalRegistry):
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=registry.endpoint)
    page = opened.page
    page.goto("/bentos/iris/v1")
    page.get_by_role("button", name="Copy the command of async-bento").click()
    page.get_by_text("Copied to the clipboard.").wait_for(state="attached")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"async-bento pull iris:v1 --endpoint {registry.endpoint}"


def test_copy_without_clipboard_api(opened: Watched):
    page = opened.page
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as on http://host
    page.goto("/bentos/iris/v1")
    page.get_by_role("button", name="Copy the command of bentoml").click()
    page.get_by_text("Copied to the clipboard.").wait_for(state="attached")
    assert page.evaluate("getSelection().toString()") == "bentoml pull iris:v1"


def test_pages_need_no_javascript(chromium: Browser, registry: LocalRegistry):
    watched = Watched(chromium, registry, java_script_enabled=False)
    watched.log_in(registry.api_token)
    page = watched.page
    page.goto("/bentos/iris/v1")
    assert page.get_by_text("bentoml pull iris:v1").is_visible()
    assert not page.get_by_role("button", name="Copy").first.is_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    watched.close()


def test_policy_stops_scripts(opened: Watched):
    page = opened.page
    page.evaluate(
        "() => { const element = document.createElement('script'); element.text = 'window.injected = 1';"
        " document.body.append(element) }"
    )
    assert page.evaluate("window.injected") is None
    assert any("Content Security Policy" in text for text in opened.messages)
    opened.messages.clear()
