"""A registry to run yourself."""

from async_bento.registry.local import LocalRegistry
from async_bento.registry.s3 import S3Bucket

__all__ = ["LocalRegistry", "S3Bucket"]
