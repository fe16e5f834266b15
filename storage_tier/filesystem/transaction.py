"""Transactions of the filesystem: what is written inside is published at the end, all or nothing, at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsspec.transaction import Transaction

from storage_tier.errors import InvalidRequest
from storage_tier.filesystem.lookup import TierLookup
from storage_tier.filesystem.writer import TierWriter, commit_all


class TierTransaction(Transaction):  # type: ignore[misc]
    """Files that are written inside of `with fs.transaction:` are published at its end: all, or none if one is refused.

    One transaction of the catalog: whoever looks sees none of them or all, and so does who comes after a server was
    killed. What is removed, moved or copied inside is done at once.
    """

    fs: Any
    """Until it is over."""

    def complete(self, commit: bool = True) -> None:
        """Publish all files, or drop them all. The transaction is over in any case.

        Of a path that was written several times, only the last is published.

        Raises:
            What refused the first file that was refused; InvalidRequest: a file is still open, or a path was written
            several times and one of these was to be exclusive or to follow a certain version: nothing was published.
            Unreachable, DeadlineExceeded: all may have been published, or none.
        """
        fs: TierLookup = self.fs
        files: list[TierWriter] = list(self.files)
        self.files.clear()
        try:
            if commit:
                commit_all(_last_of_each([file for file in files if not file.is_discarded]))
        finally:
            for file in files:
                file.discard()
            fs._intrans = False
            fs._transaction = None
            self.fs = None


def _last_of_each(files: Sequence[TierWriter]) -> list[TierWriter]:
    last: dict[str, TierWriter] = {}
    for file in files:
        if not file.closed:
            raise InvalidRequest(f"{file.path} is still open at the end of its transaction: close it inside")
        earlier = last.pop(file.path, None)
        if earlier is not None and (earlier.is_conditional or file.is_conditional):
            raise InvalidRequest(
                f"{file.path} was written twice in one transaction, and one of these was to be published only where "
                "nothing is, or over a certain version: write it once"
            )
        last[file.path] = file
    return list(last.values())
