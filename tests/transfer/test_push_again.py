"""A push that was interrupted, and the one after it: what is sent again, and what is not."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from async_bento import PartError
from async_bento.transfer.journal import Journal
from tests.builders import MiB, contents, left_in_scratch, make_bento, make_model, noise
from tests.transfer.faulty import FINISH, PART, Door, Held, answer_json, lose_answer, refuse, then
from tests.transfer.processes import Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento import AsyncBentoAPI, ProgressEvent

    OpenDoor = Callable[..., Awaitable[Door]]
    MakeClient = Callable[..., AsyncBentoAPI]

SIX_PARTS = noise(26 * MiB, 5)
COMPLETE = "complete_multipart"
START = "start_multipart"


def parts(door: Door) -> list[str]:
    return sorted(door.steps("PUT part"))


@pytest.fixture
async def door(open_door: OpenDoor, home: Path) -> Door:
    make_model(home, files={"weights": SIX_PARTS})
    return await open_door()


@pytest.fixture
async def interrupted(door: Door, client: MakeClient) -> Door:
    """A door before a registry that has parts 1 and 2 of a push; the fourth was refused."""
    door.fault("PUT .*partNumber=3", refuse(400, code="InvalidRequest"))
    with pytest.raises(PartError, match="InvalidRequest"):
        await client(door).models.push("mod:m1", threads=1)
    assert parts(door) == ["PUT part 1", "PUT part 2", "PUT part 3"]
    door.seen.clear()
    return door


async def pulled(client: MakeClient, door: Door, elsewhere: Path) -> dict[str, object]:
    await client(door, elsewhere).models.pull("mod:m1")
    return contents(elsewhere / "models/mod/m1")


async def test_a_push_goes_on_where_the_last_one_stopped(
    interrupted: Door, client: MakeClient, home: Path, elsewhere: Path
) -> None:
    events: list[ProgressEvent] = []

    result = await client(interrupted, progress=events.append).models.push("mod:m1")

    assert parts(interrupted) == ["PUT part 3", "PUT part 4", "PUT part 5", "PUT part 6"]
    assert not interrupted.all(START)
    assert result.resumed
    assert result.parts == 4
    total = events[-1].bytes_total
    assert total is not None
    assert result.bytes_sent == total - 10 * MiB
    assert events[-1].bytes_done == total
    assert [event.message for event in events if event.message] == ["resuming at 38 %"]
    assert await pulled(client, interrupted, elsewhere) == contents(home / "models/mod/m1")


async def test_nothing_is_kept_of_a_push_that_succeeded(interrupted: Door, client: MakeClient, home: Path) -> None:
    assert left_in_scratch(home)

    await client(interrupted).models.push("mod:m1")

    assert not left_in_scratch(home)


async def test_nothing_is_kept_of_a_push_that_the_registry_has_already(
    interrupted: Door, client: MakeClient, home: Path
) -> None:
    (journal,) = (home / "tmp").glob("async-bento-kept-push+*")
    notes = journal.read_text()
    await client(interrupted).models.push("mod:m1")
    journal.write_text(notes)  # as a push leaves it that is killed when the registry has its last word

    result = await client(interrupted).models.push("mod:m1")

    assert result.skipped
    assert not left_in_scratch(home)


async def test_a_push_by_force_after_that_sends_everything(interrupted: Door, client: MakeClient) -> None:
    api = client(interrupted)
    await api.models.push("mod:m1")
    interrupted.seen.clear()

    result = await api.models.push("mod:m1", force=True)

    assert len(parts(interrupted)) == 6
    assert not result.resumed


async def test_one_that_was_cancelled_goes_on_too(door: Door, client: MakeClient) -> None:
    held = Held()
    door.fault("PUT .*partNumber=5", held)
    pushing = asyncio.create_task(client(door).models.push("mod:m1", threads=1))
    await held.arrived.wait()
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    held.released.set()
    door.seen.clear()

    result = await client(door).models.push("mod:m1")

    assert result.resumed
    assert parts(door) == ["PUT part 5", "PUT part 6"]


KILLED = """
async def main():
    async with api() as client:
        result = await client.models.push("mod:m1", threads=2)
        say(resumed=result.resumed, sent=result.bytes_sent)

