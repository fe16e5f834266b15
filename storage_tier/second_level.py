"""The second level of a server: blocks that were moved out of memory, on a disk.

DIRECTORY/SERVER/...      one sealed file a block, as in memory
"""

from __future__ import annotations

import os
from pathlib import Path

from storage_tier.blocks import Block, delete_file, prune, scan
from storage_tier.budget import show_bytes
from storage_tier.directory import make_directory
from storage_tier.errors import OutOfMemory
from storage_tier.headers import BlockInfo
from storage_tier.writer import BlockWriter


class SecondLevel:
    """The blocks of one server on a disk. Not thread-safe, but for `copy`: the tier holds its lock."""

    def __init__(self, directory: Path, server_id: str, limit_bytes: int | None) -> None:
        """Take this server's folder, made if missing, and list what it holds.

        Args:
            directory: on a disk; several servers may have the same.
            limit_bytes: the most that this server keeps there; None: what the disk has.
        """
        self.directory = Path(os.path.abspath(directory)) / server_id
        make_directory(self.directory)
        prune(self.directory)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.limit_bytes = limit_bytes
        self.blocks: dict[str, BlockInfo] = {}
        self.used_bytes = 0
        found, self.damaged = scan(self.directory)
        for info in found:
            self.add(info)

    def copy(self, block: Block) -> BlockInfo:
        """Write a block of memory here, whole and safe from a power failure; it is not listed yet. Waits for the disk.

        Raises:
            OutOfMemory: the disk is full, or the limit is reached.
        """
        path = block.info.path
        with BlockWriter(self.directory, path, block.metadata) as writer:
            if self.limit_bytes is not None and self.used_bytes + block.info.file_bytes > self.limit_bytes:
                raise OutOfMemory(
                    f"{path} does not fit into the second level in {self.directory}: {show_bytes(self.used_bytes)} of "
                    f"{show_bytes(self.limit_bytes)} are used. Give it more, or remove files"
                )
            writer.write(block.data)
            # Else a power failure could leave a header that is whole over bytes that are not.
            os.fsync(writer.fd)
            return writer.commit()

    def add(self, info: BlockInfo) -> None:
        """List a block."""
        self.blocks[info.path] = info
        self.used_bytes += info.file_bytes

    def delete(self, path: str) -> bool:
        """Remove a block's file and take it off the list; whether there was one."""
        info = self.blocks.pop(path, None)
        if info is not None:
            self.used_bytes -= info.file_bytes
        return delete_file(self.directory, path)
