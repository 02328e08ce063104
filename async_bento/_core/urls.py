"""Rules for URLs: endpoints, origins, and what of a URL may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from async_bento.errors import ConfigError

_QUERY = re.compile(r"(\bhttps?://[^\s?\"'<>]+)\?[^\s\"'<>]+", re.IGNORECASE)


def without_queries(text: str) -> str:
    """Drop the query of every URL in a text: that of a presigned URL opens what it points to.

    Args:
        text: A message, an exception's text, a server's answer.

    Returns:
        The text, with `?…` in place of each query.
    """
    return _QUERY.sub(r"\1?…", text)


_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without spaces and backslashes
_USER = re.compile(r"//[^/?#]*@")


def check_endpoint(endpoint: str) -> str:
    """Check that an endpoint is the URL of a server.

    Args:
        endpoint: Like `https://cloud.bentoml.com` or `http://127.0.0.1:3000`.

    Returns:
        The endpoint without a slash at its end.

    Raises:
        ConfigError: It is no http or https URL, or holds a user name, a query or a fragment.
    """
    shown = _USER.sub("//", without_queries(endpoint))
    wrong = ConfigError(f"{shown!r} is no endpoint: it must look like https://registry.example.com")
    if not _PLAIN.fullmatch(endpoint):  # urlsplit drops line breaks, and forgives much that aiohttp does not
        raise wrong
    try:
        parts = urlsplit(endpoint)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, a bracket that is not closed, a name with an empty label
        raise wrong from None  # it may quote a password
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"the endpoint on {parts.hostname} must have no user name, query or fragment")
    return endpoint.rstrip("/")


def origin(url: str) -> str:
    """The scheme, host and port of a URL: what a token is bound to (RFC 6454).

    Args:
        url: An absolute URL.

    Returns:
        Like `https://cloud.bentoml.com`; the default port is left out.
    """
    parts = urlsplit(url)
    port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if port == default else f":{port}")
