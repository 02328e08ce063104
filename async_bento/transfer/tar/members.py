"""The headers of a tar, combined into members; the caller skips, writes or hashes the content between them."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from async_bento.errors import UnsafeArchiveError
from async_bento.transfer.tar.headers import EXTENSIONS, parse_block, parse_extension, parse_member
from async_bento.transfer.tar.safety import LimitExceededError

if TYPE_CHECKING:
    from async_bento.config import Limits
    from async_bento.transfer.tar.headers import Member

BLOCK = tarfile.BLOCKSIZE
END_BLOCKS = 2
"""Blocks of zeros that end a tar (POSIX.1-1988, ustar)."""

REMEDY = "Push the item again from a clean copy."
LIMIT_REMEDY = "Raise this limit only for a source you trust."

_ZEROS = bytes(BLOCK)


class MemberParser:
    """Combines header blocks and the payloads of extended headers into members that have passed every check.

    `members` counts them, `last_name` is for messages, and `extension_size` is the size in bytes of the payload that
    `add_extension` needs before the next block; None where the next block is a header.
    """

    def __init__(self, limits: Limits, members: int = 0) -> None:
        self.members = members
        self.last_name: str | None = None
        self.extension_size: int | None = None
        self._limits = limits
        self._extension_type = b""
        self._end_blocks = 0
        self._described = 0  # bytes of extended headers before the next member
        self._records: dict[str, str] = {}

    @property
    def is_ended(self) -> bool:
        """Whether the blocks at the end of the tar were parsed."""
        return self._end_blocks == END_BLOCKS

    def add_block(self, block: bytes) -> Member | None:
        """Parse the next header block; None for an extended header, and at the end of the tar."""
        if block == _ZEROS:
            if self._described:
                raise UnsafeArchiveError("the tar ends after an extended header without a member")
            self._end_blocks += 1
            return None
        if self._end_blocks:  # readers disagree: some end at one block of zeros, some at two
            raise UnsafeArchiveError("a block of zeros is between members of the tar")
        header = parse_block(block)
        self.last_name = header.name
        if header.type in EXTENSIONS:
            self._described += BLOCK + header.size  # the block counts, or a flood of empty headers would be free
            if self._described > self._limits.header:
                raise LimitExceededError(
                    f"the extended headers of a tar member take more than {self._limits.header} bytes (Limits.header)"
                )
            self._extension_type, self.extension_size = header.type, header.size
            return None
        member = parse_member(header, self._records, self._limits)
        self.last_name, self._described, self._records = member.name, 0, {}
        self.members += 1
        if self.members > self._limits.members:
            raise LimitExceededError(f"the tar has more than {self._limits.members} members (Limits.members)")
        return member

    def add_extension(self, payload: bytes) -> None:
        """Parse the payload of an extended header."""
        records = parse_extension(self._extension_type, payload)
        # Readers disagree about which of two headers counts, so a checker may see another tar than an extractor.
        if any(self._records.get(keyword, value) != value for keyword, value in records.items()):
            raise UnsafeArchiveError("two extended headers describe one tar member differently")
        self._records.update(records)
        self.extension_size = None
