"""The session of a browser: a signed cookie, and which requests may set it.

The cookie names a token by its id and an expiry, signed with the digest of the token. The cookie is valid for the pages
only: browsers send a cookie to every port of a host, and with the token itself, a thief could push and delete. Nothing
is stored, so that all copies of a registry accept it, and revoking or rotating the token ends it at once. Logging out
removes it from the browser. Somebody who can read the database could sign a cookie, but already sees there what the
pages show.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from async_bento.registry.records.base import utc_now

if TYPE_CHECKING:
    from aiohttp import web

    from async_bento.registry.records.tokens import TokenRecords
    from async_bento.registry.tokens import Token

LIFETIME = 12 * 3600
"""Seconds: people log in once on a working day."""

# Numbers that fit the columns of every database.
_SESSION = re.compile(r"(\d{1,18})\.(\d{1,12})\.[0-9a-f]{64}", re.ASCII)
_LOCAL_PATH = re.compile(r"/(?!/)[!-\[\]-~]*")
"""A path of this host: of printable ASCII, but no backslash, which browsers take for a slash."""


def create_session(token: Token, digest: str) -> str:
    """Create the cookie's value for a token, whose digest is the key."""
    return _signed(token.id, int(utc_now().timestamp()) + LIFETIME, digest)


async def find_session(value: str, records: TokenRecords) -> Token | None:
    """Return the token of a session; None if the session has expired or is forged, or the token is not valid."""
    parts = _SESSION.fullmatch(value)
    if parts is None or int(parts[2]) <= utc_now().timestamp():
        return None
    found = await records.find_by_id(int(parts[1]))
    if found is None:
        return None
    token, digest = found
    return token if hmac.compare_digest(value, _signed(token.id, int(parts[2]), digest)) else None


def _signed(token_id: int, expires_at: int, digest: str) -> str:
    claim = f"{token_id}.{expires_at}"
    return f"{claim}.{hmac.new(digest.encode(), f'pages {claim}'.encode(), 'sha256').hexdigest()}"


def cookie_name(base_url: str) -> str:
    """Return the name of the cookie, which registries on other ports of the host do not overwrite."""
    parts = urlsplit(base_url)
    return f"async_bento_{parts.port or parts.scheme}"


def is_same_origin(request: web.Request, base_url: str) -> bool:
    """Whether a form was sent by one of these pages, or by no page."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")  # browsers send no more to http:// hosts other than localhost
    return origin is None or urlsplit(origin).netloc in (urlsplit(base_url).netloc, request.headers.get("Host"))


def local_path(wanted: str) -> str:
    """Return a path of this registry, with its query, or `/` if the text could lead to another host."""
    return wanted if _LOCAL_PATH.fullmatch(wanted) else "/"
