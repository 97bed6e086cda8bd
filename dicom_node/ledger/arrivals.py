"""An image's entry into the ledger: the two statements that run for every image.

Part of the ledger (`Ledger.add_instance`). SQLAlchemy compiles them once and the driver runs them: by way of its
`execute`, what SQLite does in 0.1 ms takes 0.4 (docs/decisions/0017).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from sqlalchemy import Dialect, and_, bindparam, exists, or_
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from dicom_node.ledger.schema import PATIENCE, Store, instance, study
from dicom_node.study import Instance, State

#: Seconds to wait for the other associations of this process; the database's own patience comes on top.
_TURN = 10.0
#: Seconds after which a busy SQLite is asked again: at first, and at the latest.
_LOOK_AGAIN, _AT_THE_LATEST = 0.0001, 0.005
#: PostgreSQL: objects of one UID wait for each other here; two at once would not see that the other comes first.
_ONE_BY_ONE = "select pg_advisory_xact_lock(hashtextextended(%s, 0))"


class Arrivals:
    """Enters objects and lets their studies grow."""

    def __init__(self, store: Store) -> None:
        self._store, self._engine = store, store.engine
        self._entry, self._growth = _entry(store), _growth(store)
        self._quick_entry, self._quick_growth = (Prepared(s, store.engine.dialect) for s in (self._entry, self._growth))
        self._is_sqlite = store.engine.dialect.name == "sqlite"
        self._one_at_a_time = Lock()
        self._kept: PoolProxiedConnection | None = None

    def enter_new(self, new: Instance) -> bool:
        """Enter an object; False, and nothing is done, where its UID stands here already.

        Raises:
            OperationalError: the database failed.
        """
        values = _values(new)
        with self._transaction() as cursor:
            if not self._is_sqlite:  # which has one writer anyway
                cursor.execute(_ONE_BY_ONE, (new.sop_instance_uid,))
            entered = self._quick_entry.run(cursor, values).fetchone()
            if entered is None or entered[0]:
                cursor.connection.rollback()
                return False
            self._quick_growth.run(cursor, values)
            cursor.connection.commit()
        return True

    def enter(self, connection: Connection, new: Instance) -> Any:
        """A row whose `conflict` says whether its UID came before with other bytes; None: it stands here already."""
        return connection.execute(self._entry, _values(new)).first()

    def grow(self, connection: Connection, new: Instance, by: int = 1) -> None:
        """The object's study has so many more, and is open again."""
        values = {"new_study_uid": new.study_uid, "new_peer": new.peer, "new_received_at": new.received_at}
        connection.execute(self._growth, {**values, "new_by": by})

    def mention(self, connection: Connection, new: Instance, reason: str) -> None:
        """The object's study is known from now on, although there is nothing to label."""
        at = {"first_at": new.received_at, "last_at": new.received_at}
        values = {"study_uid": new.study_uid, "state": State.UNLABELLED, "reason": reason, "peer": new.peer, **at}
        connection.execute(self._store.insert(study).values(**values, instances=0).on_conflict_do_nothing())

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A driver's cursor; what the driver raises, connecting included, is raised as SQLAlchemy's."""
        failures = self._engine.dialect.loaded_dbapi.Error
        connected = self._turn() if self._is_sqlite else self._pooled()
        try:
            with connected as cursor:
                yield cursor
        except failures as error:
            raise OperationalError("enter an object", None, error) from error

    @contextmanager
    def _pooled(self) -> Iterator[Any]:
        with _sound(self._engine.raw_connection()) as connection:
            yield connection.cursor()
        connection.close()

    @contextmanager
    def _turn(self) -> Iterator[Any]:
        """Of SQLite's one connection in this process that enters objects, its transaction begun."""
        if not self._one_at_a_time.acquire(timeout=_TURN):
            raise OperationalError("enter an object", None, TimeoutError("the database is locked"))
        try:
            kept, self._kept = self._kept, None
            with _sound(kept or self._impatient()) as connection:
                cursor = connection.cursor()
                _begin(cursor, time.monotonic() + PATIENCE)
                yield cursor
            self._kept = connection
        finally:
            self._one_at_a_time.release()

    def _impatient(self) -> PoolProxiedConnection:
        """A connection that says at once that the database is busy."""
        connection = self._engine.raw_connection()
        connection.cursor().execute("pragma busy_timeout = 0")
        return connection


@contextmanager
def _sound(connection: PoolProxiedConnection) -> Iterator[PoolProxiedConnection]:
    """Nobody uses it again where it failed."""
    try:
        yield connection
    except BaseException:
        connection.invalidate()
        raise


def _begin(cursor: Any, deadline: float) -> None:
    """Begin to write. Others are done in 0.1 ms; SQLite by itself would look again after 1, 2, 5 ... 100."""
    pause = _LOOK_AGAIN
    while True:
        try:
            cursor.execute("begin immediate")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the rest tells what it is busy with
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 1.5, _AT_THE_LATEST)


class Prepared:
    """A statement in a database's own language, and what becomes of an object's values."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        binds = {name: bind for bind, name in compiled.bind_names.items()}
        treats = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        fixed = {name: (treats[name] or _unchanged)(bind.value) for name, bind in binds.items() if not bind.required}
        order: Sequence[str] = compiled.positiontup or []
        places = list(enumerate(order)) if order else [(name, name) for name in binds]
        self._sql = str(compiled)
        self._values: Any = [fixed.get(name) for name in order] if order else fixed
        self._open = [(place, name, treats[name] or _unchanged) for place, name in places if binds[name].required]

    def run(self, cursor: Any, values: Mapping[str, Any]) -> Any:
        """Run it with a value for every parameter that it was made with."""
        chosen = self._values.copy()
        for place, name, treat in self._open:
            chosen[place] = treat(values[name])
        return cursor.execute(self._sql, chosen)


def _unchanged(value: Any) -> Any:
    return value


def _values(new: Instance) -> dict[str, Any]:
    values = {f"new_{name}": value for name, value in new.__dict__.items()}
    return {**values, "new_path": str(new.path), "new_by": 1}


def _entry(store: Store) -> Any:
    """INSERT of an object."""
    values: dict[str, Any] = {
        name: bindparam(f"new_{name}", type_=instance.c[name].type) for name in Instance.__dataclass_fields__
    }
    named = instance.alias()
    other = and_(named.c.sop_instance_uid == values["sop_instance_uid"], named.c.digest != values["digest"])
    values["conflict"] = or_(values["conflict"], exists().where(other, ~named.c.conflict))
    return store.insert(instance).values(values).on_conflict_do_nothing().returning(instance.c.conflict)


def _growth(store: Store) -> Any:
    """INSERT of a study, or its growth by an object."""
    study_uid, peer, received_at = (
        bindparam(f"new_{name}", type_=instance.c[name].type) for name in ("study_uid", "peer", "received_at")
    )
    by = bindparam("new_by", type_=study.c.instances.type)
    common = {"state": State.RECEIVING, "reason": "", "peer": peer, "last_at": received_at}
    defaults = {c.name: c.default.arg for c in study.columns if isinstance(c.default, ScalarElementColumnDefault)}
    fresh = {**defaults, **common, "study_uid": study_uid, "instances": 1, "first_at": received_at}
    grown = {**common, "instances": study.c.instances + by, "attempts": 0, "next_at": 0.0, "fence": study.c.fence + 1}
    statement = store.insert(study).values(fresh)
    return statement.on_conflict_do_update(index_elements=[study.c.study_uid], set_=grown)
