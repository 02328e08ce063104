"""`async-bento completion`, and the values that the shell completes: tags and contexts."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from async_bento._core.tag import is_path
from async_bento.errors import BentoError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_bento.api.records import Records
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.store import Store

_PROGRAM = "async-bento"
_VARIABLE = "_ASYNC_BENTO_COMPLETE"  # the name that click derives from the program's

# bash splits NAME:VERSION at the colon, so the command gets the line, and completes the text after the last break.
_BASH_WORDS = 'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD'
_BASH_LINE = 'COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS"'

_REMOTE_SECONDS = 3.0
"""Seconds that a completion waits for the registry: a shell that stands still longer looks broken."""

_REMOTE_TAGS = 200
"""Tags of the registry that one completion offers, the newest ones."""

_ZSH_COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }\n"

_FILES = {
    "bash": ("async-bento/completion.bash", ".bashrc"),
    "zsh": ("async-bento/completion.zsh", ".zshrc"),
}
"""The script below `$XDG_DATA_HOME`, and the file below the home directory that loads it."""


class BashCompletion(BashComplete):
    """Completion for bash that completes whole tags, whatever COMP_WORDBREAKS is."""

    source_template = BashComplete.source_template.replace(_BASH_WORDS, _BASH_LINE)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Split the line up to the cursor into the words before the last one, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Leave out what stands before the last break within the word."""
        _, incomplete = self.get_completion_args()
        breaks_at_colons = ":" in os.environ.get("COMP_WORDBREAKS", "")
        kept = incomplete[: incomplete.rfind(":") + 1] if breaks_at_colons else ""
        return f"{item.type},{item.value.removeprefix(kept)}"


def register() -> None:
    """Let click complete for bash with `BashCompletion`."""
    add_completion_class(BashCompletion)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@click.option("--install", is_flag=True, help="Install the script for new shells of this user.")
def completion(shell: str | None, install: bool) -> None:
    """Print or install a shell completion script.

    The script completes commands, options, contexts and tags: for push, verify and store, those of the local store,
    and for the other commands those of the registry. By default, SHELL is the shell in $SHELL.

    \b
    Examples:
      async-bento completion --install
      async-bento completion fish > ~/.config/fish/completions/async-bento.fish
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in {"bash", "zsh", "fish"}:
        raise click.UsageError("cannot detect the shell from $SHELL. Name one: bash, zsh or fish.")
    text = _script(shell)
    if not install:
        click.echo(text)
        return
    try:
        changed = _install(shell, text)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""  # the error of a write names no file
        raise ConfigError(f"cannot install the completion: {where}{error.strerror}.") from error
    click.echo(
        f"Installed the completion for {shell} in {' and '.join(map(str, changed))}. Start a new shell to use it."
    )


def _script(shell: str) -> str:
    register()
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    root = click.get_current_context().find_root().command
    script = completion_class(root, {}, _PROGRAM, _VARIABLE)
    # Not `script.source()`: for bash it starts bash to check the version, although the script may be for another one.
    text = script.source_template % script.source_vars()
    if shell == "zsh":  # after the first line, from which compinit takes the name of the command
        first, _, rest = text.lstrip().partition("\n")
        return f"{first}\n{_ZSH_COMPINIT}{rest}"
    return text


def _install(shell: str, text: str) -> list[Path]:
    """Write the script, and for bash and zsh once the line that loads it; return the files."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return [_write(config / "fish/completions/async-bento.fish", text)]
    script, startup = _FILES[shell]
    path = _write(Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / script, text)
    directory = os.environ.get("ZDOTDIR") if shell == "zsh" else None
    startup_file = Path(directory or home) / startup
    line = os.fsencode(f"[ -r {shlex.quote(str(path))} ] && . {shlex.quote(str(path))}  # async-bento completion\n")
    known = startup_file.read_bytes() if startup_file.exists() else b""
    if line not in known:
        with startup_file.open("ab") as file:
            file.write(line if not known or known.endswith(b"\n") else b"\n" + line)
    return [path, startup_file]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")  # a shell of Windows, too, takes a CR for a character
    return path


def complete_bento_to_push(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a directory, or the tag of a local bento."""
    return _complete_directory(incomplete) or complete_bento(context, parameter, incomplete)


def complete_model_to_push(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a directory, or the tag of a local model."""
    return _complete_directory(incomplete) or complete_model(context, parameter, incomplete)


def complete_remote_bento(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a bento in the registry; of a local one if the registry does not answer."""
    tags = _remote_tags("bento", context, incomplete)
    return complete_bento(context, parameter, incomplete) if tags is None else tags


def complete_remote_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a model in the registry; of a local one if the registry does not answer."""
    tags = _remote_tags("model", context, incomplete)
    return complete_model(context, parameter, incomplete) if tags is None else tags


def complete_bento(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a local bento."""
    from async_bento.store.store import BentoStore

    return _complete_tag(BentoStore, incomplete)


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a local model."""
    from async_bento.store.store import ModelStore

    return _complete_tag(ModelStore, incomplete)


def complete_context(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a context."""
    from async_bento.rest.contexts import contexts_path, read_contexts

    try:
        names = [context.name for context in read_contexts(contexts_path()).contexts]
    except BentoError:  # the command reports a broken file; completion completes nothing
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _complete_tag(make_store: Callable[[], Store[Any]], incomplete: str) -> list[CompletionItem]:
    from async_bento.store.layout import list_tag_parts

    prefix = incomplete.partition(":")[0]
    try:
        store = make_store().path
        names = [name for name in list_tag_parts(store) if name.startswith(prefix)]
        tags = [f"{name}:{version}" for name in names for version in list_tag_parts(store / name)]
    except BentoError:
        return []
    return [CompletionItem(tag) for tag in tags if tag.startswith(incomplete)]


def _complete_directory(incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path; no tag looks like one."""
    return [CompletionItem(incomplete, type="dir")] if is_path(incomplete) or incomplete == "~" else []


def _remote_tags(word: str, context: click.Context, incomplete: str) -> list[CompletionItem] | None:
    """The newest matching tags in the registry; None if it does not answer soon. Prints nothing."""
    import asyncio

    # A warning would be written into the line that the user is typing.
    logging.disable(logging.CRITICAL)
    try:
        tags = asyncio.run(asyncio.wait_for(_list_remote(word, context.params, incomplete), _REMOTE_SECONDS))
    except (BentoError, asyncio.TimeoutError):
        return None
    finally:
        logging.disable(logging.NOTSET)
    return [CompletionItem(tag) for tag in sorted(tags) if tag.startswith(incomplete)]


async def _list_remote(word: str, options: Mapping[str, Any], incomplete: str) -> list[str]:
    from async_bento.config import Config, RetryPolicy
    from async_bento.rest.client import RestApiClient
    from async_bento.rest.schemas import UNFINISHED, record_tag

    config = Config.from_env().model_copy(update={"retry": RetryPolicy(attempts=1)})
    async with RestApiClient(options.get("endpoint"), context=options.get("context"), config=config) as client:
        routes = cast("Records[ItemSchema]", client.models if word == "model" else client.bentos)
        page = await routes.list(count=_REMOTE_TAGS, search=incomplete.partition(":")[0] or None)
    return [record_tag(record) for record in page or [] if record.upload_status not in UNFINISHED]
