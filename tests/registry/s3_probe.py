"""Requests that show what a storage does, for its row in the documentation."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import ClientError

from async_bento._core.s3 import bare_etag, etag_of_parts
from async_bento.registry.blobs.bucket import connect
from tests.builders import MiB, random_bytes

SECONDS_TO_CONTINUE = 3
"""Seconds until a server counts as one that never sends `100 Continue`."""


async def probe(endpoint: str, bucket: str) -> dict[str, str]:
    """Return the cells of a storage, with the credentials of the environment."""
    async with connect(endpoint, None) as (client, _), aiohttp.ClientSession() as session:
        where = {"Bucket": bucket, "Key": f"probe/{uuid.uuid4().hex}"}
        bodies = [random_bytes(5 * MiB), b"end"]
        upload = {**where, "UploadId": (await client.create_multipart_upload(**where))["UploadId"]}
        etags = []
        for number, body in enumerate(bodies, 1):
            sent = await client.upload_part(**upload, PartNumber=number, Body=io.BytesIO(body))
            etags.append(sent["ETag"])
        assert [bare_etag(each) for each in etags] == [hashlib.md5(body).hexdigest() for body in bodies]
        lists = []
        with suppress(ClientError):
            listed = (await client.list_parts(**upload)).get("Parts", [])
            lists += ["parts"] if len(listed) == len(bodies) else []
        with suppress(ClientError):
            uploads = (await client.list_multipart_uploads(Bucket=bucket)).get("Uploads", [])
            lists += ["uploads"] if upload["UploadId"] in {each["UploadId"] for each in uploads} else []
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        etag = (await client.head_object(**where))["ETag"]
        names = {
            etag_of_parts(etags): "MD5 of the MD5s of the parts",
            f'"{hashlib.md5(b"".join(bodies)).hexdigest()}"': "MD5 of all bytes",
        }
        if_match = wrong_checksum = "ignored"
        try:
            await client.get_object(**where, IfMatch=f'"{"0" * 32}"')
        except ClientError:
            if_match = "yes"
        try:
            await client.put_object(
                **{**where, "Key": f"{where['Key']}-2"}, Body=io.BytesIO(b"x"), ChecksumCRC32="AAAAAA=="
            )
        except ClientError:
            wrong_checksum = "refused"
        get = await client.generate_presigned_url("get_object", Params=where)
        async with session.get(get, headers={"Range": "bytes=1-3"}) as response:
            assert await response.read() == bodies[0][1:4]
            ranged = str(response.status)
        put = await client.generate_presigned_url("put_object", Params=where)
        return {
            "ETag of an upload in parts": names.get(etag, "opaque"),
            "lists": " and ".join(lists) or "neither",
            "`If-Match`": if_match,
            "range": ranged,
            "`100 Continue`": await _asks_for_body(put),
            "wrong checksum": wrong_checksum,
        }


async def _asks_for_body(url: str) -> str:
    """Whether a server sends `100 Continue` to a request that expects it."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        headers = f"Host: {parts.netloc}\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: close"
        writer.write(f"PUT {parts.path}?{parts.query} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        try:
            line = await asyncio.wait_for(reader.readline(), SECONDS_TO_CONTINUE)
        except asyncio.TimeoutError:
            return "no"
        return "yes" if line.split()[1:2] == [b"100"] else "no"
    finally:
        writer.close()
