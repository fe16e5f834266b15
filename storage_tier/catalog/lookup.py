"""Reading the namespace: one path, one directory, everything below a directory. Each call sees one snapshot."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from storage_tier.catalog.database import Database
from storage_tier.catalog.entries import COLUMNS, LEVEL_COUNT, Entry, Found, find, paths_of
from storage_tier.catalog.errors import PathNotDirectory
from storage_tier.catalog.execute import run
from storage_tier.catalog.paths import child, join, split
from storage_tier.catalog.schema import entry
from storage_tier.errors import InvalidRequest

DEFAULT_PAGE_COUNT = 1000

# Inside of `Lookup` the name `list` is its method.
Entries = list[Entry]

_CHILDREN = (
    select(entry.c.name, *COLUMNS)
    .where(entry.c.parent_id == bindparam("of"), entry.c.name > bindparam("after"))
    .order_by(entry.c.name)
    .limit(bindparam("count"))
)
_WAITING = select(*COLUMNS).where(entry.c.persisted == "waiting").order_by(entry.c.id).limit(bindparam("count"))


class Lookup:
    """The namespace for readers. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stat(self, path: str) -> Entry:
        """What is at a path. One query, whatever its depth (up to eight names; two up to sixteen, …).

        None on SQLite, where nothing was committed since the path was looked up last; do not change the metadata.

        Raises:
            PathNotFound, PathNotDirectory: nothing; the sentence says how far the path exists.
            InvalidPath.
        """
        names = split(path)
        if len(names) <= LEVEL_COUNT:
            return self._database.remembered(names, lambda connection: find(connection, names).existing().entry(path))
        with self._database.read() as connection:
            place = find(connection, names)
        return place.existing().entry(path)

    def exists(self, path: str) -> bool:
        """Whether something is at a path.

        Raises:
            InvalidPath.
        """
        names = split(path)
        with self._database.read(snapshot=len(names) > LEVEL_COUNT) as connection:
            return find(connection, names).found is not None

    def list(self, path: str, after: str = "", count: int | None = None) -> list[Entry]:
        """The entries of a directory, by name in byte order. Two queries.

        Args:
            path: a directory or mount point.
            after: only names behind this one: the last of the page before.
            count: at most so many; None for all.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath.
        """
        names = split(path)
        with self._database.read() as connection:
            found = find(connection, names).existing()
            _refuse_file(found, path)
            return [row.entry(child(path, name)) for name, row in _children(connection, found.id, after, count)]

    def find(self, path: str, after: str | None = None, count: int = DEFAULT_PAGE_COUNT) -> Entries:
        """A page of all that lies below a directory, each directory before what is in it, names in byte order.

        Between two pages the tree may change. What stays where it is comes exactly once; what is moved meanwhile may
        come twice or not at all.

        Args:
            path: a directory or mount point; not itself part of the answer.
            after: the path of the last entry of the page before, which may be gone meanwhile.
            count: the size of a page. One that is shorter is the last.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath; InvalidRequest: `after` is not below `path`.
        """
        top = split(path)
        behind = () if after is None else split(after)
        if after is not None and (behind[: len(top)] != top or len(behind) == len(top)):
            raise InvalidRequest(f"{after} is not below {path}, so no page of it ends there")
        with self._database.read() as connection:
            found = find(connection, top).existing()
            _refuse_file(found, path)
            # Directories still to be read: (id, path, the name after which to go on), the innermost last.
            open_: list[tuple[int, str, str]] = [(found.id, path, "")]
            # What the last page ended in is descended again, as far as it still is there.
            for depth in range(len(top), len(behind)):
                directory_id, directory, _ = open_[-1]
                open_[-1] = (directory_id, directory, behind[depth])
                row = find_child(connection, directory_id, behind[depth])
                if row is None or row.kind == "file":
                    break
                open_.append((row.id, join(behind[: depth + 1]), ""))
            return _descend(connection, open_, count)

    def waiting(self, count: int = DEFAULT_PAGE_COUNT) -> Entries:
        """Files that the under-store shall have and does not have yet (`persisted` is 'waiting'), oldest first."""
        with self._database.read() as connection:
            rows = [Found(*row) for row in connection.execute(_WAITING, {"count": count})]
            paths = paths_of(connection, [row.id for row in rows])
        return [row.entry(paths[row.id]) for row in rows]

    def committed(self, since: int, count: int = DEFAULT_PAGE_COUNT) -> Entries:
        """Files as this server committed them after a sequence, in the order of sequences.

        Of a path that was replaced or removed meanwhile there is only what is there now, if that is this server's.
        """
        with self._database.read() as connection:
            parameters = {"since": since, "server": self._database.server_id, "count": count}
            rows = [Found(*row) for row in run(connection, _COMMITTED, parameters)]
            paths = paths_of(connection, [row.id for row in rows])
        return [row.entry(paths[row.id]) for row in rows]


_COMMITTED = (
    select(*COLUMNS)
    .where(
        entry.c.sequence > bindparam("since"),
        entry.c.sequence > 0,
        entry.c.server_id == bindparam("server"),
    )
    .order_by(entry.c.sequence)
    .limit(bindparam("count"))
)
_CHILD = select(*COLUMNS).where(entry.c.parent_id == bindparam("of"), entry.c.name == bindparam("called"))


def find_child(connection: Connection, directory_id: int, name: str) -> Found | None:
    """One entry of a directory."""
    rows = run(connection, _CHILD, {"of": directory_id, "called": name})
    return Found(*rows[0]) if rows else None


def _children(connection: Connection, directory_id: int, after: str, count: int | None) -> list[tuple[str, Found]]:
    # The name of the root is '' and lies in no directory: every name is behind ''.
    parameters = {"of": directory_id, "after": after, "count": count if count is not None else 1 << 62}
    return [(row[0], Found(*row[1:])) for row in run(connection, _CHILDREN, parameters)]


def _descend(connection: Connection, open_: list[tuple[int, str, str]], count: int) -> list[Entry]:
    """The next `count` entries; `open_` are the directories to be read, the innermost last."""
    page: list[Entry] = []
    # A directory is read at most once: what is left of the page is also the most that it can give.
    levels = [(path, iter(_children(connection, of, after, count))) for of, path, after in open_]
    while levels and len(page) < count:
        directory, rows = levels[-1]
        name, row = next(rows, ("", None))
        if row is None:
            levels.pop()
            continue
        path = child(directory, name)
        page.append(row.entry(path))
        if row.kind != "file" and len(page) < count:
            levels.append((path, iter(_children(connection, row.id, "", count - len(page)))))
    return page


def _refuse_file(found: Found, path: str) -> None:
    if found.kind == "file":
        raise PathNotDirectory(f"{path} is a file, and a directory is needed")
