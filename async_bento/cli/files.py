"""`async-bento ls` and `cat`, the same for models, and the pull of some files."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from async_bento._core.text import human_size
from async_bento.cli.completion import complete_remote_bento, complete_remote_model
from async_bento.cli.logs import is_quiet
from async_bento.cli.options import RegistryOptions, asynchronous, registry_options
from async_bento.cli.output import print_bytes, print_json, terminal_width
from async_bento.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.files import AsyncRemoteFiles, RemoteEntry

T = TypeVar("T")
Word = Literal["bento", "model"]

_COMPLETE = {"bento": complete_remote_bento, "model": complete_remote_model}

_LS_HELP = """List the files of a {word} in the registry, without a pull.

PATH is a directory or a file in the {word}; by default, all files are listed. A pipe gets sizes in bytes.

\b
Examples:
  async-bento {group}ls {tag}
  async-bento {group}ls {tag} {directory}
"""

_CAT_HELP = """Print a file of a {word} in the registry, without a pull.

\b
Examples:
  async-bento {group}cat {tag} {file}
"""

_EXAMPLES = {
    "bento": {"group": "", "tag": "iris_classifier:v1", "directory": "src", "file": "bento.yaml"},
    "model": {"group": "models ", "tag": "iris_weights:w1", "directory": "tokenizer", "file": "model.yaml"},
}


def _ls_command(word: Word) -> click.Command:
    @click.command("ls", help=_LS_HELP.format(word=word, **_EXAMPLES[word]))
    @click.argument("tag", required=False, shell_complete=_COMPLETE[word])
    @click.argument("path", default="")
    @registry_options
    @asynchronous
    async def ls(registry: RegistryOptions, tag: str | None, path: str) -> None:
        if tag is None:
            group = _EXAMPLES[word]["group"]
            raise click.UsageError(f"Name the {word} whose files to list. `async-bento {group}list` lists the {word}s.")
        async with registry.make_transfer_api(resumable=False) as api:
            files = _files(api, word, tag)
            entries = [entry for entry in await files.list() if _is_below(entry.path, path)]
        if not entries:
            raise NotFoundError(f"no {path.strip('/')} in {files.tag}. `{_ls(word, tag)}` shows all files.")
        if registry.as_json:
            print_json([dataclasses.asdict(entry) for entry in entries])
        else:
            _print_entries([entry for entry in entries if entry.type != "directory"])

    return ls


def _cat_command(word: Word) -> click.Command:
    @click.command("cat", help=_CAT_HELP.format(word=word, **_EXAMPLES[word]))
    @click.argument("tag", shell_complete=_COMPLETE[word])
    @click.argument("path")
    @registry_options
    @asynchronous
    async def cat(registry: RegistryOptions, tag: str, path: str) -> None:
        from contextlib import aclosing

        from async_bento._core.concurrency import run_abandonable, run_in_new_thread

        async with (
            registry.make_transfer_api(resumable=False) as api,
            _files(api, word, tag).open(path) as file,
            aclosing(file.iter_chunks()) as chunks,
        ):
            async for chunk in chunks:
                # Ctrl-C does not wait for the program that reads the output.
                await run_in_new_thread(run_abandonable, partial(print_bytes, chunk))

    return cat


def selection_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add --include and --exclude."""
    command = click.option(
        "--exclude", metavar="PATTERN", multiple=True, help="Leave out files whose path matches; repeatable."
    )(command)
    return click.option(
        "--include",
        metavar="PATTERN",
        multiple=True,
        help="With --output, only files whose whole path matches, such as 'src/*.py'; repeatable.",
    )(command)


def check_selection(output: Path | None, others: dict[str, object]) -> None:
    """Raise UsageError if --include or --exclude has no directory, or another option that it does not support."""
    if output is None:
        raise click.UsageError("--include and --exclude need --output: the local store has whole items only.")
    for option, value in others.items():
        if value:
            raise click.UsageError(f"--include and --exclude do not support {option}.")


async def pull_files(
    registry: RegistryOptions,
    files: AsyncRemoteFiles,
    output: Path,
    patterns: tuple[Sequence[str], Sequence[str]],
    *,
    force: bool,
) -> None:
    """Pull the files that match the first patterns and none of the second, and print where they are."""
    import anyio.to_thread

    include, exclude = patterns
    place = await anyio.to_thread.run_sync(output.absolute)
    entries = await files.extract(include or ["*"], output, exclude=exclude, force=force)
    paths = [entry.path for entry in entries if entry.type != "directory"]
    if registry.as_json:
        print_json({"tag": str(files.tag), "path": str(place), "files": paths})
    elif not is_quiet():
        count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
        click.echo(f"{count} of {files.tag} in {place}")


def _files(api: AsyncBentoAPI, word: Word, tag: str) -> AsyncRemoteFiles:
    return api.models.files(tag) if word == "model" else api.files(tag)


def _ls(word: Word, tag: str) -> str:
    return f"async-bento {_EXAMPLES[word]['group']}ls {tag}"


def _is_below(path: str, wanted: str) -> bool:
    wanted = "/".join(part for part in wanted.split("/") if part not in {"", "."})
    return not wanted or path == wanted or path.startswith(f"{wanted}/")


def _print_entries(entries: Sequence[RemoteEntry]) -> None:
    """Print sizes, times and paths; a terminal gets sizes for people."""
    is_terminal = terminal_width() is not None
    sizes = [human_size(entry.size) if is_terminal else str(entry.size) for entry in entries]
    width = max(map(len, sizes), default=0)
    for entry, size in zip(entries, sizes, strict=True):
        target = f" -> {entry.target}" if entry.target else ""
        click.echo(f"{size:>{width}}  {entry.modified:%Y-%m-%d %H:%M:%S}  {entry.path}{target}")


ls_bento = _ls_command("bento")
ls_model = _ls_command("model")
cat_bento = _cat_command("bento")
cat_model = _cat_command("model")
