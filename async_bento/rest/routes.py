"""ItemRoutes: a method for each route of bentos or models.

The routes are those of BentoML 1.4.39 (`bentoml/_internal/cloud/client.py`) and Yatai (`api-server/routes/routes.go`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from async_bento.rest.request_schemas import (
    CompleteMultipartUploadSchema,
    CompletePartSchema,
    CreateBentoSchema,
    CreateModelSchema,
    CreateRepositorySchema,
    FinishUploadSchema,
    PreSignMultipartUploadUrlSchema,
    UpdateBentoSchema,
    UpdateLabelsSchema,
    UpdateModelSchema,
)
from async_bento.rest.responses import RawRecord, parse_record
from async_bento.rest.schemas import ItemSchema, RepositorySchema
from async_bento.rest.session import ApiRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento._core.validation import JsonObject
    from async_bento.rest.request_schemas import RequestModel
    from async_bento.rest.schemas import LabelItemSchema
    from async_bento.rest.session import RestSession
    from async_bento.rest.transport import Target

RepositoryT = TypeVar("RepositoryT", bound=RepositorySchema, covariant=True)
ItemT = TypeVar("ItemT", bound=ItemSchema, covariant=True)
ListT = TypeVar("ListT", bound=BaseModel, covariant=True)


class ItemRoutes(Generic[RepositoryT, ItemT, ListT]):
    """The routes of bentos or of models; both have the same routes under other names."""

    def __init__(
        self,
        session: RestSession,
        kind: str,  # bento or model
        repository: type[RepositoryT],
        item: type[ItemT],
        page: type[ListT],
    ) -> None:
        self.session = session
        self.kind = kind
        self._repository = repository
        self._item = item
        self._page = page

    async def get_repository(self, name: str) -> RepositoryT | None:
        """GET `/bento_repositories/{name}`: the repository, or None."""
        return await self.session.find(ApiRequest("GET", f"{self.kind}_repositories/{quote(name)}"), self._repository)

    async def create_repository(self, name: str, *, attempt: int = 1) -> RepositoryT:
        """POST `/bento_repositories`; the log shows the number of the attempt."""
        body = CreateRepositorySchema(name=name)
        request = ApiRequest("POST", f"{self.kind}_repositories", body, attempt=attempt)
        # `Pusher` retries: after an error, it first looks whether the repository was created.
        return await self.session.request(request, self._repository, retry=False)

    async def list(
        self,
        name: str | None = None,
        *,
        start: int = 0,
        count: int,
        search: str | None = None,
        query: str | None = None,
    ) -> ListT | None:
        """GET `/bentos` or `/bento_repositories/{name}/bentos`: a page, newest `build_at` first, or None.

        `search` is a part of the name; `query` is Yatai's: words, `label:key=value`, `sort:build_at-asc`.
        """
        params = {"start": str(start), "count": str(count)}
        if search:
            params["search"] = search
        if query:
            params["q"] = query
        if name is None:
            return await self.session.request(ApiRequest("GET", f"{self.kind}s", params=params), self._page)
        return await self.session.find(ApiRequest("GET", self._items(name), params=params), self._page)

    async def get(self, name: str, version: str) -> ItemT | None:
        """GET `/bento_repositories/{name}/bentos/{version}`: the item, or None."""
        return await self.session.find(ApiRequest("GET", self.path(name, version)), self._item)

    async def create(self, name: str, record: CreateBentoSchema | CreateModelSchema, *, attempt: int = 1) -> ItemT:
        """POST `/bento_repositories/{name}/bentos`; the log shows the number of the attempt."""
        request = ApiRequest("POST", self._items(name), record, attempt=attempt)
        # As for repositories: a second POST would fail where only the first response was lost.
        return await self.session.request(request, self._item, retry=False)

    async def update(self, name: str, version: str, record: UpdateBentoSchema | UpdateModelSchema) -> ItemT:
        """PATCH `/bento_repositories/{name}/bentos/{version}`."""
        return await self.session.request(ApiRequest("PATCH", self.path(name, version), record), self._item)

    async def get_raw(self, name: str, version: str) -> tuple[ItemT, JsonObject] | None:
        """GET `…/bentos/{version}`: the item, and all that the registry sent of it; or None."""
        request = ApiRequest("GET", self.path(name, version))
        found = await self.session.find(request, RawRecord)
        return None if found is None else (parse_record(found.root, self._item, f"GET {request.path}"), found.root)

    async def update_labels(
        self, name: str, version: str, record: JsonObject, labels: Sequence[LabelItemSchema]
    ) -> ItemT:
        """PATCH `…/bentos/{version}`: replace the labels of an item, and send back the rest of its record.

        The item has the fields of the record that the response lacks: Yatai leaves out the repository and the models.
        """
        description, manifest = record.get("description"), record.get("manifest")
        body = UpdateLabelsSchema(
            description=description if isinstance(description, str) else "",
            manifest=manifest if isinstance(manifest, dict) else None,
            labels=[*labels],
        )
        request = ApiRequest("PATCH", self.path(name, version), body)
        updated = await self.session.request(request, RawRecord)
        sent: JsonObject = {"labels": [{"key": label.key, "value": label.value} for label in labels]}
        answered = {key: value for key, value in updated.root.items() if value is not None}
        return parse_record({**record, **sent, **answered}, self._item, f"PATCH {request.path}")

    async def delete(self, name: str, version: str, *, force: bool = False) -> None:
        """DELETE `/bento_repositories/{name}/bentos/{version}`, a route of async-bento's own registry."""
        params = {"force": "true"} if force else None
        await self.session.request(ApiRequest("DELETE", self.path(name, version), params=params), self._item)

    async def start_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/start_upload`."""
        return await self._patch(name, version, "start_upload")

    async def finish_upload(self, name: str, version: str, outcome: FinishUploadSchema) -> ItemT:
        """PATCH `…/finish_upload`."""
        return await self._patch(name, version, "finish_upload", outcome)

    async def presign_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/presign_upload_url`; `presigned_upload_url` is empty if the upload goes through the registry."""
        return await self._patch(name, version, "presign_upload_url")

    async def presign_download(self, name: str, version: str) -> ItemT:
        """PATCH `…/presign_download_url`; `presigned_download_url` is empty if the registry serves the bytes itself."""
        return await self._patch(name, version, "presign_download_url")

    async def start_multipart_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/start_multipart_upload`; the item has the `upload_id`."""
        return await self._patch(name, version, "start_multipart_upload")

    async def presign_part(self, name: str, version: str, upload_id: str, part_number: int) -> ItemT:
        """PATCH `…/presign_multipart_upload_url`; the item has the part's `presigned_upload_url`."""
        body = PreSignMultipartUploadUrlSchema(upload_id=upload_id, part_number=part_number)
        return await self._patch(name, version, "presign_multipart_upload_url", body)

    async def complete_multipart_upload(
        self, name: str, version: str, upload_id: str, parts: Sequence[CompletePartSchema]
    ) -> ItemT:
        """PATCH `…/complete_multipart_upload`, with all parts in ascending order."""
        body = CompleteMultipartUploadSchema(upload_id=upload_id, parts=list(parts))
        timeouts = self.session.config.timeouts
        path = f"{self.path(name, version)}/complete_multipart_upload"
        # The storage assembles the parts before it answers.
        request = ApiRequest("PATCH", path, body, timeout=max(timeouts.complete, timeouts.api))
        return await self.session.request(request, self._item)

    def upload_target(self, name: str, version: str) -> Target:
        """PUT `…/upload`: the tar, through the registry."""
        return self.session.registry_target(f"{self.path(name, version)}/upload", is_transfer=True)

    def download_target(self, name: str, version: str) -> Target:
        """GET `…/download`: the tar, through the registry."""
        return self.session.registry_target(f"{self.path(name, version)}/download", is_transfer=True)

    async def _patch(self, name: str, version: str, action: str, body: RequestModel | None = None) -> ItemT:
        request = ApiRequest("PATCH", f"{self.path(name, version)}/{action}", body)
        return await self.session.request(request, self._item)

    def _items(self, name: str) -> str:
        return f"{self.kind}_repositories/{quote(name)}/{self.kind}s"

    def path(self, name: str, version: str) -> str:
        """The path of an item below `/api/v1/`, quoted."""
        return f"{self._items(name)}/{quote(version)}"


AnyRoutes = ItemRoutes[RepositorySchema, ItemSchema, BaseModel]
"""The routes of bentos or of models, for code that serves both."""
