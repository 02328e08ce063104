"""The asyncio-native client for BentoCloud and Yatai registries."""

from async_bento._version import __version__

__all__ = ["__version__"]
