"""A registry to run yourself, on a directory or on an S3 bucket."""

from async_bento.registry.s3_backend import S3Bucket
from async_bento.registry.server import LocalRegistry

__all__ = ["LocalRegistry", "S3Bucket"]
