"""Receivers take turns at SQLite: they look again soon, and give up where somebody never ends."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from dicom_node.ledger.arrivals import _begin


def failure(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = code
    return error


class Cursor:
    """Fails as it is told, then begins."""

    def __init__(self, *failures: sqlite3.OperationalError) -> None:
        self.failures, self.asked = list(failures), 0

    def execute(self, _: str) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT])
def test_whatever_sqlite_is_busy_with_is_waited_for(code: int) -> None:
    cursor = Cursor(failure(code), failure(code))
    _begin(cursor, time.monotonic() + 10)
    assert cursor.asked == 3


def test_another_failure_is_no_reason_to_wait() -> None:
    cursor = Cursor(failure(sqlite3.SQLITE_FULL))
    with pytest.raises(sqlite3.OperationalError):
        _begin(cursor, time.monotonic() + 10)
    assert cursor.asked == 1


def test_nobody_is_waited_for_beyond_the_deadline() -> None:
    cursor = Cursor(*(failure(sqlite3.SQLITE_BUSY) for _ in range(100_000)))
    with pytest.raises(sqlite3.OperationalError):
        _begin(cursor, time.monotonic() + 0.05)


def test_a_writer_is_followed_as_soon_as_it_is_done(tmp_path: Path) -> None:
    def connected() -> sqlite3.Connection:
        made = sqlite3.connect(tmp_path / "turns.sqlite", timeout=0, isolation_level=None, check_same_thread=False)
        made.execute("pragma journal_mode = wal")
        return made

    first, second = connected(), connected()
    first.execute("begin immediate")
    threading.Timer(0.1, first.commit).start()
    _begin(second.cursor(), time.monotonic() + 10)
    assert second.in_transaction
    assert not first.in_transaction
