"""The URL at which a client reaches the registry, which presigned URLs of the registry begin with.

Behind a proxy, only the proxy knows that URL: it is configured, or read from the headers of proxies that are trusted.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING

from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

log = logging.getLogger(__package__)


class BaseUrl:
    """Finds the URL at which the client of a request reaches the registry."""

    def __init__(self, public_url: str | None = None, forwarded_allow_ips: Iterable[str] = ()) -> None:
        self.public_url = public_url and check_endpoint(public_url)
        self._proxies = TrustedProxies(forwarded_allow_ips)
        self._has_warned = False

    @property
    def is_behind_proxy(self) -> bool:
        """Whether the arguments describe a proxy."""
        return self.public_url is not None or bool(self._proxies)

    def find(self, request: web.BaseRequest) -> str:
        """Return the URL without a trailing slash; raise `BadRequestError` if the headers name no host."""
        if self.public_url is not None:
            return self.public_url
        # Without this header, request.host would resolve a name on the event loop.
        scheme, host, prefix = request.scheme, request.headers.get("Host", ""), ""
        if self._proxies.trusts(request.remote):
            scheme, host, prefix = _forwarded(request, scheme, host)
        elif not self._proxies and scheme == "http" and _forwarded(request, scheme, host)[0] == "https":
            self._warn()
        if not host:
            raise BadRequestError("cannot presign a URL: the request has no Host header. Send one.")
        try:
            return check_endpoint(f"{scheme}://{host}{prefix}")
        except ConfigError as error:
            raise BadRequestError("cannot presign a URL: the headers of the request name no valid host.") from error

    def client_address(self, request: web.BaseRequest) -> str:
        """Return the IP address of the client: that of the peer, or the one that trusted proxies name."""
        address = request.remote or ""
        forwarded = [each.strip() for each in ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")]
        # From the right, where each proxy appends its peer: a client may have written the entries on the left itself.
        while forwarded and self._proxies.trusts(address):
            address = forwarded.pop() or address
            # With `*`, the walk would end at the leftmost entry.
            if self._proxies.trusts_all:
                break
        return address

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "a proxy with TLS forwards requests, but the registry presigns http URLs: it does not know the URL of "
                "the proxy. Pass --public-url, or --forwarded-allow-ips with the address of the proxy."
            )


class TrustedProxies:
    """The addresses whose forwarded headers are used: IP addresses, networks, or `*` for all."""

    def __init__(self, addresses: Iterable[str]) -> None:
        if isinstance(addresses, str):
            addresses = addresses.split(",")
        given = [address.strip() for address in addresses if address.strip()]
        self._all = "*" in given
        try:
            self._networks = [ipaddress.ip_network(each, strict=False) for each in given if each != "*"]
        except ValueError as error:
            raise ConfigError(
                f"invalid forwarded_allow_ips: {error}. Use IP addresses, networks like 10.0.0.0/8, or *."
            ) from error

    @property
    def trusts_all(self) -> bool:
        """Whether the headers of any peer are used."""
        return self._all

    def __bool__(self) -> bool:
        return self._all or bool(self._networks)

    def trusts(self, address: str | None) -> bool:
        """Whether the headers of a peer are used."""
        if self._all:
            return True
        try:
            peer = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        # A dual-stack socket reports an IPv4 peer as ::ffff:10.0.0.1.
        mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
        return any((mapped or peer) in network for network in self._networks)


def _forwarded(request: web.BaseRequest, scheme: str, host: str) -> tuple[str, str, str]:
    """Return scheme, host and path prefix that the client used: of `X-Forwarded-*`, or of `Forwarded` (RFC 7239)."""

    def first(name: str) -> str:  # the client's; further proxies append theirs
        return request.headers.get(name, "").partition(",")[0].strip()

    forwarded: tuple[Mapping[str, str], ...] = request.forwarded
    standard: Mapping[str, str] = forwarded[0] if forwarded else {}
    scheme = first("X-Forwarded-Proto") or standard.get("proto") or scheme
    host = first("X-Forwarded-Host") or standard.get("host") or host
    prefix = first("X-Forwarded-Prefix").strip("/")
    return scheme.lower(), host, f"/{prefix}" if prefix else ""
