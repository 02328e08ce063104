"""A registry to run yourself."""

from async_bento.registry.local import LocalRegistry

__all__ = ["LocalRegistry"]
