"""What the listener of a real push and a real pull is told: parts, tries, phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.builders import MiB, make_model, noise
from tests.transfer.faulty import GET, PART, Door, answer_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento import AsyncBentoAPI, ProgressEvent

    OpenDoor = Callable[..., Awaitable[Door]]
    MakeClient = Callable[..., AsyncBentoAPI]


async def test_a_push_tells_its_parts_and_what_is_tried_again(
    open_door: OpenDoor, client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": noise(11 * MiB)})
    door = await open_door()
    door.fault(PART, answer_json(503, {}))
    told: list[ProgressEvent] = []

    await client(door, progress=told.append).models.push("mod:m1")

    last = told[-1]
    assert (last.phase, last.parts_done, last.parts_total, last.retries) == ("done", 3, 3, 1)
    assert [event.message for event in told if event.message.startswith("retrying: ")]
    assert [event.parts_done for event in told] == sorted(event.parts_done for event in told)


async def test_a_pull_tells_what_is_tried_again_and_when_all_has_come(
    open_door: OpenDoor, client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, files={"weights": noise(MiB)})
    door = await open_door()
    await client(door).models.push("mod:m1")
    door.fault(GET, answer_json(503, {}), skip=1)
    told: list[ProgressEvent] = []

    await client(door, elsewhere, progress=told.append).models.pull("mod:m1")

    phases = list(dict.fromkeys(event.phase for event in told))
    assert phases == ["planning", "transferring", "extracting", "finishing", "done"]
    assert (told[-1].retries, told[-1].parts_total) == (1, None)
    extracting = next(event for event in told if event.phase == "extracting")
    assert extracting.bytes_done == extracting.bytes_total
