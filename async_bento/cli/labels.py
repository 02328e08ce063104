"""`async-bento label`, the same for models, and the options of push and pull for labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from async_bento.cli.completion import complete_remote_bento, complete_remote_model
from async_bento.cli.list_get import explain_other_kind, open_records
from async_bento.cli.logs import is_quiet
from async_bento.cli.options import RegistryOptions, asynchronous, check_searchable_labels, registry_options
from async_bento.cli.output import print_json, terminal_width
from async_bento.cli.selection import is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from async_bento.api.labels import Relabelled
    from async_bento.cli.list_get import Word
    from async_bento.rest.schemas import ItemSchema

T = TypeVar("T")

_COMPLETE = {"bento": complete_remote_bento, "model": complete_remote_model}

_HELP = """Set, remove or print labels of a {word} in the registry.

KEY=VALUE sets a label and replaces its old value. KEY- removes a label. Other labels are kept, and nothing is uploaded.
Without a version, TAG means the newest version. Without CHANGES, the labels are printed.

\b
Examples:
  async-bento {group}label {tag} stage=prod
  async-bento {group}label {tag} stage=prod candidate-
  async-bento {group}label {tag}
"""

_EXAMPLES = {
    "bento": {"group": "", "tag": "iris_classifier:v1"},
    "model": {"group": "models ", "tag": "iris_weights:w1"},
}


def _label_command(word: Word) -> click.Command:
    @click.command("label", help=_HELP.format(word=word, **_EXAMPLES[word]))
    @click.argument("tag", shell_complete=_COMPLETE[word])
    @click.argument("changes", nargs=-1)
    @registry_options
    @asynchronous
    async def label(registry: RegistryOptions, tag: str, changes: tuple[str, ...]) -> None:
        from async_bento._core.tag import Tag
        from async_bento.api.labels import change_labels, check_changes

        wanted, parsed = Tag.parse(tag), check_changes(_parse_changes(changes))
        async with open_records(registry, word) as routes, explain_other_kind(routes, wanted, "label"):
            changed = await change_labels(routes, wanted, parsed)
        exact = f"{wanted.name}:{changed.record.version}"
        if registry.as_json:
            print_json({"tag": exact, "labels": changed.after})
        elif not parsed:
            _print_labels(word, exact, changed.after)
        elif not is_quiet():
            click.echo(_describe(word, exact, changed))

    return label


def _parse_changes(arguments: Sequence[str]) -> dict[str, str | None]:
    """Parse `key=value` and `key-`, as kubectl has them."""
    changes: dict[str, str | None] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and not key.endswith("-"):
            raise click.UsageError(f"{key!r} is no change. Write {key}=VALUE to set the label, or {key}- to remove it.")
        key = key if equals else key[:-1]
        if not key:
            raise click.UsageError(f"{argument!r} has no key. Write KEY=VALUE to set a label, or KEY- to remove one.")
        if key in changes:
            raise click.UsageError(f"The label {key!r} is given twice. Name each key once.")
        changes[key] = value if equals else None
    return changes


def _print_labels(word: Word, tag: str, labels: Mapping[str, str]) -> None:
    """Print one label per line; a terminal gets a heading."""
    if not labels:
        click.echo(f"{word.capitalize()} {tag} has no labels.", err=True)
        return
    if terminal_width() is not None:
        click.echo(f"Labels of {word} {tag}:")
    for key in sorted(labels):
        click.echo(f"{key}={labels[key]}")


def _describe(word: Word, tag: str, changed: Relabelled[ItemSchema]) -> str:
    """Describe what has changed."""
    before, after = changed.before, changed.after
    parts = [f"{key}={value}" for key, value in after.items() if before.get(key) != value]
    parts += [f"{key} removed" for key in before if key not in after]
    return f"Labelled {word} {tag}: {', '.join(parts)}." if parts else f"The labels of {word} {tag} are unchanged."


def push_label_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add --label and --keep-labels."""
    command = click.option(
        "--keep-labels", is_flag=True, help="With --force, keep labels in the registry that the local copy lacks."
    )(command)
    return click.option(
        "--label",
        "-l",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_parse_labels,
        help="Set this label in the registry, also if it has this version; repeatable.",
    )(command)


def _parse_labels(_context: click.Context, _parameter: click.Parameter, labels: tuple[str, ...]) -> dict[str, str]:
    for label in labels:
        if not label.partition("=")[0] or "=" not in label:
            raise click.BadParameter(f"{label!r} does not have the form KEY=VALUE.")
    parsed = {label.partition("=")[0]: label.partition("=")[2] for label in labels}
    if len(parsed) < len(labels):
        raise click.BadParameter("a key is given twice. Name each key once.")
    return parsed


def pull_label_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add --label."""
    return click.option(
        "--label",
        "-l",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        callback=check_searchable_labels,
        help="Pull the newest version with this label; repeat to require several.",
    )(command)


def parse_selection(labels: Sequence[str], arguments: Sequence[str], *, select_all: bool) -> dict[str, str]:
    """Parse the labels that select versions; raise UsageError if the arguments name versions."""
    if not labels:
        return {}
    for argument in ["--all"] if select_all else arguments:
        if argument == "--all" or is_pattern(argument) or argument.partition(":")[2] not in {"", "latest"}:
            raise click.UsageError(
                f"--label selects the version, and {argument} does too. Name what to pull without a version."
            )
    return {label.partition("=")[0]: label.partition("=")[2] for label in labels}


async def find_labelled(registry: RegistryOptions, word: Word, tag: str, labels: Mapping[str, str]) -> str:
    """The tag of the newest version with the labels; without labels, the tag itself."""
    if not labels:
        return tag
    from async_bento._core.tag import Tag
    from async_bento.api.labels import select_version
    from async_bento.api.records import find_version

    wanted = Tag.parse(tag)
    async with open_records(registry, word) as routes:
        version = await find_version(routes, wanted, select_version(wanted, labels))
    return f"{wanted.name}:{version}"


label_bento = _label_command("bento")
label_model = _label_command("model")
