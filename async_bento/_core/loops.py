"""The running event loop, or an error with a remedy; for the resources and connections of a client."""

from __future__ import annotations

import asyncio

from async_bento.errors import ConfigError


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop; without one, as under trio, ConfigError states a remedy."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise ConfigError(
            "cannot run: there is no running event loop of asyncio (trio is not supported). "
            "Await the call under asyncio.run, or use BentoAPI in a thread."
        ) from error
