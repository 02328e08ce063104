"""The bytes of bentos and models, on disk or in S3. `registry/uploads.py` calls both by the interface in `base.py`."""
