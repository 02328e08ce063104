"""`async-bento verify` and `diff`, and the same for models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import click

from async_bento.cli.completion import (
    complete_bento_to_push,
    complete_model_to_push,
    complete_remote_bento,
    complete_remote_model,
)
from async_bento.cli.logs import is_quiet
from async_bento.cli.options import RegistryOptions, asynchronous, registry_options
from async_bento.cli.output import print_json
from async_bento.cli.selection import is_pattern

if TYPE_CHECKING:
    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.async_models import AsyncModelAPI
    from async_bento.api.verify import DiffResult, VerifyResult

Word = Literal["bento", "model"]

_VERIFY_HELP = """Compare the local copy of a {word} with the registry's.

TAG is a tag, or a directory with the whole {word}. The checksums of the whole {word} are compared, without a download.
If they differ or are unknown, the lists of files decide: names, types, sizes, times, executable bits and targets of
links. A path is added if only the local copy has it.

The exit code is 0 if both are the same, 1 if they differ or the comparison failed, and 3 if one of them is missing.

\b
Examples:
  async-bento {group}verify {tag}
  async-bento {group}verify {tag} --full
"""

_DIFF_HELP = """Compare two {word}s in the registry by their lists of files.

A path is added if only OTHER has it.

The exit code is 0 if both are the same, 1 if they differ or the comparison failed, and 3 if one of them is missing.

\b
Examples:
  async-bento {group}diff {tag} {other}
  async-bento {group}diff {tag} {other} --full
"""

_EXAMPLES = {
    "bento": {"group": "", "tag": "iris_classifier:v1", "other": "iris_classifier:v2"},
    "model": {"group": "models ", "tag": "iris_weights:w1", "other": "iris_weights:w2"},
}

_METHODS = {
    "checksums": "by checksums",
    "index": "by names, sizes, times and modes",
    "content": "by contents",
}

_full_option = click.option(
    "--full", is_flag=True, help="Compare contents instead of times; reads all files from the registry."
)


def _verify_command(word: Word) -> click.Command:
    complete = complete_bento_to_push if word == "bento" else complete_model_to_push

    @click.command("verify", help=_VERIFY_HELP.format(word=word, **_EXAMPLES[word]))
    @click.argument("tag", shell_complete=complete)
    @_full_option
    @registry_options
    @asynchronous
    async def verify(registry: RegistryOptions, tag: str, full: bool) -> None:
        _refuse_patterns(word, tag)
        async with registry.make_transfer_api(resumable=False) as api:
            result = await _items(api, word).verify(tag, full=full)
        _report(result, (str(result.tag), "as in the registry", "the registry's copy"), registry)

    return verify


def _diff_command(word: Word) -> click.Command:
    complete = complete_remote_bento if word == "bento" else complete_remote_model

    @click.command("diff", help=_DIFF_HELP.format(word=word, **_EXAMPLES[word]))
    @click.argument("tag", shell_complete=complete)
    @click.argument("other", shell_complete=complete)
    @_full_option
    @registry_options
    @asynchronous
    async def diff(registry: RegistryOptions, tag: str, other: str, full: bool) -> None:
        _refuse_patterns(word, tag, other)
        async with registry.make_transfer_api(resumable=False) as api:
            result = await _items(api, word).diff(tag, other, full=full)
        _report(result, (str(result.other), f"as {result.tag}", str(result.tag)), registry)

    return diff


def _refuse_patterns(word: Word, *tags: str) -> None:
    for tag in tags:
        if is_pattern(tag):
            raise click.UsageError(f"{tag!r} is a pattern. Name one {word}.")


def _items(api: AsyncBentoAPI, word: Word) -> AsyncBentoAPI | AsyncModelAPI:
    return api if word == "bento" else api.models


def _report(result: VerifyResult | DiffResult, names: tuple[str, str, str], registry: RegistryOptions) -> None:
    """Print a result, and exit with 1 for a difference. `names`: the subject, what it equals, what it differs from."""
    how, (subject, like, other) = _METHODS[result.method], names
    if registry.as_json:
        # `diff` has two tags, `verify` has one.
        tags = {name: str(tag) for name in ("tag", "other") if (tag := getattr(result, name, None))}
        differences = [dataclasses.asdict(difference) for difference in result.differences]
        print_json({**tags, "is_same": result.is_same, "method": result.method, "differences": differences})
    elif result.is_same:
        if not is_quiet():
            click.echo(f"{subject} is the same {like} ({how}).")
    else:
        for difference in result.differences:
            click.echo(f"{difference.kind} {_printable(difference.path)}")
        if not is_quiet():
            click.echo(f"{subject} differs from {other} ({how}).{_hint(result)}", err=True)
    if not result.is_same:
        click.get_current_context().exit(1)


def _hint(result: VerifyResult | DiffResult) -> str:
    if all(difference.changes == ("time",) for difference in result.differences):
        return " Only times differ: --full compares the contents."
    return ""


def _printable(path: str) -> str:
    """A path on one line: a local name may have any character."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in path)


verify_bento = _verify_command("bento")
verify_model = _verify_command("model")
diff_bentos = _diff_command("bento")
diff_models = _diff_command("model")
