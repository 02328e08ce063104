"""`async-bento completion`, and the values that the shell completes: local tags and contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, get_completion_class

from async_bento.errors import BentoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento.store.store import Store

_PROGRAM = "async-bento"
_VARIABLE = "_ASYNC_BENTO_COMPLETE"  # the name that click derives from the program's

_BASH_WHOLE_TAGS = """
# Complete NAME:VERSION as one word; by default, bash splits words at colons.
COMP_WORDBREAKS="${COMP_WORDBREAKS//:/}"
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell completion script.

    The script completes commands, options, contexts and the tags of the local store.

    \b
    Examples:
      async-bento completion bash >> ~/.bashrc
      async-bento completion zsh >> ~/.zshrc
      async-bento completion fish > ~/.config/fish/completions/async-bento.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    root = click.get_current_context().find_root().command
    script = completion_class(root, {}, _PROGRAM, _VARIABLE)
    # Not `script.source()`: for bash it starts bash to check the version, although the script may be for another one.
    text = script.source_template % script.source_vars()
    click.echo(text + (_BASH_WHOLE_TAGS if completion_class is BashComplete else ""))


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
