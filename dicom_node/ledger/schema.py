"""The ledger's tables and engine (SQLAlchemy Core); the same for SQLite and PostgreSQL.

A change here needs a step in `migrations`; a new column a `server_default`, for the rows that there are.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    Text,
    TypeDecorator,
    and_,
    create_engine,
    event,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import ConfigurationError
from dicom_node.study import OPEN, Delivery, State

#: Seconds that a writer waits for its turn.
PATIENCE = 30
#: Seconds since the epoch.
Clock = Callable[[], float]


class Words(TypeDecorator[str]):
    """Text from outside, safe everywhere: PostgreSQL refuses NUL, lone surrogates and more than a column holds."""

    impl = String
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if value.isascii() and value.isprintable() and len(value) <= (self.length or len(value)):
            return str(value)
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()[: self.length]


class Prose(Words):
    """The same, of any length."""

    impl = Text
    cache_ok = True


metadata = MetaData()

#: One row per object in the spool; `digest` is of the data set, so the same object sent twice is one row. `absent` says
#: why its file is no longer there (`study.Absent`).
instance = Table(
    "instance",
    metadata,
    Column("sop_instance_uid", Words(64), primary_key=True),
    Column("digest", Words(64), primary_key=True),
    Column("study_uid", Words(64), nullable=False),
    Column("series_uid", Words(64), nullable=False),
    Column("sop_class_uid", Words(64), nullable=False),
    Column("transfer_syntax_uid", Words(64), nullable=False),
    Column("modality", Words(16), nullable=False),
    Column("patient_key", Words(64), nullable=False),
    Column("path", Prose, nullable=False),
    Column("size", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("peer", Words(64), nullable=False),
    Column("calling_ae", Words(16), nullable=False),
    Column("conflict", Boolean, nullable=False),
    Column("absent", Words(16), nullable=False, server_default=""),
    Column("accession_key", Words(64), nullable=False, server_default=""),
)
Index("instance_by_study", instance.c.study_uid)

#: One row per study: where it stands, and the lease of whoever works on it. `promised_at` is when its scanner was last
#: told that we answer for its images (storage commitment).
study = Table(
    "study",
    metadata,
    Column("study_uid", Words(64), primary_key=True),
    Column("state", Words(16), nullable=False),
    Column("reason", Prose, nullable=False, default=""),
    Column("peer", Words(64), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("prepared_at", Float, nullable=False, default=0.0, server_default="0"),
    Column("completed_by", Prose, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("rung_at", Float, nullable=False, default=0.0),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),
    Column("promised_at", Float, nullable=False, server_default="0"),
)
Index("study_by_state", study.c.state, study.c.next_at)

#: Instances that carry no label, and why.
not_labelled = Table(
    "not_labelled",
    metadata,
    Column("sop_instance_uid", Words(64), primary_key=True),
    Column("study_uid", Words(64), nullable=False),
    Column("series_uid", Words(64), nullable=False),
    Column("peer", Words(64), nullable=False),
    Column("reason", Prose, nullable=False),
    Column("detail", Prose, nullable=False, default=""),
)
Index("not_labelled_by_study", not_labelled.c.study_uid)

#: Reports that lie in the spool, the sheets and notes beside them, and answers about storage commitment;
#: `superseded_by` names a report's next revision, at its sheet too.
report = Table(
    "report",
    metadata,
    Column("sop_instance_uid", Words(64), primary_key=True),
    Column("kind", Words(16), nullable=False),
    Column("sop_class_uid", Words(64), nullable=False),
    Column("study_uid", Words(64), nullable=False),
    Column("source_series_uid", Words(64), nullable=False),
    Column("content", Words(64), nullable=False),
    Column("path", Prose, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("superseded_by", Words(64), nullable=False, default=""),
    Column("summary", Prose, nullable=False, default=""),
)
Index("report_by_series", report.c.source_series_uid)
Index("report_by_study", report.c.study_uid)

#: Every report to every destination; at `stumbles` of its attempts the destination failed on this very object.
delivery = Table(
    "delivery",
    metadata,
    Column("report_uid", Words(64), primary_key=True),
    Column("destination", Words(64), primary_key=True),
    Column("study_uid", Words(64), nullable=False),
    Column("state", Words(24), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("rung_at", Float, nullable=False, default=0.0),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),
    Column("detail", Prose, nullable=False, default=""),
    Column("sent_at", Float, nullable=False, default=0.0),
    Column("sent_uid", Words(64), nullable=False, default=""),
    Column("transaction_uid", Words(64), nullable=False, default=""),
    Column("stumbles", Integer, nullable=False, default=0, server_default="0"),
)
Index("delivery_by_state", delivery.c.state, delivery.c.next_at)
Index("delivery_by_transaction", delivery.c.transaction_uid)
Index("delivery_by_destination", delivery.c.destination, delivery.c.state, delivery.c.next_at)
Index("delivery_by_lease", delivery.c.lease_until)
Index("delivery_by_study", delivery.c.study_uid)

#: Modality Performed Procedure Steps; `images` are the SOP Instance UIDs that the scanner says it has made (JSON).
performed_step = Table(
    "performed_step",
    metadata,
    Column("sop_instance_uid", Words(64), primary_key=True),
    Column("study_uid", Words(64), nullable=False),
    Column("peer", Words(64), nullable=False),
    Column("status", Words(16), nullable=False),
    Column("images", Prose, nullable=False),
    Column("changed_at", Float, nullable=False),
)
Index("performed_step_by_study", performed_step.c.study_uid)

#: How many objects of a study an archive said it holds, and when.
archive_count = Table(
    "archive_count",
    metadata,
    Column("study_uid", Words(64), primary_key=True),
    Column("peer", Words(64), primary_key=True),
    Column("objects", Integer, nullable=False),
    Column("counted_at", Float, nullable=False),
)

#: How destinations answer: one that fails too often in a row rests, then is tried with one delivery at a time.
destination = Table(
    "destination",
    metadata,
    Column("name", Words(64), primary_key=True),
    Column("failures", Integer, nullable=False, default=0),
    Column("rests_until", Float, nullable=False, default=0.0),
    Column("detail", Prose, nullable=False, default=""),
)

#: What people said about reports: disputes and corrections (`audit.Remark`).
remark = Table(
    "remark",
    metadata,
    Column("sop_instance_uid", Words(64), primary_key=True),
    Column("kind", Words(16), nullable=False),
    Column("report_uid", Words(64), nullable=False),
    Column("study_uid", Words(64), nullable=False),
    Column("said_by", Prose, nullable=False, default=""),
    Column("note", Prose, nullable=False, default=""),
    Column("changes", Prose, nullable=False, default="{}"),
    Column("path", Prose, nullable=False),
    Column("heard_at", Float, nullable=False),
)
Index("remark_by_report", remark.c.report_uid)

#: Every process's last sign of life.
pulse = Table(
    "pulse",
    metadata,
    Column("process", Words(128), primary_key=True),
    Column("doing", Prose, nullable=False),
    Column("seen_at", Float, nullable=False),
)

#: Who knocked and was not let in, and objects that were refused.
refusal = Table(
    "refusal",
    metadata,
    Column("calling_ae", Words(16), primary_key=True),
    Column("called_ae", Words(16), primary_key=True),
    Column("host", Words(64), primary_key=True),
    Column("reason", Words(256), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", Float, nullable=False),
)


def said_by_driver(error: SQLAlchemyError) -> str:
    """The first line of what the database's driver said."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def open_engine(url: str, patience: int = 10) -> Engine:
    """An engine with the settings that the promises need.

    What was to be written stands in no error: it may name a patient. SQLite in WAL mode, writers queueing up to 30 s.
    PostgreSQL over connections that are tried before use, notice a dead server within a minute, and wait no longer than
    SQLite does for a lock, so that a process that stands still holds nobody up for ever.

    Args:
        patience: seconds in which a server must take a connection.
    Raises:
        ConfigurationError: the driver is not installed, or there is no place for the file.
    """
    if not url.startswith("sqlite"):
        return _postgresql(url.replace("postgresql://", "postgresql+psycopg://", 1), patience)
    file = make_url(url).database
    try:
        Path(file or "").parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"the ledger {file}: {error.strerror}; set another `home` or `ledger`") from error
    engine = create_engine(url, connect_args={"timeout": PATIENCE}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        _to_wal(connection)
        connection.execute("pragma synchronous=normal")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin immediate")

    return engine


def _to_wal(connection: Any) -> None:
    """The switch to WAL waits for no lock by itself, as all else does; processes that start at once meet here."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("pragma journal_mode=wal")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _postgresql(url: str, patience: int) -> Engine:
    noticing = {"connect_timeout": patience, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    try:
        bounds = {**noticing, "tcp_user_timeout": 60_000}
        engine = create_engine(url, pool_pre_ping=True, connect_args=bounds, hide_parameters=True)
    except ImportError as error:
        raise ConfigurationError(
            'a ledger on PostgreSQL needs psycopg, which is not installed: in the checkout, pip install ".[postgresql]"'
        ) from error

    @event.listens_for(engine, "connect")
    def _bound(connection: Any, _: Any) -> None:
        connection.execute(f"set lock_timeout = '{PATIENCE}s'")
        connection.execute("set idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    return engine


# Whoever changes rows of several kinds takes destinations first, then deliveries, then studies, in the order of their
# keys: PostgreSQL ends two who wait for each other with an error. SQLite has one writer anyway.


def in_turn(condition: Any) -> Any:
    """Deliveries of this condition, for an UPDATE of many: whoever else works on one is waited for in the one order."""
    key = delivery.c.report_uid, delivery.c.destination
    return tuple_(*key).in_(select(*key).where(condition).order_by(*key).with_for_update())


def lock_study(connection: Connection, study_uid: str) -> None:
    """Wait for whoever else decides about this study, until the transaction ends."""
    connection.execute(study.select().where(study.c.study_uid == study_uid).with_for_update())


@dataclass(frozen=True)
class Store:
    """An engine, and the time; what both halves of the ledger ask alike."""

    engine: Engine
    clock: Clock

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ON CONFLICT, in the dialect of this database."""
        return (postgresql if self.engine.dialect.name == "postgresql" else sqlite).insert(table)

    def due(self, columns: Select[Any], table: Any, states: Sequence[str], ring_again: float) -> Sequence[Row[Any]]:
        """Rows in one of these states that nobody works on and whose bell is silent: never rung, or for so long."""
        now = self.clock()
        silent = or_(table.c.rung_at < now - ring_again, table.c.rung_at < table.c.next_at, table.c.rung_at > now)
        wanted = and_(table.c.state.in_(states), table.c.next_at <= now, table.c.lease_until <= now, silent)
        with self.engine.connect() as connection:
            return connection.execute(columns.where(wanted).order_by(table.c.next_at).limit(200)).all()

    def set_right(self, longest_pause: float, lease_seconds: float) -> int:
        """Moments that lie further ahead than any wait may: the clock was set back since; they are drawn near.

        Args:
            longest_pause: between two attempts, seconds.
            lease_seconds: of a study's or a delivery's lease.
        Returns how many were moved.
        """
        furthest = (
            (destination.c.rests_until, true(), longest_pause),
            (delivery.c.next_at, delivery.c.state == Delivery.WAITING, max(longest_pause, 300.0)),
            (delivery.c.next_at, delivery.c.state == Delivery.AWAITED, 86400.0),
            (delivery.c.lease_until, delivery.c.state.in_(OPEN), lease_seconds),
            (study.c.last_at, study.c.state == State.RECEIVING, 0.0),
            (study.c.next_at, study.c.state == State.QUEUED, longest_pause),
            (study.c.lease_until, study.c.state == State.LABELLING, lease_seconds),
        )
        with self.engine.begin() as connection:
            now = self.clock()  # no earlier: others write leases while we wait for our turn
            return sum(_drawn_near(connection, moment, which, now + wait) for moment, which, wait in furthest)


def _drawn_near(connection: Connection, moment: Column[float], which: Any, furthest: float) -> int:
    beyond = and_(which, moment > furthest)
    return connection.execute(moment.table.update().where(beyond).values({moment: furthest})).rowcount
