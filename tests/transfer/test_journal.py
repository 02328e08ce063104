"""The journal of a push, and its content after a crash."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from async_bento.transfer.journal import Journal, JournalEntries, Source

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = Source(
    endpoint="https://registry.example", kind="bento", tag="svc:v1", part_size=5 << 20, fingerprint="a" * 64
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_journal_reads_added_parts(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1"))
    journal.add(3, '"c"')
    journal.add(1, '"a"')

    assert journal.read() == JournalEntries(SOURCE, "upload-1", {1: '"a"', 3: '"c"'})


def test_journal_reads_initial_parts(journal: Journal) -> None:
    recorded = JournalEntries(SOURCE, "upload-1", {2: '"b"'})
    journal.create(recorded)

    assert journal.read() == recorded


def test_new_upload_replaces_journal(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1", {2: '"b"'}))
    journal.create(JournalEntries(SOURCE, "upload-2"))

    assert journal.read() == JournalEntries(SOURCE, "upload-2")
    assert [*journal.path.parent.iterdir()] == [journal.path]


def test_journal_missing_reads_none(journal: Journal) -> None:
    assert journal.read() is None
    journal.remove()


def test_journal_removed_reads_none(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1"))
    journal.remove()
    assert journal.read() is None


def test_journal_truncated_at_any_byte(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1"))
    first = journal.path.stat().st_size
    journal.add(1, '"a"')
    second = journal.path.stat().st_size
    journal.add(2, '"b"')
    text = journal.path.read_bytes()

    for size in range(len(text) + 1):
        journal.path.write_bytes(text[:size])
        read = journal.read()
        if size < first - 1:
            assert read is None
        else:
            assert read is not None
            assert read.etags == {k: v for k, v, end in ((1, '"a"', second), (2, '"b"', len(text))) if size >= end}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'{"part_number":1,"etag":"a"}\n',
        b'{"endpoint":"e","kind":"bento","tag":"t","part_size":"5","fingerprint":"f","upload_id":"u"}\n',
        b'{"endpoint":"e","kind":"bento","tag":"t","part_size":5,"fingerprint":"f","upload_id":"u","new":1}\n',
    ],
)
def test_journal_invalid_reads_none(journal: Journal, text: bytes) -> None:
    journal.path.write_bytes(text)
    assert journal.read() is None


def test_lines_after_invalid_ignored(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1", {1: '"a"'}))
    with journal.path.open("ab") as file:
        file.write(b'{"part_num')  # a full disk
    journal.add(2, '"b"')
    journal.add(3, '"c"')

    read = journal.read()

    assert read is not None
    assert read.etags == {1: '"a"'}


@pytest.mark.posix("file modes")
def test_journal_readable_by_owner_only(journal: Journal) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1"))
    journal.add(1, '"a"')
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_journal_kept_if_replace_fails(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.create(JournalEntries(SOURCE, "upload-1"))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(OSError, match="No space"):
        journal.create(JournalEntries(SOURCE, "upload-2"))

    assert journal.read() == JournalEntries(SOURCE, "upload-1")
    assert [*journal.path.parent.iterdir()] == [journal.path]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"part_size": 6 << 20}, ""),
        ({"fingerprint": "b"}, "files have changed"),
        ({"endpoint": "https://elsewhere.example"}, "another registry"),
    ],
)
def test_journal_difference_has_reason(change: dict[str, object], why: str) -> None:
    difference = SOURCE.model_copy(update=change).difference(SOURCE)
    assert why in difference
    assert bool(difference) == bool(why)
