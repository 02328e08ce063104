"""`.yatai.yaml`, written as BentoML writes it, so that each reads what the other stored.

Its form is that of `bentoml/_internal/cloud/config.py` of BentoML 1.4.39: YAML in ASCII, keys sorted, every field
present, an unknown address as null. Unlike BentoML's, a write here is seen whole or not at all, and only by the file's
owner: it holds tokens.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import filelock
import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from async_bento._core.files import atomic_write
from async_bento._core.validation import first_error
from async_bento.config import bentoml_home
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


DEFAULT_CONTEXT = "default"
"""The context BentoML 1.4.39 uses when `.yatai.yaml` names no current one."""


class Context(BaseModel):
    """One entry of `.yatai.yaml`.

    Attributes:
        name: The context's name.
        endpoint: The registry's URL.
        api_token: The token for it.
        email: Whose token it is, where BentoML has asked.
    """

    name: str
    endpoint: str
    api_token: SecretStr
    email: str | None = None


class Contexts(BaseModel):
    """`.yatai.yaml`, as `async-bento login` and `bentoml cloud login` write it.

    Attributes:
        contexts: The known registries.
        current_context_name: The one used when none is named.
    """

    contexts: list[Context] = []
    current_context_name: str = DEFAULT_CONTEXT

    def find(self, name: str) -> Context | None:
        """Find a context.

        Args:
            name: Its name.

        Returns:
            The first of this name, as BentoML takes it, or None.
        """
        return next((context for context in self.contexts if context.name == name), None)

    def get(self, name: str, path: Path) -> Context:
        """Get a context that has to be there.

        Args:
            name: Its name.
            path: The file, for the message.

        Returns:
            The context.

        Raises:
            ConfigError: There is none of this name; the message lists those there are.
        """
        if found := self.find(name):
            return found
        names = ", ".join(sorted(entry.name for entry in self.contexts)) or "none"
        raise ConfigError(f"no context {name!r} in {path} (it has: {names})")


def contexts_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of the contexts, which BentoML reads and writes too.

    Args:
        environ: Where to look for `BENTOML_HOME`.

    Returns:
        `$BENTOML_HOME/.yatai.yaml`.
    """
    return bentoml_home(environ) / ".yatai.yaml"


def read_contexts(path: Path) -> Contexts:
    """Read `.yatai.yaml`.

    Args:
        path: The file.

    Returns:
        What it says; no contexts where there is no file or nothing in it.

    Raises:
        ConfigError: The file is unreadable, is not YAML, or lacks a field; the message says which.
    """
    return read_document(path)[0]


def read_document(path: Path) -> tuple[Contexts, dict[str, object]]:
    """Read `.yatai.yaml`, with whatever else others wrote in it.

    Args:
        path: The file.

    Returns:
        What `read_contexts` returns, and the whole document.

    Raises:
        ConfigError: As `read_contexts` does.
    """
    try:
        content: object = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError):  # PyYAML lets through what a bad date or number raises
        # No cause: what YAML says of a file quotes the file, and this one holds tokens.
        raise ConfigError(f"{path} is not valid YAML; mend it, or delete it and log in again") from None
    try:
        contexts = Contexts.model_validate(content or {})
    except ValidationError as error:
        first = first_error(error)
        problem = f"{path}: {first.field}: {first.message}" if first.field else f"{path} holds no contexts"
        raise ConfigError(problem) from None
    return contexts, cast("dict[str, object]", content or {})  # nothing but a mapping passes for Contexts


LOCK_TIMEOUT = 10.0
"""How long to wait for another writer, in seconds. A write takes milliseconds; one that takes this long hangs."""


class _FileLock(Protocol):
    """What is used of filelock's locks; its own types are not complete."""

    def acquire(self, timeout: float) -> object: ...

    def release(self) -> None: ...


def store_context(path: Path, context: Context) -> None:
    """Store a context, in the place of the one of its name, and make it the current one. Blocks.

    Args:
        path: `.yatai.yaml`; it is made, with its directory, where there is none. Where it is a link, the file it leads
            to is written.
        context: The context.

    Raises:
        ConfigError: The file is broken, and left alone; or it cannot be written.
    """
    entry: dict[str, object] = {
        "name": context.name,
        "endpoint": context.endpoint,
        "api_token": context.api_token.get_secret_value(),
        "email": context.email,
    }
    with _writing(path) as target:
        _, document = read_document(target)
        entries = [dict(one) for one in cast("list[dict[str, object]]", document.get("contexts", []))]
        for number, known in enumerate(entries):
            if known["name"] == context.name:
                entries[number] = known | entry
                break
        else:
            entries.append(entry)
        _write(target, document | {"contexts": entries, "current_context_name": context.name})


def use_context(path: Path, name: str) -> Context:
    """Make a context the current one. Blocks.

    Args:
        path: `.yatai.yaml`.
        name: The context's name.

    Returns:
        The context.

    Raises:
        ConfigError: There is no such context; the file is broken, and left alone; or it cannot be written.
    """
    with _writing(path) as target:
        contexts, document = read_document(target)
        found = contexts.get(name, path)
        _write(target, document | {"current_context_name": name})
    return found


@contextmanager
def _writing(path: Path) -> Generator[Path]:
    """Keep other writers of ours away; BentoML asks for no lock.

    Args:
        path: The file.

    Yields:
        The file, or the one it leads to: a rename onto a link would replace the link.

    Raises:
        ConfigError: What the system said, or another writer does not end.
    """
    target = Path(os.path.realpath(path))
    lock = _lock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_TIMEOUT)
    except filelock.Timeout as error:
        raise ConfigError(f"cannot write {path}: another process has been writing it for {LOCK_TIMEOUT:g} s") from error
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, of a filesystem without flock
        raise _cannot_write(path, error) from error
    try:
        yield target
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        lock.release()


def _lock(path: Path) -> _FileLock:
    return filelock.FileLock(path)


def _cannot_write(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def _write(path: Path, document: dict[str, Any]) -> None:
    atomic_write(path, yaml.safe_dump(document), durable=True)
