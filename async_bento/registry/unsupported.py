"""The routes of BentoCloud and Yatai for what this registry does not keep: deployments, clusters, secrets, tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from async_bento.registry.errors import NotImplementedHereError

if TYPE_CHECKING:
    from typing import NoReturn

_PATHS = {
    "v1/api_tokens": "API tokens",
    "v1/clusters": "clusters",
    "v1/deployments": "deployments",
    "v1/instance_types": "instance types",
    "v1/org_secrets": "secrets",
    "v2/deployments": "deployments",
}
"""What the routes below each path are about."""


def unsupported_routes() -> list[web.AbstractRouteDef]:
    """Return routes that answer with 501 and the reason, which BentoML's commands print."""
    return [
        web.route("*", f"/api/{path}{{rest:(/.*)?}}", partial(_refuse, subject)) for path, subject in _PATHS.items()
    ]


async def _refuse(subject: str, _request: web.Request) -> NoReturn:
    raise NotImplementedHereError(f"this registry has no {subject}: it keeps bentos and models only")
