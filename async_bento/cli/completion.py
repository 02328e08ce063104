"""`async-bento completion`, and what the shell is told when the Tab key is pressed: what lies on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, CompletionItem, get_completion_class

from async_bento.errors import BentoError

if TYPE_CHECKING:
    from async_bento.store.items import Bento, Model
    from async_bento.store.store import Store

PROGRAM = "async-bento"
_VARIABLE = "_ASYNC_BENTO_COMPLETE"  # as click makes it of the program's name

_WHOLE_TAGS = """
# A tag is one word: without this, bash would complete what stands behind its colon by itself.
COMP_WORDBREAKS="${COMP_WORDBREAKS//:/}"
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes the SHELL complete commands, options, contexts and the tags of the local store.

    \b
    Examples:
      async-bento completion bash >> ~/.bashrc
      async-bento completion zsh >> ~/.zshrc
      async-bento completion fish > ~/.config/fish/completions/async-bento.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    # Not BashComplete's own: it would run bash to see whether it is too old, as if this were that shell.
    source = found(root, {}, PROGRAM, _VARIABLE)
    text = source.source_template % source.source_vars()
    click.echo(text + (_WHOLE_TAGS if found is BashComplete else ""))


def complete_context(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a context.

    Args:
        _context: The invocation.
        _parameter: The option.
        incomplete: What has been typed.

    Returns:
        The contexts that begin with it.
    """
    from async_bento.rest.contexts import contexts_path, read_contexts

    try:
        known = read_contexts(contexts_path())
    except BentoError:  # whoever runs the command is told; here is nobody to tell
        return []
    return [CompletionItem(one.name) for one in known.contexts if one.name.startswith(incomplete)]


def complete_bento(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a local bento.

    Args:
        _context: The invocation.
        _parameter: The argument.
        incomplete: What has been typed.

    Returns:
        The tags that begin with it.
    """
    from async_bento.store.store import BentoStore

    return _complete_tag(BentoStore(), incomplete)


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the tag of a local model.

    Args:
        _context: The invocation.
        _parameter: The argument.
        incomplete: What has been typed.

    Returns:
        The tags that begin with it.
    """
    from async_bento.store.store import ModelStore

    return _complete_tag(ModelStore(), incomplete)


def _complete_tag(store: Store[Bento] | Store[Model], incomplete: str) -> list[CompletionItem]:
    from async_bento.store.layout import list_tag_parts

    begun = incomplete.partition(":")[0]
    try:
        tags = [
            f"{name}:{version}"
            for name in list_tag_parts(store.path)
            if name.startswith(begun)
            for version in list_tag_parts(store.path / name)
        ]
    except BentoError:
        return []
    return [CompletionItem(tag) for tag in tags if tag.startswith(incomplete)]
