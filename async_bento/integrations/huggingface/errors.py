"""Translate errors of huggingface_hub and of its HTTP client, and add a remedy."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from async_bento._core.urls import without_queries
from async_bento.errors import BentoError, HubError, NotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.integrations.huggingface.model import HubModel

_USER = re.compile(r"//[^/?#\s]*@")
_TOKEN = re.compile(r"\bhf_\w{8,}")
_UNAUTHORIZED = {401, 403}
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}


def translate_error(model: HubModel, error: Exception) -> BentoError:
    """Translate an exception that huggingface_hub raised for a model."""
    causes = [*_causes(error)]
    # By class first: all but the offline error are HTTP errors, too, and would match the second loop.
    for cause in causes:
        if (translated := _hub_error(model, cause)) is not None:
            return translated
    for cause in causes:
        if (translated := _status_error(model, cause)) is not None:
            return translated
    root = causes[-1]
    if isinstance(root, OSError) and root.errno in _DISK_ERRORS:
        where = f": {root.filename}" if root.filename else ""  # the error of a write names no file
        return StoreError(
            f"cannot write the model {model.model_id} to the Hugging Face cache: {root.strerror}{where}. "
            "Check the disk and its permissions, or set HF_HOME to another directory."
        )
    return HubError(
        f"cannot access the model {model.model_id} on {_redact(model.source)}: "
        f"{type(root).__name__}: {_first_line(root)}. Check the URL and the network.",
        model_id=model.model_id,
    )


def _hub_error(model: HubModel, cause: BaseException) -> BentoError | None:
    """Translate the errors that huggingface_hub has a class for."""
    from huggingface_hub import errors

    hub = _redact(model.source)
    failed = f"cannot access the model {model.model_id} on {hub}"
    # Before RepositoryNotFoundError, of which it is a subclass.
    if isinstance(cause, errors.GatedRepoError):
        return HubError(
            f"{failed}: the model is gated. Request access at {hub}/{model.model_id}, then {_authenticate(model)}.",
            model_id=model.model_id,
            status=cause.response.status_code,
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return NotFoundError(
            f"{failed}: the model has no revision {model.revision}. Rebuild the bento with an existing revision."
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"no model {model.model_id} on {hub}. Check the name; for a private or gated model, {_authenticate(model)}."
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return HubError(
            f"{failed}: the Hugging Face cache lacks some of its files, and HF_HUB_OFFLINE is set. "
            "Unset HF_HUB_OFFLINE, or set HF_HOME or BENTOML_HF_CACHE_DIR to a cache that has the files.",
            model_id=model.model_id,
        )
    return None


def _status_error(model: HubModel, cause: BaseException) -> HubError | None:
    """Translate an HTTP status."""
    from huggingface_hub import errors

    if not isinstance(cause, errors.HfHubHTTPError) or not hasattr(cause.response, "status_code"):
        return None  # before 1.0, a missing file in the cache is such an error without a response
    status = cause.response.status_code
    remedy = _authenticate(model) if status in _UNAUTHORIZED else "try again later"
    return HubError(
        f"cannot access the model {model.model_id} on {_redact(model.source)}: "
        f"status {status}: {_first_line(cause).rstrip('.')}. {remedy[0].upper()}{remedy[1:]}.",
        model_id=model.model_id,
        status=status,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the causes that huggingface_hub set, but not those below its HTTP client."""
    while error is not None:
        yield error
        error = error.__cause__ if type(error).__module__.startswith("huggingface_hub") else None


def _authenticate(model: HubModel) -> str:
    remedy = "set HF_TOKEN to a token with read access, or run `hf auth login`"
    if model.is_trusted:
        return remedy
    return f"{remedy}; to send the token to that host, set HF_ENDPOINT={_redact(model.source)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _redact(lines[0]) if lines else type(error).__name__


def _redact(text: str) -> str:
    """Remove tokens, and the queries and passwords of URLs."""
    for secret in (os.getenv("HF_TOKEN"), os.getenv("HUGGING_FACE_HUB_TOKEN")):
        if secret and secret.strip():
            text = text.replace(secret.strip(), "…")
    return _TOKEN.sub("hf_…", _USER.sub("//", without_queries(text)))
