"""The asyncio-native client for BentoCloud and Yatai registries.

Each name is imported at its first use, so that `import async_bento` takes next to no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from async_bento._core.version import __version__

if TYPE_CHECKING:
    from async_bento._core.tag import Tag
    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.async_models import AsyncModelAPI
    from async_bento.api.compare import Difference
    from async_bento.api.files import AsyncRemoteFile, AsyncRemoteFiles, RemoteEntry
    from async_bento.api.push import PushResult
    from async_bento.api.sync_api import BentoAPI
    from async_bento.api.sync_files import RemoteFiles
    from async_bento.api.sync_models import ModelAPI
    from async_bento.api.verify import DiffResult, VerifyResult
    from async_bento.config import Config, Limits, RetryPolicy, Timeouts, Transfer
    from async_bento.errors import (
        APIConnectionError,
        APIError,
        APIResponseError,
        APIStatusError,
        APITimeoutError,
        ArchiveError,
        AuthenticationError,
        BentoError,
        ClosedError,
        ConfigError,
        HubError,
        IntegrityError,
        InvalidTagError,
        ModelsError,
        NotFoundError,
        NotSupportedError,
        PartError,
        PathExistsError,
        PushesError,
        RateLimitError,
        ServerError,
        SourceChangedError,
        StalledError,
        StoreError,
        TransferError,
        UnsafeArchiveError,
    )
    from async_bento.integrations.huggingface.model import HuggingFaceModel
    from async_bento.progress.events import ProgressEvent, ProgressEvents, ProgressListener
    from async_bento.progress.listeners import LineListener, TqdmListener
    from async_bento.rest.client import RestApiClient
    from async_bento.rest.credentials import Credentials
    from async_bento.rest.schemas import (
        BentoFullSchema,
        BentoManifestSchema,
        BentoRepositorySchema,
        BentoSchema,
        BentoWithRepositoryListSchema,
        BentoWithRepositorySchema,
        ChecksumsSchema,
        LabelItemSchema,
        ModelManifestSchema,
        ModelRepositorySchema,
        ModelSchema,
        ModelWithRepositoryListSchema,
        ModelWithRepositorySchema,
        UserSchema,
    )
    from async_bento.store.items import Bento, Model
    from async_bento.store.store import BentoStore, ModelStore

_NAMES = {
    "api.async_api": ("AsyncBentoAPI",),
    "api.async_models": ("AsyncModelAPI",),
    "api.compare": ("Difference",),
    "api.files": ("AsyncRemoteFile", "AsyncRemoteFiles", "RemoteEntry"),
    "progress.listeners": ("LineListener", "TqdmListener"),
    "config": ("Config", "Limits", "RetryPolicy", "Timeouts", "Transfer"),
    "rest.credentials": ("Credentials",),
    "errors": (
        "APIConnectionError",
        "APIError",
        "APIResponseError",
        "APIStatusError",
        "APITimeoutError",
        "ArchiveError",
        "AuthenticationError",
        "BentoError",
        "ClosedError",
        "ConfigError",
        "HubError",
        "IntegrityError",
        "InvalidTagError",
        "ModelsError",
        "NotFoundError",
        "NotSupportedError",
        "PartError",
        "PathExistsError",
        "PushesError",
        "RateLimitError",
        "ServerError",
        "SourceChangedError",
        "StalledError",
        "StoreError",
        "TransferError",
        "UnsafeArchiveError",
    ),
    "integrations.huggingface.model": ("HuggingFaceModel",),
    "progress.events": ("ProgressEvent", "ProgressEvents", "ProgressListener"),
    "api.push": ("PushResult",),
    "store.items": ("Bento", "Model"),
    "store.store": ("BentoStore", "ModelStore"),
    "_core.tag": ("Tag",),
    "api.sync_api": ("BentoAPI",),
    "api.sync_files": ("RemoteFiles",),
    "api.sync_models": ("ModelAPI",),
    "api.verify": ("DiffResult", "VerifyResult"),
    "rest.client": ("RestApiClient",),
    "rest.schemas": (
        "BentoFullSchema",
        "BentoManifestSchema",
        "BentoRepositorySchema",
        "BentoSchema",
        "BentoWithRepositoryListSchema",
        "BentoWithRepositorySchema",
        "ChecksumsSchema",
        "LabelItemSchema",
        "ModelManifestSchema",
        "ModelRepositorySchema",
        "ModelSchema",
        "ModelWithRepositoryListSchema",
        "ModelWithRepositorySchema",
        "UserSchema",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "ArchiveError",
    "AsyncBentoAPI",
    "AsyncModelAPI",
    "AsyncRemoteFile",
    "AsyncRemoteFiles",
    "AuthenticationError",
    "Bento",
    "BentoAPI",
    "BentoError",
    "BentoFullSchema",
    "BentoManifestSchema",
    "BentoRepositorySchema",
    "BentoSchema",
    "BentoStore",
    "BentoWithRepositoryListSchema",
    "BentoWithRepositorySchema",
    "ChecksumsSchema",
    "ClosedError",
    "Config",
    "ConfigError",
    "Credentials",
    "DiffResult",
    "Difference",
    "HubError",
    "HuggingFaceModel",
    "IntegrityError",
    "InvalidTagError",
    "LabelItemSchema",
    "Limits",
    "LineListener",
    "Model",
    "ModelAPI",
    "ModelManifestSchema",
    "ModelRepositorySchema",
    "ModelSchema",
    "ModelStore",
    "ModelWithRepositoryListSchema",
    "ModelWithRepositorySchema",
    "ModelsError",
    "NotFoundError",
    "NotSupportedError",
    "PartError",
    "PathExistsError",
    "ProgressEvent",
    "ProgressEvents",
    "ProgressListener",
    "PushResult",
    "PushesError",
    "RateLimitError",
    "RemoteEntry",
    "RemoteFiles",
    "RestApiClient",
    "RetryPolicy",
    "ServerError",
    "SourceChangedError",
    "StalledError",
    "StoreError",
    "Tag",
    "Timeouts",
    "TqdmListener",
    "Transfer",
    "TransferError",
    "UnsafeArchiveError",
    "UserSchema",
    "VerifyResult",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use does not call this function (PEP 562)
    return value


def __dir__() -> list[str]:
    return __all__
