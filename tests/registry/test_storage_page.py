"""The tested storages in the documentation are those of the nox sessions."""

from __future__ import annotations

import re
from pathlib import Path

from tests.registry import s3_stores
from tests.registry.storage_page import PAGE, read_table

NOXFILE = Path(__file__).parents[2] / "noxfile.py"

NOT_TRIED = {"AWS S3", "Cloudflare R2", "Google Cloud Storage", "Backblaze B2"}


def named(tried: str) -> set[str]:
    return {name for name, row in read_table().items() if row["tried"] == tried}


def body_of(session: str) -> str:
    found = re.search(rf"^def {session}\(.*?\n(?=\n\n|\Z)", NOXFILE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


def test_page_lists_tried_storages():
    assert named("`nox -s stores`") == set(s3_stores.NAMES)
    assert named("`nox -s backends`") == {"SeaweedFS"}
    assert named("by hand") == {"MinIO"}
    assert named("read, not tried") == NOT_TRIED
    assert len(read_table()) == len(s3_stores.NAMES) + 2 + len(NOT_TRIED)


def test_sessions_match_page():
    stores = body_of("stores")
    assert '"tests/registry/test_stores.py", "-m", "stores"' in stores
    assert f"s3rver@{re.search(r'stores` tests (3[.0-9]+), a server for development', PAGE.read_text())[1]}" in stores
    assert '"s3 or postgres"' in body_of("backends")
