"""The parts of the registry on S3 that need no S3 server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click import UsageError

from async_bento._core.s3 import etag_of_parts
from async_bento.cli import main
from async_bento.cli.registry import Places
from async_bento.errors import ConfigError
from async_bento.registry.s3_bucket import S3Bucket
from tests.builders import MiB
from tests.cli_runner import make_runner


def test_import_loads_no_extra():
    modules = "async_bento.cli.serve, async_bento.registry"
    extras = {"aiobotocore", "aiosqlite", "alembic", "asyncpg", "botocore", "sqlalchemy"}
    script = f"import {modules}, sys; print(*{extras} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass --root, or both --database and --s3."),
        (("--s3", "bucket"), "Pass --root, or both --database and --s3."),
        (("--database", "postgresql://localhost/x"), "Pass --root, or both --database and --s3."),
        (("--root", "here", "--s3-prefix", "x"), "--s3-endpoint, --s3-public-endpoint and --s3-prefix require --s3."),
        (("--root", "here", "--s3", "bucket", "--s3-endpoint", "nowhere"), "invalid endpoint 'nowhere'"),
        (("--root", "here", "--s3", ""), "name is empty"),
    ],
)
def test_conflicting_options_fail(arguments: tuple[str, ...], message: str):
    result = make_runner().invoke(main, ["registry", "serve", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("endpoint", "public_endpoint", "prefix"),
    [("http://s3", None, None), (None, "http://s3", None), (None, None, "team")],
)
def test_s3_options_need_bucket(endpoint: str | None, public_endpoint: str | None, prefix: str | None):
    with pytest.raises(UsageError, match="require --s3"):
        Places("here", None, None, endpoint, prefix).bucket(public_endpoint)


def test_places_name_bucket():
    assert str(Places("here", None, "bucket", "http://s3", "team").bucket()) == "s3://bucket/team/ (at http://s3)"
    assert str(Places("here", None, "bucket", None, None).bucket()) == "s3://bucket/"


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [("", "s3://bucket/"), ("team", "s3://bucket/team/"), ("/team/a/", "s3://bucket/team/a/"), ("/", "s3://bucket/")],
)
def test_prefix_ends_with_one_slash(prefix: str, shown: str):
    assert str(S3Bucket("bucket", prefix=prefix)) == shown
    assert str(S3Bucket("bucket", prefix=prefix, endpoint="https://s3.example/")) == f"{shown} (at https://s3.example)"


def test_bucket_without_name_raises():
    with pytest.raises(ConfigError, match="name is empty"):
        S3Bucket("")


def test_opaque_parts_have_no_etag():
    assert etag_of_parts(['"' + "0" * 32 + '"', '"opaque"']) is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 8 * MiB),
        (80_000 * MiB, 8 * MiB),
        (80_000 * MiB + 1, 8 * MiB + 1),
        (5 * 2**40, -(-5 * 2**40 // 10_000)),
        (None, 16 * MiB),
    ],
)
def test_part_size_limits_part_count(size: int | None, expected: int):
    pytest.importorskip("aiobotocore")
    from async_bento.registry.blobs.s3 import proxied_part_size

    assert proxied_part_size(size) == expected
    assert size is None or -(-size // proxied_part_size(size)) <= 10_000
