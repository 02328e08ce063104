"""A coroutine per route of an item: the same for bentos and models, but for the words.

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
    Request,
    UpdateBentoSchema,
    UpdateModelSchema,
)
from async_bento.rest.schemas import ItemSchema, RepositorySchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.rest.session import RestSession
    from async_bento.rest.transport import Address

RepositoryT = TypeVar("RepositoryT", bound=RepositorySchema, covariant=True)
ItemT = TypeVar("ItemT", bound=ItemSchema, covariant=True)
ListT = TypeVar("ListT", bound=BaseModel, covariant=True)


class ItemRoutes(Generic[RepositoryT, ItemT, ListT]):
    """The routes of one kind of item: they are the same for bentos and models, but for the words.

    Args:
        session: Sends the requests.
        kind: `bento` or `model`.
        repository: The schema of a repository.
        item: The schema of an item.
        page: The schema of a list.
    """

    def __init__(
        self,
        session: RestSession,
        kind: str,
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
        """GET `/bento_repositories/{name}`.

        Args:
            name: The repository.

        Returns:
            The repository, or None where there is none.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.session.find("GET", f"{self.kind}_repositories/{quote(name)}", self._repository)

    async def create_repository(self, name: str) -> RepositoryT:
        """POST `/bento_repositories`.

        Args:
            name: The repository.

        Returns:
            The repository.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        body = CreateRepositorySchema(name=name)
        return await self.session.request("POST", f"{self.kind}_repositories", self._repository, body=body, retry=False)

    async def list(
        self,
        name: str | None = None,
        *,
        start: int = 0,
        count: int,
        search: str | None = None,
        query: str | None = None,
    ) -> ListT | None:
        """GET `/bentos`, or `/bento_repositories/{name}/bentos`: one page, in the order of `build_at`, newest first.

        Args:
            name: The repository; None for all of them.
            start: The first item's place, from 0.
            count: How many items at most.
            search: What the name must hold.
            query: Yatai's query language: words, `label:key=value`, `sort:build_at-asc`.

        Returns:
            The page, or None where there is no such repository.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        path = self._items(name) if name is not None else f"{self.kind}s"
        params = {"start": str(start), "count": str(count)}
        if search:
            params["search"] = search
        if query:
            params["q"] = query
        request = (
            self.session.request if name is None else self.session.find
        )  # there are always all, but not every repository
        return await request("GET", path, self._page, params=params)

    async def get(self, name: str, version: str) -> ItemT | None:
        """GET `/bento_repositories/{name}/bentos/{version}`.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The item, or None where there is none.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.session.find("GET", self.path(name, version), self._item)

    async def create(self, name: str, record: CreateBentoSchema | CreateModelSchema) -> ItemT:
        """POST `/bento_repositories/{name}/bentos`.

        Args:
            name: The repository.
            record: The item.

        Returns:
            The item.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.session.request("POST", self._items(name), self._item, body=record, retry=False)

    async def update(self, name: str, version: str, record: UpdateBentoSchema | UpdateModelSchema) -> ItemT:
        """PATCH `/bento_repositories/{name}/bentos/{version}`.

        Args:
            name: The repository.
            version: The version.
            record: What changes.

        Returns:
            The item.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.session.request("PATCH", self.path(name, version), self._item, body=record)

    async def start_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/start_upload`: bytes are about to come.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The item.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self._patch(name, version, "start_upload")

    async def finish_upload(self, name: str, version: str, outcome: FinishUploadSchema) -> ItemT:
        """PATCH `…/finish_upload`: how it ended.

        Args:
            name: The repository.
            version: The version.
            outcome: Success, or failure and why.

        Returns:
            The item.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self._patch(name, version, "finish_upload", outcome)

    async def presign_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/presign_upload_url`: where one PUT may go.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The item with its `presigned_upload_url`, empty where the bytes must pass through the registry.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self._patch(name, version, "presign_upload_url")

    async def presign_download(self, name: str, version: str) -> ItemT:
        """PATCH `…/presign_download_url`: where the bytes are.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The item with its `presigned_download_url`, empty where the bytes must pass through the registry.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self._patch(name, version, "presign_download_url")

    async def start_multipart_upload(self, name: str, version: str) -> ItemT:
        """PATCH `…/start_multipart_upload`.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The item with its `upload_id`.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self._patch(name, version, "start_multipart_upload")

    async def presign_part(self, name: str, version: str, upload_id: str, part_number: int) -> ItemT:
        """PATCH `…/presign_multipart_upload_url`: where one part goes.

        Args:
            name: The repository.
            version: The version.
            upload_id: The multipart upload.
            part_number: The part, from 1 to 10,000.

        Returns:
            The item with its `presigned_upload_url`.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        body = PreSignMultipartUploadUrlSchema(upload_id=upload_id, part_number=part_number)
        return await self._patch(name, version, "presign_multipart_upload_url", body)

    async def complete_multipart_upload(
        self, name: str, version: str, upload_id: str, parts: Sequence[CompletePartSchema]
    ) -> ItemT:
        """PATCH `…/complete_multipart_upload`.

        Args:
            name: The repository.
            version: The version.
            upload_id: The multipart upload.
            parts: All parts, in ascending order.

        Returns:
            The item.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        body = CompleteMultipartUploadSchema(upload_id=upload_id, parts=list(parts))
        timeout = max(self.session.config.timeouts.complete, self.session.config.timeouts.api)
        return await self._patch(name, version, "complete_multipart_upload", body, timeout)

    def upload_address(self, name: str, version: str) -> Address:
        """PUT `…/upload`: the tar, through the registry.

        Args:
            name: The repository.
            version: The version.

        Returns:
            Where to PUT.
        """
        return self.session.registry_address(f"{self.path(name, version)}/upload")

    def download_address(self, name: str, version: str) -> Address:
        """GET `…/download`: the tar, through the registry.

        Args:
            name: The repository.
            version: The version.

        Returns:
            Where to GET.
        """
        return self.session.registry_address(f"{self.path(name, version)}/download")

    async def _patch(
        self, name: str, version: str, action: str, body: Request | None = None, timeout: float | None = None
    ) -> ItemT:
        path = f"{self.path(name, version)}/{action}"
        return await self.session.request("PATCH", path, self._item, body=body, timeout=timeout)

    def _items(self, name: str) -> str:
        return f"{self.kind}_repositories/{quote(name)}/{self.kind}s"

    def path(self, name: str, version: str) -> str:
        """The path of an item below `/api/v1/`.

        Args:
            name: The repository.
            version: The version.

        Returns:
            The path, quoted.
        """
        return f"{self._items(name)}/{quote(version)}"


AnyRoutes = ItemRoutes[RepositorySchema, ItemSchema, BaseModel]
"""The routes of bentos or of models, for what is the same for both."""
