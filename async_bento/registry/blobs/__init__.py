"""The bytes of items, on disk or in S3."""
