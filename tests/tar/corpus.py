"""Valid tars with all features, as a base for damaged ones."""

from __future__ import annotations

import gzip
import io
import tarfile

from tests.tar.tars import END, block, directory, forge, hard_link, pax, record, symlink

_LONG = "long/" + "n" * 120


def _of_tarfile(fmt: int) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:", format=fmt) as tar:
            for name in ("bento.yaml", "grüße", _LONG):
                info = tarfile.TarInfo(name)
                info.size = 700
                tar.addfile(info, io.BytesIO(b"x" * 700))
        return file.getvalue()


_PLAIN = directory("./") + directory("./src/") + block("./src/a.py", content=b"pass\n" * 200) + block("./empty")
_LINKS = symlink("./src/b.py", "./a.py") + symlink("./top", "src/../src") + hard_link("./src/c.py", "./src/a.py")
_RECORDS = record("path", "./real") + record("mtime", "1234.5") + record("size", "7") + record("comment", "c")

CORPUS = (
    _PLAIN + _LINKS + END,
    pax(_RECORDS) + block("fake", content=b"")[:512] + b"content" + bytes(505) + END,
    pax(record("comment", "of all"), tarfile.XGLTYPE) + block("a", content=b"x") + END,
    pax(record("linkpath", "real")) + symlink("link", "fake") + block("real") + END,
    forge(block("a", content=b"x" * 600), 124, b"\x80" + (600).to_bytes(11, "big")) + END,
    block("a/b/c/d/e", content=b"x") + directory("a/b", mode=0) + directory("a/b", mode=0o7777) + END,
    symlink("a/up", "..") + symlink("b", "a/up/a/up/c") + block("c", content=b"c" * 512) + END,
    block("old", tarfile.AREGTYPE, b"a") + block("mapped", tarfile.CONTTYPE, b"c") + END,
    *(_of_tarfile(fmt) for fmt in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[1:]),
)
"""The uncompressed tars."""

COMPRESSED = gzip.compress(_PLAIN + _LINKS + END)
