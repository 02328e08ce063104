"""MkDocs hooks: version, order of search results, environment variables, examples and options of the commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from griffe import Docstring, DocstringSectionKind
from markdown import Extension
from markdown.preprocessors import Preprocessor

from async_bento._core import variables
from async_bento._core.text import human_size
from async_bento._core.version import __version__
from async_bento.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterable

    from markdown import Markdown
    from pydantic import BaseModel

KiB = 1024

SEARCH_BOOSTS = {
    "guides/push-and-pull.md": 2.0,
    "guides/login.md": 2.0,
    "guides/troubleshooting.md": 1.5,
    "acceptance.md": 0.3,
    "benchmarks.md": 0.3,
    "cli.md": 0.5,
    "design/webhooks-and-quotas.md": 0.2,
    "parity.md": 0.3,
    "performance.md": 0.5,
    "reference.md": 0.5,
    "reliability.md": 0.5,
}
"""Factors for the score of a page in the search, so that guides come before pages that list everything."""


def on_config(config: Any) -> None:
    """Set the version in the footer, and register the extension that formats the help of commands."""
    config["copyright"] = f"async-bento {__version__}"
    config["markdown_extensions"].append(CommandHelp())


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Set the search boost of the page, replace each `<!-- variables: NAME -->` by that table, and link the tests."""
    page.meta["search"] = {"boost": SEARCH_BOOSTS.get(page.file.src_uri, 1.0)}
    if page.file.src_uri == "parity.md":
        markdown = link_tests(markdown, config["repo_url"])
    return re.sub(r"^<!-- variables: (\w+) -->$", lambda found: make_table(found[1]), markdown, flags=re.MULTILINE)


def link_tests(markdown: str, repository: str) -> str:
    """Replace each test id by the name of the test, which breaks at underscores and links to the file."""

    def link(found: re.Match[str]) -> str:
        file, name = found.groups()
        return f'<a href="{repository}/blob/main/{file}" title="{file}"><code>{name.replace("_", "_<wbr>")}</code></a>'

    return re.sub(r"`(tests/[\w/]+\.py)::(\w+)`", link, markdown)


def make_table(group: str) -> str:
    """Return the table of a group of settings, or of another group of variables."""
    if group in Config.model_fields:
        rows = describe_settings(group)
        return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])
    rows = (f"| `{name}` | {meaning} |" for name, meaning in getattr(variables, group.upper()).items())
    return "\n".join(["| variable | meaning |", "| --- | --- |", *rows])


def describe_settings(group: str) -> Iterable[str]:
    """Return a row for each setting of a group: the variable, the default, and the first sentence of its docstring."""
    settings: type[BaseModel] = Config.model_fields[group].annotation  # type: ignore[assignment]  # pydantic: type or None
    sections = Docstring(settings.__doc__ or "", parser="google").parse(warnings=False)
    (attributes,) = (section for section in sections if section.kind is DocstringSectionKind.attributes)
    meanings = {attribute.name: " ".join(attribute.description.split()) for attribute in attributes.value}
    for field, info in settings.model_fields.items():
        meaning = re.split(r"(?<=\.) (?=[A-Z0-9`])", meanings[field], maxsplit=1)[0]
        yield f"| `{variables.PREFIX}{group.upper()}_{field.upper()}` | {show_default(info.default)} | {meaning} |"


def show_default(default: object) -> str:
    """Return a default as the variable takes it; sizes also in KiB, MiB or GiB."""
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return f"`{default:d}`"
    if isinstance(default, int) and default >= KiB and default % KiB == 0:
        return f"`{default}` ({human_size(default)})"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


class CommandHelp(Extension):
    """Make a block of code of the examples in the help of a command, and a table of its options.

    mkdocs-click takes the examples for a paragraph, and makes a block of the options, which does not fit a phone.
    """

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        md.preprocessors.register(_CommandHelp(md), "command_help", 140)  # mkdocs-click's has 141


class _CommandHelp(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = "\n".join(lines)
        text = re.sub(r"^Examples:\n((?:  .+\n)+)", _as_code, text, flags=re.MULTILINE)
        options = re.compile(r"(?<=^\*\*Options:\*\*\n\n)```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        return options.sub(_as_table, text).split("\n")


def _as_code(found: re.Match[str]) -> str:
    commands = "".join(f"{line.strip()}\n" for line in found[1].splitlines())
    return f"**Examples:**\n\n```sh\n{commands}```\n"


def _as_table(found: re.Match[str]) -> str:
    rows: list[list[str]] = []
    for line in found[1].splitlines():
        if option := re.match(r"  (-.*?)(?:  +(.*))?$", line):
            rows.append([option[1], option[2] or ""])
        elif line:
            rows[-1][1] += f" {line.strip()}"
    escaped = ((option, re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", meaning.strip())) for option, meaning in rows)
    return "\n".join(["| option | meaning |", "| --- | --- |", *(f"| `{each[0]}` | {each[1]} |" for each in escaped)])
