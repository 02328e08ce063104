"""Pieces of a tar that arrives as a stream."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from async_bento import Limits, UnsafeArchiveError
from async_bento.transfer.stream import EndOfPiecesError, FileOutput, OtherTarError, StreamSink, tree_output
from async_bento.transfer.tar.index import TarIndex
from async_bento.transfer.tar.selection import END, KnownPieces, MatchingFiles, OneFile, pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from async_bento.transfer.tar.selection import Selector


def tar_of(**files: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


def test_known_pieces_of_other_tar_are_refused() -> None:
    """Without an ETag, the headers show that the item was pushed again."""
    tar = tar_of(first=b"1" * 2000, second=b"2" * 2000)
    index = TarIndex(Limits())
    index.feed(tar)
    pieces = pieces_of(index, [index.entries["second"]])

    output = io.BytesIO()
    with pytest.raises(EndOfPiecesError):
        StreamSink(Limits(), KnownPieces(pieces), FileOutput(output)).feed([tar])
    assert output.getvalue() == b"".join(piece.prefix + tar[piece.start : piece.stop] for piece in pieces)

    for other in (tar_of(first=b"1" * 2000, third=b"2" * 2000), tar_of(first=b"1" * 2000, second=b"2" * 1999)):
        known = other[: pieces[-1].entry.content + 512]  # the end is not waited for
        with pytest.raises(OtherTarError):
            StreamSink(Limits(), KnownPieces(pieces), FileOutput(io.BytesIO())).feed([known])


TAR = tar_of(first=b"1" * 2000, second=b"2" * 1024, third=b"3" * 700, last=b"4")


def pieces_of_tar(*names: str, tar: bytes = TAR) -> KnownPieces:
    index = TarIndex(Limits())
    index.feed(tar)
    return KnownPieces(pieces_of(index, [index.entries[name] for name in names]))


SELECTORS: dict[str, tuple[Callable[[], Selector], str]] = {
    "known": (lambda: pieces_of_tar("first", "third"), "tar"),
    "known last": (lambda: pieces_of_tar("last"), "tar"),
    "one": (lambda: OneFile("second"), "2" * 1024),
    "matching": (lambda: MatchingFiles(["t*", "first"], []), "tar"),
}


def chunks_of(data: bytes, size: int) -> Sequence[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("size", [1, 5, 10, 512, 1000, 10**6])
@pytest.mark.parametrize("name", SELECTORS)
def test_stream_pieces_of_any_chunks(name: str, size: int, is_compressed: bool) -> None:
    """The chunks of a connection end anywhere; after an error, they come again from the first byte."""
    make_selector, expected = SELECTORS[name]
    output, data = io.BytesIO(), gzip.compress(TAR) if is_compressed else TAR
    sink = StreamSink(Limits(), make_selector(), FileOutput(output))
    chunks = chunks_of(data, size)
    sink.feed(chunks[: len(chunks) // 4])
    sink.restart()

    is_ended = False
    try:
        sink.feed(chunks)
    except EndOfPiecesError:
        is_ended = True
        sink.restart()  # as `download` does after each error

    assert is_ended == (name != "matching")
    if expected != "tar":
        assert output.getvalue() == expected.encode()
        return
    with tarfile.open(fileobj=io.BytesIO(output.getvalue() + bytes(1024))) as tar:
        found = {member.name.removeprefix("./"): tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    names = {"known": ("first", "third"), "known last": ("last",), "matching": ("first", "third")}[name]
    content = {"first": b"1" * 2000, "third": b"3" * 700, "last": b"4"}
    assert found == {name: content[name] for name in names}


def test_stream_ends_with_last_wanted_byte() -> None:
    index = TarIndex(Limits())
    index.feed(TAR)
    sink = StreamSink(Limits(), OneFile("second"), FileOutput(io.BytesIO()))
    with pytest.raises(EndOfPiecesError):
        sink.feed([TAR[: index.entries["second"].stop]])


@pytest.mark.parametrize("size", [1, 10, 10**6])
def test_stream_index_of_any_chunks(size: int) -> None:
    sink = StreamSink(Limits())
    sink.feed(chunks_of(TAR, size))
    sink.close()
    assert [*sink.index.entries] == ["first", "second", "third", "last"]


def test_file_output_restart_drops_all_bytes() -> None:
    output = FileOutput(io.BytesIO())
    output.feed(b"longer")
    output.restart()
    output.feed(b"new")
    output.file.seek(0)
    assert output.file.read() == b"new"


def test_tree_output_restart_drops_all_files(tmp_path: Path) -> None:
    with tree_output(tmp_path, Limits()) as output:
        output.feed(tar_of(old=b"0", first=b"0" * 9000)[:4096])
        output.restart()
        output.feed(TAR[:-1024])
        output.close()
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "first": 2000,
        "second": 1024,
        "third": 700,
        "last": 1,
    }


def test_stream_end_is_checked() -> None:
    """Bytes of the checksum of gzip are missing, or members of the tar."""
    sink = StreamSink(Limits())
    sink.feed([gzip.compress(TAR)[:-1]])
    with pytest.raises(UnsafeArchiveError):
        sink.close()

    sink = StreamSink(
        Limits(), pieces_of_tar("last", tar=tar_of(first=b"1" * 20_000, last=b"4")), FileOutput(io.BytesIO())
    )
    sink.feed([TAR])
    with pytest.raises(OtherTarError):
        sink.close()


def test_matching_files_are_streamed() -> None:
    selector, output = MatchingFiles(["*"], ["third"]), io.BytesIO()
    sink = StreamSink(Limits(), selector, FileOutput(output))
    sink.feed(chunks_of(TAR, 500))
    sink.close()

    index = TarIndex(Limits())
    index.feed(output.getvalue() + END)
    assert selector.is_possible
    assert [*index.entries] == ["first", "second", "last"]


@pytest.mark.parametrize(("path", "is_found"), [("second", True), ("absent", False)])
def test_one_file_is_found_or_not(path: str, is_found: bool) -> None:
    selector, output = OneFile(path), io.BytesIO()
    sink = StreamSink(Limits(), selector, FileOutput(output))
    with pytest.raises(EndOfPiecesError) if is_found else nullcontext():
        sink.feed(chunks_of(TAR, 500))
        sink.close()

    assert selector.is_found == is_found
    assert output.getvalue() == (b"2" * 1024 if is_found else b"")
