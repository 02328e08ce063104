"""What can be told of a registry on S3 without one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from async_bento._core.s3 import etag_of_parts
from async_bento.cli import main
from async_bento.errors import ConfigError
from async_bento.registry.records.s3 import RecordCache
from async_bento.registry.s3_backend import S3Bucket
from tests.builders import MiB
from tests.cli_runner import make_runner

FORM = TypeAdapter(str)


def test_nothing_of_s3_is_imported_before_it_is_needed():
    modules = "async_bento.cli.serve, async_bento.registry"
    script = f"import {modules}, sys; print(*{{'aiobotocore', 'botocore'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Pass either --root or --s3."),
        (("--root", "here", "--s3", "bucket"), "Pass either --root or --s3."),
        (("--root", "here", "--s3-prefix", "x"), "--s3-endpoint, --s3-public-endpoint and --s3-prefix require --s3."),
        (("--s3", "bucket", "--s3-endpoint", "nowhere"), "'nowhere' is not an endpoint"),
        (("--s3", ""), "name is empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], said: str):
    result = make_runner().invoke(main, ["registry", "serve", *arguments])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [("", "s3://bucket/"), ("team", "s3://bucket/team/"), ("/team/a/", "s3://bucket/team/a/"), ("/", "s3://bucket/")],
)
def test_a_prefix_ends_with_one_slash(prefix: str, shown: str):
    assert str(S3Bucket("bucket", prefix=prefix)) == shown
    assert str(S3Bucket("bucket", prefix=prefix, endpoint="https://s3.example/")) == f"{shown} at https://s3.example"


def test_a_bucket_has_a_name():
    with pytest.raises(ConfigError, match="name is empty"):
        S3Bucket("")


def test_what_was_not_used_for_longest_is_forgotten_first():
    cache = RecordCache(100)
    for key in "abc":
        cache.put(key, "1", key.upper(), 30)
    assert cache.get(FORM, "a", "1") == "A"
    cache.put("d", "1", "D", 30)
    assert [cache.get(FORM, key, "1") for key in "abcd"] == ["A", None, "C", "D"]
    cache.put("e", "1", "E", 1000)
    assert [cache.get(FORM, key, "1") for key in "acde"] == [None] * 4
    cache.put("f", "1", "F", 100)
    assert cache.get(FORM, "f", "1") == "F"


def test_a_record_of_another_etag_is_not_known():
    cache = RecordCache(100)
    cache.put("a", "1", "old", 10)
    assert cache.get(FORM, "a", "2") is None
    cache.put("a", "2", "new", 90)
    cache.put("b", "1", "other", 10)
    assert (cache.get(FORM, "a", "2"), cache.get(FORM, "b", "1")) == ("new", "other")


def test_parts_of_an_etag_that_is_no_md5_make_none():
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
def test_a_body_is_cut_into_ten_thousand_pieces_at_most(size: int | None, expected: int):
    pytest.importorskip("aiobotocore")
    from async_bento.registry.blobs.s3 import part_size

    assert part_size(size) == expected
    assert size is None or -(-size // part_size(size)) <= 10_000
