"""A program that uses async-bento; mypy and pyright check it outside of the repository: `nox -s types`."""

# pyright: strict

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import assert_type

from async_bento import (
    AsyncBentoAPI,
    Bento,
    BentoAPI,
    BentoFullSchema,
    BentoStore,
    BentoWithRepositorySchema,
    Config,
    HuggingFaceModel,
    Model,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
    PartError,
    ProgressEvent,
    PushResult,
    RestApiClient,
    Tag,
)
from async_bento.registry.server import LocalRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento import ProgressListener


class Counter:
    """A listener as an object."""

    done = 0

    def __call__(self, event: ProgressEvent, /) -> None:
        self.done = event.bytes_done


def listen(event: ProgressEvent) -> None:
    """A listener as a function."""
    assert_type(event.bytes_total, int | None)
    assert_type(event.tag, str)


LISTENERS: list[ProgressListener] = [listen, Counter()]


async def awaited(root: Path) -> PushResult:
    """The asynchronous calls."""
    async with LocalRegistry(root, transmission="proxy") as registry:
        client = RestApiClient(registry.endpoint, registry.api_token, config=Config(transfer={"verify": False}))
        async with client, AsyncBentoAPI(client, progress=listen, bento_store=BentoStore(root / "bentos")) as api:
            result = await api.push("svc:v1", force=True, threads=4)
            assert_type(result, PushResult)
            assert_type(result.tag, Tag)
            assert_type(result.bytes_sent, int)
            assert_type(await api.push(Path("bentos/svc/v1"), bare=True), PushResult)
            assert_type(await api.push(["svc:v1", Tag("svc", "v2")]), list[PushResult])
            bento = await api.pull(Tag("svc", "v1"), with_models=True)
            assert_type(bento, Bento)
            assert_type(bento.path, Path)
            assert_type(await api.pull(bento, path="svc", force=True), Bento)
            model = await api.models.pull("mod", query="label:stage=prod")
            assert_type(model, Model | HuggingFaceModel)
            assert_type(model.path, Path)
            await api.models.pull(model, path=root / "mod")
            async for record in api.iter(search="svc"):
                assert_type(record, BentoWithRepositorySchema)
                await api.pull(record)
            assert_type(await api.get(bento), BentoFullSchema)
            assert_type(await api.exists(result), bool)
            assert_type(await api.push("svc:v1", labels={"stage": "prod"}, keep_labels=True), PushResult)
            assert_type(await api.set_labels(bento, {"stage": "prod", "old": None}), BentoWithRepositorySchema)
            assert_type(await api.copy("svc:v1", api, with_models=False), PushResult)
            assert_type(await api.copy(["svc:v1"], api), list[PushResult])
            assert_type(await api.models.copy("mod:m1", api), PushResult)
            assert_type(await api.pull("svc", label={"stage": "prod"}), Bento)
            try:
                return await api.push(bento)
            except PartError as error:
                assert_type(error.status, int | None)
                raise


def blocking() -> Iterator[str]:
    """The blocking calls."""
    with BentoAPI(endpoint="https://registry.example.com", api_token="secret", progress=False) as api:
        assert_type(api.push("svc"), PushResult)
        assert_type(api.push(["svc:v1", "svc:v2"]), list[PushResult])
        assert_type(api.get("svc"), BentoFullSchema)
        bento = api.pull("svc", path=Path("svc"))
        assert_type(bento, Bento)
        assert_type(api.pull(bento), Bento)
        assert_type(api.pull(api.get(bento)), Bento)
        assert_type(api.exists(api.list()[0]), bool)
        assert_type(api.models.pull(api.models.list()[0]).path, Path)
        assert_type(BentoStore().get(bento), Bento)
        assert_type(api.models.set_labels("mod", {"stage": None}), ModelWithRepositorySchema)
        assert_type(api.copy(["svc:v1"], api), list[PushResult])
        assert_type(api.models.copy("mod:m1", api), PushResult)
        assert_type(api.models.list(limit=3), ModelWithRepositoryListSchema)
        for record in api.iter():
            yield record.version
    api.pull(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    api.push(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    api.pull("svc", with_model=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