asyncio.run(main())
"""


async def test_one_that_was_killed_goes_on_in_another_process_with_what_is_missing(
    door: Door, home: Path, elsewhere: Path, client: MakeClient
) -> None:
    held = Held(count=2)
    door.fault(PART, held, skip=3, times=None)
    first = await Client.start(KILLED, door, home)
    await held.arrived.wait()
    first.process.kill()
    await first.ended()
    held.released.set()
    arrived = [seen for seen in door.all("PUT part") if seen.status == 200][:3]
    door.seen.clear()

    code, (said,), error = await (await Client.start(KILLED, door, home)).ended()

    assert code == 0, error
    assert said["resumed"]
    assert len(arrived) == 3
    assert not {seen.step for seen in arrived[:2]} & {*door.steps("PUT part")}  # the third's line may not be written
    assert len(parts(door)) <= 4  # what is missing, and what was in flight
    assert await pulled(client, door, elsewhere) == contents(home / "models/mod/m1")


async def test_all_parts_that_wait_to_be_put_together_are_not_sent_again(door: Door, client: MakeClient) -> None:
    door.fault(COMPLETE, answer_json(403, {"message": "not you"}))
    with pytest.raises(Exception, match="not you"):
        await client(door).models.push("mod:m1")
    door.seen.clear()

    result = await client(door).models.push("mod:m1")

    assert result.resumed
    assert result.parts == result.bytes_sent == 0
    assert not parts(door)


def grow(home: Path) -> None:
    with (home / "models/mod/m1/weights").open("ab") as file:
        file.write(b"more")


def touch(home: Path) -> None:
    os.utime(home / "models/mod/m1/weights", ns=(0, 1))


def make_executable(home: Path) -> None:
    (home / "models/mod/m1/weights").chmod(0o755)


def add(home: Path) -> None:
    (home / "models/mod/m1/another").touch()


def rename(home: Path) -> None:
    (home / "models/mod/m1/weights").rename(home / "models/mod/m1/height")


@pytest.mark.parametrize("change", [grow, touch, make_executable, add, rename])
async def test_when_a_file_has_changed_it_starts_afresh_and_says_so(
    interrupted: Door, client: MakeClient, home: Path, elsewhere: Path, change: Callable[[Path], None]
) -> None:
    change(home)
    events: list[ProgressEvent] = []

    result = await client(interrupted, progress=events.append).models.push("mod:m1")

    assert not result.resumed
    assert len(parts(interrupted)) == 6
    assert [event.message for event in events if event.message] == [
        "restarting: an interrupted push cannot be resumed, since its files have changed"
    ]
    assert await pulled(client, interrupted, elsewhere) == contents(home / "models/mod/m1")
    assert not left_in_scratch(home)


async def test_with_parts_of_another_size_it_starts_afresh(interrupted: Door, client: MakeClient) -> None:
    result = await client(interrupted, transfer={"part_size": 7 * MiB}).models.push("mod:m1", threads=1)

    assert not result.resumed
    assert len(parts(interrupted)) == 4


async def test_to_another_registry_it_starts_afresh(
    interrupted: Door, open_door: OpenDoor, client: MakeClient, tmp_path: Path
) -> None:
    async with Door(interrupted.registry) as other:  # the same one, by another address
        result = await client(other).models.push("mod:m1")

    assert not result.resumed


async def test_when_the_storage_knows_nothing_of_it_any_more_it_starts_afresh(
    interrupted: Door, client: MakeClient, home: Path, elsewhere: Path
) -> None:
    interrupted.fault(PART, refuse(404, code="NoSuchUpload"))
    events: list[ProgressEvent] = []

    result = await client(interrupted, progress=events.append).models.push("mod:m1")

    assert not result.resumed
    assert result.parts == 6
    assert events[-1].bytes_done == events[-1].bytes_total
    assert [event.message for event in events if event.message] == [
        "resuming at 38 %",
        "restarting: an interrupted push cannot be resumed, since the storage has dropped the upload",
    ]
    assert await pulled(client, interrupted, elsewhere) == contents(home / "models/mod/m1")


async def test_when_the_registry_knows_nothing_of_it_any_more_it_starts_afresh(
    interrupted: Door, client: MakeClient
) -> None:
    interrupted.fault("presign_multipart", answer_json(400, {"error": "no such upload"}))

    result = await client(interrupted).models.push("mod:m1")

    assert not result.resumed
    assert result.parts == 6


async def test_a_fault_that_has_another_reason_does_not_throw_away_what_was_sent(
    interrupted: Door, client: MakeClient
) -> None:
    interrupted.fault(PART, refuse(500), times=None)
    with pytest.raises(PartError):
        await client(interrupted).models.push("mod:m1")
    interrupted._rules.clear()
    interrupted.seen.clear()

    assert (await client(interrupted).models.push("mod:m1")).resumed
    assert len(parts(interrupted)) == 4


async def test_it_can_be_switched_off(interrupted: Door, client: MakeClient, home: Path) -> None:
    result = await client(interrupted, transfer={"resume": False}).models.push("mod:m1")

    assert not result.resumed
    assert len(parts(interrupted)) == 6


async def test_without_a_place_for_its_notes_a_push_succeeds_all_the_same(
    door: Door, client: MakeClient, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "tmp").write_text("no directory")

    await client(door).models.push("mod:m1")

    assert "cannot be resumed" in caplog.text
    assert len(parts(door)) == 6


@pytest.mark.parametrize("method", ["read", "create", "add", "remove"])
async def test_notes_that_cannot_be_read_or_written_do_not_end_a_push(
    door: Door, client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "journal")

    monkeypatch.setattr(Journal, method, full)

    await client(door).models.push("mod:m1")

    assert "No space left on device: journal" in caplog.text
    assert door.all(FINISH)[-1].json["status"] == "success"


async def test_of_two_that_push_the_same_one_waits_and_finds_it_done(
    door: Door, client: MakeClient, home: Path
) -> None:
    held = Held()
    door.fault("PUT .*partNumber=6", held)
    events: list[ProgressEvent] = []
    waits = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        events.append(event)
        if event.message:
            waits.set()

    first = asyncio.create_task(client(door).models.push("mod:m1"))
    await held.arrived.wait()
    second = asyncio.create_task(client(door, progress=listen).models.push("mod:m1"))
    await waits.wait()
    held.released.set()

    assert not (await first).skipped
    assert (await second).skipped
    assert len(parts(door)) == 6
    assert [event.message for event in events if event.message] == [
        "waiting for another process that pushes it",
        "already pushed",
    ]


async def test_one_that_waits_goes_on_when_the_other_fails(door: Door, client: MakeClient) -> None:
    held = Held(then=refuse(400, code="InvalidRequest"))
    door.fault("PUT .*partNumber=6", held)
    waits = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.message:
            waits.set()

    first = asyncio.create_task(client(door).models.push("mod:m1", threads=1))
    await held.arrived.wait()
    second = asyncio.create_task(client(door, progress=listen).models.push("mod:m1"))
    await waits.wait()
    held.released.set()

    with pytest.raises(PartError):
        await first
    result = await second
    assert result.resumed
    assert result.parts == 1


async def test_pushes_of_one_item_to_two_registries_do_not_wait_for_each_other(
    door: Door, open_door: OpenDoor, client: MakeClient
) -> None:
    other = await open_door("auto")
    held = Held()
    door.fault(PART, held, times=None)
    first = asyncio.create_task(client(door).models.push("mod:m1"))
    await held.arrived.wait()

    await client(other).models.push("mod:m1")

    held.released.set()
    await first


async def test_an_answer_to_the_completion_that_was_lost_is_no_failure(
    door: Door, client: MakeClient, home: Path, elsewhere: Path
) -> None:
    door.fault(COMPLETE, then(lose_answer, answer_json(400, {"error": "NoSuchUpload: it is completed"})), times=None)

    result = await client(door).models.push("mod:m1")

    assert result.parts == 6
    assert door.all(FINISH)[-1].json["status"] == "success"
    assert await pulled(client, door, elsewhere) == contents(home / "models/mod/m1")


async def test_a_completion_that_failed_is_not_taken_for_done_because_of_what_was_there_before(
    door: Door, client: MakeClient, home: Path
) -> None:
    api = client(door)
    await api.models.push("mod:m1")
    weights = home / "models/mod/m1/weights"
    weights.write_bytes(noise(26 * MiB, 6))  # as long, and other bytes
    door.fault(COMPLETE, answer_json(400, {"error": "no"}), times=None)

    with pytest.raises(Exception, match="no"):
        await api.models.push("mod:m1", force=True)


async def test_the_models_of_a_bento_are_gone_on_with_as_well(
    interrupted: Door, client: MakeClient, home: Path
) -> None:
    make_bento(home, models=["mod:m1"])

    result = await client(interrupted).push("svc:v1")

    assert not result.resumed
    assert [model.resumed for model in result.models] == [True]
