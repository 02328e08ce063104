"""Which storages of a registry a client can reach: transfers go through the registry where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

GATEWAY_ERRORS = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""Statuses by which a proxy reports that it cannot reach the server that it forwards a request to."""


@dataclass
class Storages:
    """What one client knows of the storages behind presigned URLs, by scheme, host and port.

    Fields:
        reached: The servers that have answered a request of this client: the registry and storages.
        unreachable: Why the others cannot be reached from this machine; transfers go through the registry instead.
    """

    reached: set[str] = field(default_factory=set[str])
    unreachable: dict[str, str] = field(default_factory=dict[str, str])
