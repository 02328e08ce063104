"""Presigned URLs of the disk storage: signing, checking and expiry.

A URL names a method, a key and an expiry time under an HMAC of all three, so that its holder may do that one thing
without the registry's token. `disk_endpoints.py` serves the URLs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from async_bento.registry.errors import ForbiddenError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "/blobs/"
"""The path below which presigned URLs are served."""


@dataclass(frozen=True)
class Grant:
    """The request that a presigned URL allows; for a whole object, `upload_id` is empty and `part_number` 0."""

    method: str
    key: str
    upload_id: str = ""
    part_number: int = 0


class Presigner:
    """Signs URLs that expire after `expiry` seconds, and checks them."""

    def __init__(self, secret: bytes, expiry: float) -> None:
        self._secret = secret
        self._expiry = expiry

    def sign(self, grant: Grant) -> str:
        """Return the path and query of a URL for a grant."""
        expires = round((time.time() + self._expiry) * 1000)
        query = {"expires": expires, "signature": self._signature(grant, expires)}
        if grant.upload_id:
            query |= {"uploadId": grant.upload_id, "partNumber": grant.part_number}
        return f"{PREFIX}{grant.key}?{urlencode(query)}"

    def check(self, method: str, key: str, query: Mapping[str, str]) -> Grant:
        """Return the grant of a request's URL; raise `ForbiddenError` if it is forged, expired or for another."""
        try:
            expires = int(query.get("expires", ""))
            grant = Grant(method, key, query.get("uploadId", ""), int(query.get("partNumber", "0")))
        except ValueError as error:
            raise ForbiddenError("access denied: the URL is not signed by this registry") from error
        signature = query.get("signature", "").encode(errors="replace")
        if not hmac.compare_digest(self._signature(grant, expires).encode(), signature):
            raise ForbiddenError("access denied: the signature does not match the request")
        if time.time() * 1000 >= expires:
            raise ForbiddenError("Request has expired")  # the wording of S3
        return grant

    def _signature(self, grant: Grant, expires: int) -> str:
        # JSON keeps the fields apart: a client chooses its upload_id, which must not imitate other fields.
        message = json.dumps([*astuple(grant), expires])
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()
