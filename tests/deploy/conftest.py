"""SeaweedFS, PostgreSQL and Caddy for the tests of the compose file; without its program, a test is skipped."""

from __future__ import annotations

import shutil

from tests.registry.conftest import HAS_POSTGRES, HAS_S3, credentials, postgres_server, weed

__all__ = ["credentials", "postgres_server", "weed"]

collect_ignore = [] if HAS_S3 and HAS_POSTGRES else ["test_compose.py"]
collect_ignore += [] if shutil.which("caddy") else ["test_caddyfile.py"]
