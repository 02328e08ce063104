"""The bytes of bentos and models, on disk or in S3."""
