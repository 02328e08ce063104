"""S3's ETag of a multipart upload."""

from __future__ import annotations

import hashlib

import pytest

from async_bento._core.s3 import bare_etag, etag_of_parts

DIGESTS = [hashlib.md5(part).digest() for part in (b"one", b"two")]
EXPECTED = f'"{hashlib.md5(b"".join(DIGESTS)).hexdigest()}-2"'


@pytest.mark.parametrize("form", ["{}", '"{}"'])
def test_etag_is_md5_of_part_md5s(form: str) -> None:
    assert etag_of_parts([form.format(digest.hex()) for digest in DIGESTS]) == EXPECTED
    assert etag_of_parts([form.format(digest.hex().upper()) for digest in DIGESTS]) == EXPECTED


def test_etag_needs_no_secure_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenSSL in FIPS mode refuses MD5 otherwise."""
    md5 = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda *data, usedforsecurity=True: None if usedforsecurity else md5(*data))
    assert etag_of_parts([digest.hex() for digest in DIGESTS]) == EXPECTED


def test_etag_without_md5_is_unknown() -> None:
    assert etag_of_parts([f'"{DIGESTS[0].hex()}"', '"opaque"']) is None


def test_bare_etag_is_normalized() -> None:
    assert bare_etag('"ABC-2"') == bare_etag("abc-2") == "abc-2"
