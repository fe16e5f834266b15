"""Executing a statement of SQLAlchemy Core by the driver itself: for the few statements that every operation needs.

On SQLite nine tenths of a small query's time are spent around it. What SQLAlchemy does there for every kind of
database and type is not needed for statements that are made once and move text and integers: they are compiled once
by SQLAlchemy, for the database at hand, and from then on go to the driver. Everything else may be executed as usual,
on the same connection and in the same transaction. Not for lists of parameters (`IN`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable, text
from sqlalchemy.exc import DBAPIError


class _Compiled(NamedTuple):
    text: str
    constants: Mapping[str, Any]
    """Parameters that the statement brings along."""
    order: tuple[str, ...] | None
    """The names of the parameters by position; None where the driver takes them by name."""


# The statements are constants of modules, so this stays small: one for each statement, set of columns, and dialect.
_compiled: dict[tuple[Executable, str, tuple[str, ...]], _Compiled] = {}

# Of several with one name the innermost is meant, in both databases.
_SAVEPOINT, _UNDO, _RELEASE = (
    text(f"{verb} part") for verb in ("SAVEPOINT", "ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")
)
_NONE: Mapping[str, Any] = {}


def run(connection: Connection, statement: Any, parameters: Mapping[str, Any] = _NONE) -> list[tuple[Any, ...]]:
    """All rows of a statement, as the driver gives them: on SQLite a truth value is 0 or 1.

    Args:
        connection: in a transaction.
        statement: a constant; its parameters are text, integers, truth values and None.
        parameters: by name; of an insert or update without values of its own, the columns too.

    Raises:
        DBAPIError: as SQLAlchemy would raise it.
    """
    dialect = connection.dialect
    key = (statement, dialect.name, tuple(parameters))
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = _compiled[key] = _compile(connection, statement, parameters)
    values: Any = {**compiled.constants, **parameters} if compiled.constants else parameters
    if compiled.order is not None:
        values = [values[name] for name in compiled.order]
    driver: Any = connection.connection.driver_connection
    try:
        cursor = driver.execute(compiled.text, values)
        return cursor.fetchall() if cursor.description is not None else []
    except Exception as error:
        base: Any = dialect.loaded_dbapi.Error
        if not isinstance(error, base):
            raise
        lost = dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            compiled.text, values, error, base, connection_invalidated=lost, dialect=dialect
        ) from error


@contextmanager
def part(connection: Connection) -> Iterator[None]:
    """A part of a transaction that is undone alone when it raises."""
    run(connection, _SAVEPOINT)
    try:
        yield
    except BaseException:
        # Without its connection the whole transaction is undone.
        if not connection.invalidated:
            run(connection, _UNDO)
            run(connection, _RELEASE)
        raise
    run(connection, _RELEASE)


def _compile(connection: Connection, statement: Any, parameters: Mapping[str, Any]) -> _Compiled:
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(parameters))
    constants = {name: value for name, value in compiled.params.items() if name not in parameters}
    order = compiled.positiontup
    return _Compiled(str(compiled), constants, None if order is None else tuple(order))
