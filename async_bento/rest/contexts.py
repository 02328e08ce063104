"""Read and write `.yatai.yaml`, the file of contexts that async-bento shares with BentoML.

The format is that of `bentoml/_internal/cloud/config.py` of BentoML 1.4.39: ASCII, sorted keys, every field present,
null for an unknown email. Unlike BentoML, async-bento replaces the file atomically and with mode 600: it holds tokens.
"""

from __future__ import annotations

import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, SecretStr, ValidationError

from async_bento._core.files import REFUSED, atomic_write, open_regular
from async_bento._core.validation import first_error
from async_bento.config import bentoml_home
from async_bento.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


DEFAULT_CONTEXT = "default"
"""The current context of BentoML 1.4.39 if `.yatai.yaml` names none."""


class Context(BaseModel):
    """One entry of `.yatai.yaml`: a registry and the token for it."""

    name: str
    endpoint: str
    api_token: SecretStr
    email: str | None = None  # of the token's user; None if BentoML has not asked for it


class Contexts(BaseModel):
    """The content of `.yatai.yaml`."""

    contexts: list[Context] = []
    current_context_name: str = DEFAULT_CONTEXT

    def find(self, name: str) -> Context | None:
        """The first context of a name, as in BentoML, or None."""
        return next((context for context in self.contexts if context.name == name), None)

    def get(self, name: str, path: Path) -> Context:
        """The first context of a name; if there is none, ConfigError lists the names in the file."""
        if found := self.find(name):
            return found
        login = f"`async-bento login --name {shlex.quote(name)}`"
        if names := sorted(context.name for context in self.contexts):
            raise ConfigError(
                f"no context {name!r} in {path}: the file has only {', '.join(names)}. "
                f"Use one of these, or run {login}."
            )
        raise ConfigError(f"no context {name!r} in {path}: the file has no contexts. Run {login}.")


def contexts_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of contexts, `$BENTOML_HOME/.yatai.yaml`."""
    return bentoml_home(environ) / ".yatai.yaml"


def read_contexts(path: Path) -> Contexts:
    """Read `.yatai.yaml`; a missing or empty file has no contexts. Blocks; raises ConfigError."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Contexts, dict[str, object]]:
    """Read `.yatai.yaml` as contexts, and as the document with the fields that other programs keep in it."""
    import yaml  # only here, as filelock: a token of a variable needs no file

    try:
        with open_regular(path) as file:
            content: object = yaml.safe_load(file.read())
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ):  # the last two for bad dates, numbers and nesting
        # No cause: PyYAML's text quotes the file, which holds tokens.
        raise _invalid(path, "the file is not valid YAML") from None
    try:
        contexts = Contexts.model_validate(content or {})
    except ValidationError as error:
        first = first_error(error)
        raise _invalid(path, f"{first.field}: {first.message}" if first.field else "the file has no contexts") from None
    return contexts, cast("dict[str, object]", content or {})  # Contexts accepts nothing but a mapping


def _invalid(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"cannot read {path}: {reason}. Repair the file, or delete it and log in again.")


LOCK_TIMEOUT = 10.0
"""Seconds to wait for another writer; a write takes milliseconds."""


def store_context(path: Path, context: Context) -> None:
    """Add or replace a context and make it the current one. Blocks; raises ConfigError; keeps an invalid file."""
    entry: dict[str, object] = {
        "name": context.name,
        "endpoint": context.endpoint,
        "api_token": context.api_token.get_secret_value(),
        "email": context.email,
    }
    with _locked(path) as target:
        _, document = _read(target)
        entries = [dict(known) for known in cast("list[dict[str, object]]", document.get("contexts", []))]
        for number, known in enumerate(entries):
            if known["name"] == context.name:
                entries[number] = known | entry
                break
        else:
            entries.append(entry)
        _write(target, document | {"contexts": entries, "current_context_name": context.name})


def use_context(path: Path, name: str) -> Context:
    """Make a context the current one. Blocks; raises ConfigError; keeps an invalid file."""
    with _locked(path) as target:
        contexts, document = _read(target)
        found = contexts.get(name, path)
        _write(target, document | {"current_context_name": name})
    return found


def remove_context(path: Path, name: str) -> Context:
    """Remove a context; if it was the current one, none is. Blocks; raises ConfigError; keeps an invalid file."""
    with _locked(path) as target:
        contexts, document = _read(target)
        found = contexts.get(name, path)
        entries = cast("list[dict[str, object]]", document["contexts"])
        # The name of the current context stays: a name that no context has means that none is current.
        _write(target, document | {"contexts": [entry for entry in entries if entry["name"] != name]})
    return found


def rename_context(path: Path, old: str, new: str) -> None:
    """Rename a context, which stays the current one if it was. Blocks; raises ConfigError; keeps an invalid file."""
    if not new.strip():
        raise ConfigError(f"cannot rename the context {old!r}: the new name is empty.")
    with _locked(path) as target:
        contexts, document = _read(target)
        contexts.get(old, path)
        if contexts.find(new):
            raise ConfigError(f"cannot rename the context {old!r}: {path} has a context {new!r}. Use another name.")
        entries = cast("list[dict[str, object]]", document["contexts"])
        renamed = [entry | {"name": new} if entry["name"] == old else entry for entry in entries]
        current = new if contexts.current_context_name == old else contexts.current_context_name
        _write(target, document | {"contexts": renamed, "current_context_name": current})


@contextmanager
def _locked(path: Path) -> Generator[Path]:
    """Lock the file against other writers of async-bento (BentoML takes no lock), and raise OSError as ConfigError."""
    import filelock  # takes a tenth of the start of a command, and most commands only read

    target = Path(os.path.realpath(path))  # renaming onto a symlink would replace the link
    try:
        with filelock.FileLock(target.with_name(f"{target.name}.lock"), timeout=LOCK_TIMEOUT):
            yield target
    except filelock.Timeout as error:
        raise ConfigError(
            f"cannot write {path}: another process has held its lock for {LOCK_TIMEOUT:g} s. "
            "End that process, or try again."
        ) from error
    except (OSError, NotImplementedError) as error:  # filelock raises the latter on filesystems without flock
        is_refused = getattr(error, "errno", None) in REFUSED
        remedy = ". Set BENTOML_HOME to a directory that this user can write." if is_refused else ""
        raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}{remedy}") from error


def _write(path: Path, document: dict[str, Any]) -> None:
    import yaml

    text: str = cast("Any", yaml).safe_dump(document)  # of a type that its stubs do not state in full
    atomic_write(path, text, durable=True)
