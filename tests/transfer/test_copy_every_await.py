"""Copies that are cancelled at every await end soon, report to the target and leave nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.builders import contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.fault_proxy import refuse
from tests.transfer.cancellation import ALL, PART, WAYS, cancelled, places, settled

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import AsyncBentoAPI
    from tests.fixtures import MakeClient, StartProxy
    from tests.transfer.cancellation import Books
    from tests.transfer.steps import Steps

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_measures")]

WEIGHTS = random_bytes(3 * PART + 5, 3)


def one_model(home: Path, number: int) -> dict[str, str]:
    make_model(home, f"mod{number}:m1", {"weights": WEIGHTS})
    return {f"mod{number}:m1": "model"}


def with_model(home: Path, number: int) -> dict[str, str]:
    make_model(home, f"mod{number}:m1", {"weights": random_bytes(PART + 5, 4)})
    make_bento(home, f"svc{number}:v1", {"src/data": random_bytes(PART + 5, 5)}, models=[f"mod{number}:m1"])
    return {f"mod{number}:m1": "model", f"svc{number}:v1": "bento"}


# The downloads of the source, the strategy of the target, and the copied item.
COPIES = {
    "in parts": ("presigned_url", "presigned_url", one_model),
    "in one PUT": ("presigned_url", "auto", one_model),
    "through the registry": ("presigned_url", "proxy", one_model),
    "without ranges": ("proxy", "presigned_url", one_model),
    "with models": ("presigned_url", "presigned_url", with_model),
}


@pytest.mark.timeout(3600 if ALL else 180)
@pytest.mark.parametrize("way", ["task", "scope"])
@pytest.mark.parametrize("copied", COPIES)
async def test_copy_cancelled_at_any_await(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, tmp_path: Path, books: Books, copied: str, way: str
) -> None:
    strategy, transmission, make = COPIES[copied]
    source = await start_proxy(strategy, name="source", min_part_size=PART)
    target = await start_proxy(transmission, name="target", min_part_size=PART)
    if copied == "without ranges":
        source.hides_checksums = True
        source.add_fault("PATCH .*/presign_download_url", refuse(400), times=None)
    author = tmp_path / "author"

    async def copy(here: AsyncBentoAPI, there: AsyncBentoAPI, tags: dict[str, str]) -> Any:
        last = [*tags][-1]
        return await (here if tags[last] == "bento" else here.models).copy(last, there, threads=2)

    async def once(steps: Steps, number: int = 0) -> None:
        tags = make(author, number)
        async with make_client(source, author) as pusher:
            await (pusher if len(tags) > 1 else pusher.models).push([*tags][-1])
        books.noted.clear()
        here, there = make_client(source), make_client(target)
        await cancelled(here, lambda: copy(here, there, tags), steps, WAYS[way], source, home, (there, target))
        at = f"{steps.at} of {steps.count}"

        async with make_client(target) as other:
            found = await settled(other, tags)
        assert not {*found.values()} & {"pending", "uploading"}, at
        if not steps.at:
            assert {*found.values()} == {"success"}
        noted = {*next(iter(books.noted.values()), ())}
        target.requests.clear()
        async with make_client(source) as here, make_client(target) as there:
            done = await copy(here, there, tags)
        # A registry may handle the cancelled `success` report after the `failed` report.
        assert done.skipped or found.get([*tags][-1]) != "success", at
        if len(tags) == 1:  # the parts that were journaled are not sent again
            sent = {int(step.rpartition(" ")[2]) for step in target.steps("PUT part")}
            assert done.skipped or not sent & noted, at
        pulled = tmp_path / f"pulled{number}"
        for tag, kind in tags.items():
            async with make_client(target, pulled) as other:
                item = await (other if kind == "bento" else other.models).pull(tag)
            assert contents(item.path) == contents(author / f"{kind}s" / tag.replace(":", "/")), at
        assert not left_in_scratch(home), at

    for number, steps in enumerate(await places(once), start=1):
        await once(steps, number)
