"""The one SQLite database: opening, migrating, and surviving what can happen to a file.

What lies in it can be made again (answers by content) or is small (what the user dismissed). So a file that
is broken is set aside and made anew, with a warning, and the work goes on. Everything here blocks: call it
off-loaded. One connection is shared by all threads, behind a lock.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from nexo_lsp.errors import StorageError

_log = logging.getLogger(__name__)

T = TypeVar("T")

Value = str | int | float | bytes | None
Row = tuple[Any, ...]

FILE_NAME = "nexo.db"
"""The database's name inside the state folder."""

# How long one server waits for another that is writing.
_BUSY_S = 5.0

_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_REASONS = {
    sqlite3.SQLITE_READONLY: "it is read-only; give yourself write permission to it, or move it by NEXO_HOME",
    sqlite3.SQLITE_PERM: "it may not be written; give yourself write permission, or move it by NEXO_HOME",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; see that its folder exists and can be written",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk reports an error; check it, or move the file by NEXO_HOME",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; end it, or try again",
    sqlite3.SQLITE_LOCKED: "another program keeps it locked; end it, or try again",
}


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. A step that was released is never changed; a new one follows it."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        "0001-answers-and-dismissed",
        (
            # `key` is a digest of everything that the answer depends on; `used` is when it last served.
            "CREATE TABLE answers (key TEXT PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL, "
            "created REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID",
            "CREATE INDEX answers_by_use ON answers (used)",
            "CREATE TABLE dismissed (finding TEXT PRIMARY KEY, created REAL NOT NULL) WITHOUT ROWID",
        ),
    ),
)


class Transaction:
    """What may be done between BEGIN and COMMIT."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement; the number of rows that it changed."""
        return self._connection.execute(sql, values).rowcount

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """The rows of one SELECT."""
        return self._connection.execute(sql, values).fetchall()


class Database:
    """The database at `path`, opened (and made, with its folder) at the first use; in memory for None."""

    def __init__(
        self,
        path: Path | None,
        *,
        migrations: Sequence[Migration] = MIGRATIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._migrations = tuple(migrations)
        self._clock = clock
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement in a transaction of its own; the number of rows that it changed.

        Raises `StorageError`.
        """
        return self._work(lambda connection: Transaction(connection).execute(sql, values))

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """The rows of one SELECT. Raises `StorageError`."""
        return self._work(lambda connection: Transaction(connection).query(sql, values))

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Several statements that happen together or not at all. Raises `StorageError`."""
        with self._lock:
            # Asks for the connection the way that survives a broken file; what follows cannot be repeated.
            connection = self._work(lambda connection: connection)
            try:
                with _begun(connection):
                    yield Transaction(connection)
            except sqlite3.Error as error:
                raise self._mapped(error) from error

    def close(self) -> None:
        """Let go of the file; a later call opens it again (a database in memory begins empty)."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return work(self._open())
            except sqlite3.Error as error:
                if self.path is None or not _is_broken(error):
                    raise self._mapped(error) from error
                reason = str(error)
            except OSError as error:
                raise StorageError(f"The database {self.path} cannot be used: {error}") from error
            try:
                self._set_aside(self.path, reason)
                return work(self._open())
            except (sqlite3.Error, OSError) as error:
                raise self._mapped(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                ":memory:" if self.path is None else self.path,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                # Readers and one writer do not wait for each other; where the file system cannot do it
                # (some network drives), SQLite stays with its ordinary journal by itself.
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                connection.execute("PRAGMA synchronous = NORMAL")
                self._migrate(connection)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone()
        if known and self._pending(connection) == ():
            return
        with _begun(connection):
            connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied REAL)")
            # Asked again inside the transaction: another server may have migrated meanwhile.
            for migration in self._pending(connection):
                for statement in migration.statements:
                    connection.execute(statement)
                connection.execute("INSERT INTO migrations VALUES (?, ?)", (migration.name, self._clock()))

    def _pending(self, connection: sqlite3.Connection) -> tuple[Migration, ...]:
        applied = {name for (name,) in connection.execute("SELECT name FROM migrations")}
        return tuple(migration for migration in self._migrations if migration.name not in applied)

    def _set_aside(self, path: Path, reason: str) -> None:
        """Rename a broken file, unless another server has done so already and made a new one."""
        from filelock import FileLock

        self.close()
        with FileLock(path.with_name(path.name + ".lock"), timeout=_BUSY_S):
            if not _is_broken_file(path):
                return
            stamp = datetime.fromtimestamp(self._clock()).strftime("%Y%m%d-%H%M%S")
            aside = path.with_name(f"{path.name}.broken-{stamp}")
            path.replace(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        _log.warning("The database %s is broken (%s); it was set aside as %s.", path, reason, aside.name)

    def _mapped(self, error: Exception) -> StorageError:
        place = "in memory" if self.path is None else str(self.path)
        code = _code(error)
        reason = _REASONS.get(code & 0xFF if code is not None else -1, str(error))
        return StorageError(f"The database {place} cannot be used: {reason}.")


@contextmanager
def _begun(connection: sqlite3.Connection) -> Generator[None]:
    # IMMEDIATE takes the write lock at once: a read that becomes a write later could not wait for it.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        # A full disk may show only here, and leaves the transaction open.
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _code(error: Exception) -> int | None:
    return getattr(error, "sqlite_errorcode", None)


def _is_broken(error: Exception) -> bool:
    code = _code(error)
    return code is not None and code & 0xFF in _BROKEN


def _is_broken_file(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()
            return answer != ("ok",)
    except sqlite3.Error as error:
        return _is_broken(error)
