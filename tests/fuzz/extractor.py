"""Feed the extractor with the inputs of a coverage-guided fuzzer: `nox -s fuzz -- -max_total_time=600`.

The run fails if the extractor raises a foreign error, touches a file outside, or leaves another tree than tarfile
reads. The arguments are those of libFuzzer: corpus directories, the first of which gets new inputs, and options. The
first byte of an input selects how the rest is fed; see `feed`.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["async_bento.transfer.tar"]):
    from async_bento.transfer.tar import decompress, extract, headers, safety, writer  # noqa: F401 - to be instrumented

from tests.tar.corpus import COMPRESSED, CORPUS
from tests.tar.property import Surroundings, as_tarfile_reads_it
from tests.tar.tars import fix_checksums

STEPS = (None, 1, 7, 511, 512, 1000)
FIX_CHECKSUMS, COMPRESS = 0x80, 0x40


def feed(surroundings: Surroundings, data: bytes) -> None:
    """Feed an input. Of its first byte, bit 7 fixes checksums, bit 6 compresses, the rest is a chunk size."""
    if not data:
        return
    how, data = data[0], data[1:]
    if how & FIX_CHECKSUMS:
        data = fix_checksums(data)
    if how & COMPRESS:
        data = gzip.compress(data, 1, mtime=0)
    if surroundings.feed(data, STEPS[(how & 0x3F) % len(STEPS)]) is None:
        assert surroundings.found == as_tarfile_reads_it(data)


def main() -> None:
    """Fuzz until libFuzzer stops."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as base, tempfile.TemporaryDirectory() as seeds:
        surroundings = Surroundings(Path(base))
        for number, tar in enumerate((*CORPUS, COMPRESSED)):
            how = bytes([FIX_CHECKSUMS + number % len(STEPS)]) if number < len(CORPUS) else b"\0"
            (Path(seeds) / f"{number}").write_bytes(how + tar)
        atheris.Setup([*sys.argv, seeds], lambda data: feed(surroundings, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
