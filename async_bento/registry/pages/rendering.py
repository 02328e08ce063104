"""Render templates with sizes, times, READMEs and manifests. The import reads and compiles all files."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from async_bento._core.text import human_size
from async_bento.config import KiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token
    from markdown_it.utils import EnvType, OptionsDict

    from async_bento.rest.schemas import LabelItemSchema

MAX_README = 32 * KiB
"""Characters that are rendered as Markdown; a longer README is shown as text."""

_MAX_BRACKETS = 500
"""In such a README: the time of the renderer grows with their square, to half a minute without this limit."""

_CACHED_READMES = 16

MAX_MANIFEST = 200 * KiB
"""Characters of a manifest on a page."""

_HEADINGS_ABOVE = 2
"""Levels of headings on the page above those of a README."""

_LINKED = ("https://", "http://", "mailto:")


class StaticFile(NamedTuple):
    """A file that every browser may have, and its content type."""

    body: bytes
    content_type: str
    version: str


def _static_files() -> Mapping[str, StaticFile]:
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    found: dict[str, StaticFile] = {}
    for file in files("async_bento.registry.pages").joinpath("static").iterdir():
        body = file.read_bytes()
        found[file.name] = StaticFile(body, types[file.name.rpartition(".")[2]], hashlib.sha256(body).hexdigest()[:12])
    return found


def _render_html_block(
    _renderer: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    text = Markup(tokens[index].content).striptags()  # noqa: S704 - the text is escaped below
    return str(Markup("<p>{}</p>").format(text)) if text else ""


def _render_html_inline(
    _renderer: RendererHTML, _tokens: Sequence[Token], _index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return ""


def _render_image(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """Render the description of an image: the browser must not load anything from another host."""
    return str(escape(renderer.renderInlineAsText(tokens[index].children or [], options, env)))


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("js-default", {"html": True})  # HTML is parsed to be removed
    parser.add_render_rule("html_block", _render_html_block)
    parser.add_render_rule("html_inline", _render_html_inline)
    parser.add_render_rule("image", _render_image)
    return parser


_MARKDOWN = _markdown()


@lru_cache(_CACHED_READMES)
def render_readme(text: str) -> Markup:
    """Render Markdown without HTML and images, with links to other sites only, and headings below those of the page."""
    if len(text) > MAX_README or text.count("[") > _MAX_BRACKETS:
        return Markup("<pre>{}</pre>").format(text)
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + _HEADINGS_ABOVE, 6)}"
        _limit_links(token.children or ())
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))  # noqa: S704 - the renderer escapes text


def _limit_links(inline: Iterable[Token]) -> None:
    """Turn links within the repository of a README into text; links to other sites get no information about this."""
    is_linked = True
    for token in inline:
        if token.type == "link_open":
            is_linked = str(token.attrGet("href")).lower().startswith(_LINKED)
            if is_linked:
                token.attrSet("rel", "noopener noreferrer nofollow")
        if token.type in ("link_open", "link_close") and not is_linked:
            token.type, token.content = "text", ""


def format_manifest(manifest: str) -> str:
    """Indent the JSON of a manifest, or cut it if it is too long for a page."""
    if len(manifest) > MAX_MANIFEST:
        return manifest[:MAX_MANIFEST]
    return json.dumps(json.loads(manifest), indent=2, ensure_ascii=False)


def render_time(time: datetime | None) -> Markup:
    """Render a time in UTC, to the minute; a dash for none."""
    if time is None:
        return Markup("&ndash;")
    shown = time.strftime("%Y-%m-%d %H:%M")
    return Markup('<time datetime="{}">{}</time>').format(time.strftime("%Y-%m-%dT%H:%M:%SZ"), shown)


def render_path(path: str) -> Markup:
    """Render a long name, which may break after its punctuation."""
    broken = escape(path)
    for mark in ":-_./":
        broken = broken.replace(mark, Markup("{}<wbr>").format(mark))
    return broken


def label_query(label: LabelItemSchema) -> str | None:
    """Return the search for a label; None if the syntax of searches cannot express it."""
    text = f"{label.key}={label.value}"
    can_be_found = "," not in text and "=" not in label.key and len(text.split()) == 1 and label.key.strip()
    return f"label:{text}" if can_be_found else None


def url(base: str, *segments: str, **query: str | int) -> str:
    """Build the URL of a page below the path at which the browser reaches the registry."""
    path = "/".join(quote(segment, safe="") for segment in segments)
    given = {name: value for name, value in query.items() if value not in ("", 0)}
    return f"{base}/{path}" + (f"?{urlencode(given)}" if given else "")


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        auto_reload=False,
        cache_size=-1,
        loader=PackageLoader("async_bento.registry.pages"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    filters: dict[str, Any] = {
        "breakable": render_path,
        "count": "{:,}".format,
        "label_query": label_query,
        "manifest": format_manifest,
        "readme": render_readme,
        "size": human_size,
        "time": render_time,
    }
    environment.filters.update(filters)
    return environment


STATIC = _static_files()
_ENVIRONMENT = _environment()
_TEMPLATES = {name: _ENVIRONMENT.get_template(name) for name in _ENVIRONMENT.list_templates()}


def render(template: str, **context: object) -> str:
    """Render a template."""
    return _TEMPLATES[template].render(context, MAX_MANIFEST=MAX_MANIFEST, static=STATIC)
