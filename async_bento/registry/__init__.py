"""A registry to run yourself."""

from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry

__all__ = ["LocalRegistry", "S3Bucket"]
