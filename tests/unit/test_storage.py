from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from nexo_lsp.errors import StorageError
from nexo_lsp.storage import MIGRATIONS, Database, Migration

NOTES = Migration("0002-notes", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",))
INSERT = "INSERT INTO dismissed VALUES (?, ?)"


def test_opened_and_made_with_its_folder_at_first_use(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "nexo.sqlite3"
    database = Database(path)
    assert not path.parent.exists()
    assert database.execute(INSERT, ("f1", 1.0)) == 1
    assert database.query("SELECT finding FROM dismissed") == [("f1",)]
    assert database.query("PRAGMA journal_mode") == [("wal",)]
    database.close()
    database.close()
    assert database.query("SELECT finding FROM dismissed") == [("f1",)]
    database.close()


def test_in_memory() -> None:
    database = Database(None)
    assert database.query("SELECT count(*) FROM answers") == [(0,)]
    database.close()


def test_migrations_are_applied_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "db"
    old = Database(path, clock=lambda: 5.0)
    old.execute(INSERT, ("f1", 1.0))
    old.close()
    new = Database(path, migrations=(*MIGRATIONS, NOTES), clock=lambda: 6.0)
    assert new.query("SELECT name, applied FROM migrations ORDER BY name") == [
        (MIGRATIONS[0].name, 5.0),
        (NOTES.name, 6.0),
    ]
    assert new.query("SELECT finding FROM dismissed") == [("f1",)]
    new.close()
    # An older server opens what a newer one has migrated.
    assert old.query("SELECT count(*) FROM notes") == [(0,)]
    old.close()


def test_migration_names_are_in_order_and_unique() -> None:
    names = [migration.name for migration in MIGRATIONS]
    assert names == sorted(set(names))


def test_a_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    bad = Migration("0002-bad", ("CREATE TABLE half (x)", "CREATE TABLE half (x)"))
    database = Database(tmp_path / "db", migrations=(*MIGRATIONS, bad))
    with pytest.raises(StorageError):
        database.query("SELECT 1")
    good = Database(tmp_path / "db")
    assert good.query("SELECT name FROM sqlite_master WHERE name = 'half'") == []
    good.close()


def test_a_transaction_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    with database.transaction() as transaction:
        transaction.execute(INSERT, ("a", 1.0))
        transaction.execute(INSERT, ("b", 1.0))
    with pytest.raises(ZeroDivisionError), database.transaction() as transaction:
        transaction.execute(INSERT, ("c", 1.0))
        raise ZeroDivisionError
    with pytest.raises(StorageError), database.transaction() as transaction:
        transaction.execute(INSERT, ("d", 1.0))
        transaction.execute(INSERT, ("a", 1.0))
    assert database.query("SELECT finding FROM dismissed ORDER BY 1") == [("a",), ("b",)]
    database.close()


def test_many_threads_share_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")

    def write(worker: int) -> None:
        for index in range(20):
            with database.transaction() as transaction:
                transaction.execute(INSERT, (f"{worker}-{index}", 1.0))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.query("SELECT count(*) FROM dismissed") == [(80,)]
    database.close()


def test_two_processes_open_a_new_one_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nexo_lsp.storage import Database\n"
        "database = Database(Path(sys.argv[1]))\n"
        "for i in range(20):\n"
        "    database.execute('INSERT INTO dismissed VALUES (?, 1)', (sys.argv[2] + str(i),))\n"
    )
    path = tmp_path / "db"
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(path), word], stderr=subprocess.PIPE, text=True)
        for word in ("a", "b", "c")
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    database = Database(path)
    assert database.query("SELECT count(*) FROM dismissed") == [(60,)]
    database.close()


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this is not a database at all" * 100)
    database = Database(path, clock=lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        database.execute(INSERT, ("f1", 1.0))
    assert database.query("SELECT finding FROM dismissed") == [("f1",)]
    database.close()
    (aside,) = tmp_path.glob("db.broken-*")
    assert aside.read_bytes().startswith(b"this is not")
    assert aside.name in caplog.text


def test_a_file_that_breaks_later_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "db"
    database = Database(path)
    for index in range(2000):
        database.execute(INSERT, (f"finding number {index}", 1.0))
    database.close()
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        # The first page, which holds the schema, stays; the tables' own pages are overwritten.
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with caplog.at_level(logging.WARNING):
        assert database.query("SELECT finding FROM dismissed") == []
    assert "set aside" in caplog.text
    database.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be used"):
        Database(tmp_path / "file" / "db").query("SELECT 1")


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        Database(tmp_path / "db").query("SELECT 1")


def test_a_read_only_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    database.execute(INSERT, ("f1", 1.0))
    # Root may write everything, so the refusal comes from SQLite itself.
    database.query("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="read-only"):
        database.execute(INSERT, ("f2", 1.0))
    assert database.query("SELECT finding FROM dismissed") == [("f1",)]
    database.close()


def test_a_full_disk(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="disk is full"):
        database.execute("INSERT INTO answers VALUES ('k', 'review', ?, 1, 1)", ("x" * 100_000,))
    assert database.query("SELECT count(*) FROM answers") == [(0,)]
    database.close()


def test_a_wrong_statement_is_a_storage_error_too() -> None:
    database = Database(None)
    with pytest.raises(StorageError, match="no such table"):
        database.query("SELECT * FROM nowhere")
    database.close()


def test_a_healthy_file_is_never_set_aside(tmp_path: Path) -> None:
    """Another server may have mended it between our error and our turn."""
    path = tmp_path / "db"
    database = Database(path)
    database.execute(INSERT, ("f1", 1.0))
    database._set_aside(path, "a mistake")
    assert database.query("SELECT finding FROM dismissed") == [("f1",)]
    assert list(tmp_path.glob("*.broken-*")) == []
    database.close()


def test_a_commit_that_fails_leaves_no_transaction_behind(tmp_path: Path) -> None:
    # Where there is no write-ahead log (some network drives), a reader can keep a writer from committing.
    path = tmp_path / "db"
    database = Database(path)
    database.query("SELECT 1")
    with database.transaction() as work, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        work.execute(INSERT, ("kept", 1.0))
        assert reader.execute("SELECT count(*) FROM dismissed").fetchone() == (0,)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        database.query("PRAGMA journal_mode = DELETE")
        database.query("PRAGMA busy_timeout = 0")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM dismissed").fetchall()
        with pytest.raises(StorageError, match="locked"), database.transaction() as work:
            work.execute(INSERT, ("refused", 1.0))
    with database.transaction() as work:
        work.execute(INSERT, ("later", 1.0))
    assert database.query("SELECT finding FROM dismissed ORDER BY finding") == [("kept",), ("later",)]
    database.close()
