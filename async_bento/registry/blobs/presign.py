"""URLs that open one thing for a while.

Such a URL names a method, a key, and an end of its life, under an HMAC of all of it: whoever has it may do that one
thing, without the registry's token. `storage.py` answers to them.
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
"""Where these URLs live."""


@dataclass(frozen=True)
class Grant:
    """What a presigned URL allows.

    Attributes:
        method: `GET` or `PUT`.
        key: Which object.
        upload_id: Which multipart upload; empty for a whole object.
        part_number: Which part of it, from 1; 0 for a whole object.
    """

    method: str
    key: str
    upload_id: str = ""
    part_number: int = 0


class Presigner:
    """Signs URLs, and knows its own.

    Args:
        secret: What they are signed with.
        expiry: How long they live, in seconds.
    """

    def __init__(self, secret: bytes, expiry: float) -> None:
        self._secret = secret
        self._expiry = expiry

    def sign(self, grant: Grant) -> str:
        """A URL for a grant.

        Args:
            grant: What it allows.

        Returns:
            Its path and query.
        """
        expires = round((time.time() + self._expiry) * 1000)
        query = {"expires": expires, "signature": self._signature(grant, expires)}
        if grant.upload_id:
            query |= {"uploadId": grant.upload_id, "partNumber": grant.part_number}
        return f"{PREFIX}{grant.key}?{urlencode(query)}"

    def check(self, method: str, key: str, query: Mapping[str, str]) -> Grant:
        """Read a URL that was signed here.

        Args:
            method: The request's method.
            key: The key in its path.
            query: Its query.

        Returns:
            What it allows.

        Raises:
            ForbiddenError: It was not signed here, or not for this, or has expired.
        """
        try:
            expires = int(query.get("expires", ""))
            grant = Grant(method, key, query.get("uploadId", ""), int(query.get("partNumber", "0")))
        except ValueError as error:
            raise ForbiddenError("the URL was not signed here") from error
        signature = query.get("signature", "").encode(errors="replace")
        if not hmac.compare_digest(self._signature(grant, expires).encode(), signature):
            raise ForbiddenError("the signature does not fit the request")
        if time.time() * 1000 >= expires:
            raise ForbiddenError("Request has expired")
        return grant

    def _signature(self, grant: Grant, expires: int) -> str:
        # As JSON, since no two grants may look alike, whatever a client calls its upload.
        said = json.dumps([*astuple(grant), expires])
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()
