"""What huggingface_hub, and whatever HTTP client it has these days, may raise → ours, with what would help."""

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


def explained(model: HubModel, error: Exception) -> BentoError:
    """Say what went wrong with a model.

    Args:
        model: The model.
        error: What was raised.

    Returns:
        The error to raise instead.
    """
    from huggingface_hub import errors

    name = f"the model {model.model_id}"
    hub = _shown(model.hub)
    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            return HubError(
                f"{name} on {hub} is gated: ask for access at {hub}/{model.model_id}, then {_authenticate(model)}",
                model_id=model.model_id,
                status=cause.response.status_code,
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return NotFoundError(
                f"{name} on {hub} has no revision {model.revision}; it may have been removed: "
                "build the bento anew with one that is there"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return NotFoundError(
                f"no {name.removeprefix('the ')} on {hub}; if it is private or gated, {_authenticate(model)}"
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(
                f"{name} is not, or not as a whole, in the cache of Hugging Face, and HF_HUB_OFFLINE forbids to ask "
                f"{hub} for it: unset HF_HUB_OFFLINE, or set HF_HOME or BENTOML_HF_CACHE_DIR to where it is",
                model_id=model.model_id,
            )
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            hint = _authenticate(model) if status in _UNAUTHORIZED else "try again later"
            return HubError(
                f"{hub} answered {status} for {name}: {_first_line(cause)}; {hint}",
                model_id=model.model_id,
                status=status,
            )
    root = causes[-1]
    if isinstance(root, OSError) and root.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}:
        return StoreError(f"cannot write {name} into the cache of Hugging Face: {root.strerror}: {root.filename}")
    return HubError(
        f"{name} could not be had from {hub}: {type(root).__name__}: {_first_line(root)}; "
        "is the address right, and the network up?",
        model_id=model.model_id,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what huggingface_hub says it came from; what its HTTP client stands on is of no interest."""
    while error is not None:
        yield error
        error = error.__cause__ if type(error).__module__.startswith("huggingface_hub") else None


def _authenticate(model: HubModel) -> str:
    hint = "set HF_TOKEN to a token that may read it, or run `hf auth login`"
    if model.is_trusted:
        return hint
    return f"{hint}; for the token to be sent there, set HF_ENDPOINT={_shown(model.hub)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _shown(lines[0]) if lines else type(error).__name__


def _shown(text: str) -> str:
    """A text without what nobody else may see: tokens, queries and passwords of URLs."""
    for secret in (os.getenv("HF_TOKEN"), os.getenv("HUGGING_FACE_HUB_TOKEN")):
        if secret and secret.strip():
            text = text.replace(secret.strip(), "…")
    return _TOKEN.sub("hf_…", _USER.sub("//", without_queries(text)))
