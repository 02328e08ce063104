"""Endpoints and origins, and the redaction of URLs in messages."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from async_bento.errors import ConfigError

_QUERY = re.compile(r"(\bhttps?://[^\s?\"'<>]+)\?[^\s\"'<>]+", re.IGNORECASE)


def without_queries(text: str) -> str:
    """Replace the query of every URL in a text by `?…`: the query of a presigned URL is a secret."""
    return _QUERY.sub(r"\1?…", text)


_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without spaces and backslashes
_USER = re.compile(r"//[^/?#]*@")


def check_endpoint(endpoint: str) -> str:
    """Return an endpoint without a trailing slash or `/api/v1`; raise ConfigError if it is no plain URL of a server."""
    shown = _USER.sub("//", without_queries(endpoint))
    invalid = ConfigError(
        f"invalid endpoint {shown!r}: it is not the URL of a server. Use a URL like https://registry.example.com."
    )
    if not _PLAIN.fullmatch(endpoint):  # urlsplit drops line breaks and accepts URLs that aiohttp rejects
        raise invalid
    try:
        parts = urlsplit(endpoint)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # an invalid port, an unclosed bracket, an empty label of the host name
        raise invalid from None  # the cause may quote a password
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise invalid
    if parts.username is not None or "?" in endpoint or "#" in endpoint:  # also without a text after it
        raise ConfigError(
            f"invalid endpoint on {parts.hostname}: it has a user name, a query or a fragment. Remove that part."
        )
    return endpoint.rstrip("/").removesuffix("/api/v1").rstrip("/")


def origin(url: str) -> str:
    """Return a URL's scheme, host and port (RFC 6454), without the default port; a token is bound to its origin."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = default if parts.port is None else parts.port
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname  # urlsplit drops the brackets
    return f"{parts.scheme}://{host}" + ("" if port == default else f":{port}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
