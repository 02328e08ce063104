"""Pieces of a tar that arrives as a stream."""

from __future__ import annotations

import io
import tarfile

import pytest

from async_bento import Limits
from async_bento.transfer.stream import EndOfPiecesError, FileOutput, OtherTarError, StreamSink
from async_bento.transfer.tar.index import TarIndex
from async_bento.transfer.tar.selection import KnownPieces, pieces_of


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
        with pytest.raises(OtherTarError):
            StreamSink(Limits(), KnownPieces(pieces), FileOutput(io.BytesIO())).feed([other])
