"""A registry to run yourself: `LocalRegistry` serves the API of Yatai. `async-bento registry serve` starts it."""

from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry

__all__ = ["LocalRegistry", "S3Bucket"]
