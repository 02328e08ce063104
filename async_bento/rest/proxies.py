"""The proxy of a request: that of the client, or that of the environment as httpx and curl find it."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from async_bento.errors import ConfigError

_EXCLUDED = re.compile(r"(?:(?P<scheme>\w+)://)?(?:\[(?P<ipv6>[^]]+)\]|(?P<host>[^:]+))(?::(?P<port>\d+))?")

_SYSTEM = "the settings of the system"


def check_proxy(proxy: str, source: str) -> str:
    """Return a proxy's URL, with a scheme; raise ConfigError, which shows no password, if it cannot be used."""
    if "://" not in proxy:  # curl accepts it without a scheme, too
        proxy = f"http://{proxy}"
    invalid = ConfigError(
        f"invalid proxy in {source}: it is not the URL of a proxy. Use a URL like http://proxy.example.com:3128."
    )
    try:
        url = URL(proxy)
        usable = url.scheme in {"http", "https"} and bool(url.host and url.port) and not re.search(r"\s", proxy)
    except ValueError:
        raise invalid from None  # the cause quotes the URL, which may hold a password
    if url.scheme.startswith("socks"):
        raise ConfigError(
            f"cannot use the proxy in {source}: SOCKS proxies are not supported. "
            "Use the URL of an HTTP proxy instead, or exclude the host by NO_PROXY."
        )
    if not usable:
        raise invalid
    return proxy


def proxy_of_environment(url: URL) -> str | None:
    """The proxy that `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` names for a URL, unless `NO_PROXY` excludes its host.

    aiohttp's `trust_env` would also read netrc and send its password to the storage.
    """
    proxies = getproxies()
    # `getproxies` strips `_proxy` from the names: ALL_PROXY is `all`, and NO_PROXY `no`.
    scheme = url.scheme if url.scheme in proxies else "all"
    proxy = proxies.get(scheme, "").strip()
    # `proxy_bypass` has the exceptions in the settings of macOS and of Windows.
    if not proxy or _is_excluded(url, proxies.get("no", "")) or proxy_bypass(url.host or ""):
        return None
    names = [name for name, value in os.environ.items() if value]  # Windows has only those in upper case
    source = next((name for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()) if name in names), _SYSTEM)
    return check_proxy(proxy, source)


def _is_excluded(url: URL, no_proxy: str) -> bool:
    """Whether `NO_PROXY` has a URL's host: by name, domain, address or network, with or without a scheme and a port."""
    return any(_matches(url, entry.strip()) for entry in no_proxy.split(",") if entry.strip())


def _matches(url: URL, entry: str) -> bool:
    if entry == "*":
        return True
    parts = _EXCLUDED.fullmatch(entry)
    host = entry if parts is None else parts["ipv6"] or parts["host"]  # None: an IPv6 address without brackets
    if parts is not None:
        if parts["scheme"] not in {None, "all", url.scheme}:
            return False
        if parts["port"] is not None and int(parts["port"]) != url.port:
            return False
    try:
        return ip_address(url.host or "") in ip_network(host, strict=False)
    except ValueError:  # a name, in the URL or in the entry
        domain = host.lstrip("*.").rstrip(".").lower()
        name = (url.host or "").rstrip(".").lower()
        return bool(domain) and (name == domain or name.endswith(f".{domain}"))
