"""The ledger's tables and engine (SQLAlchemy Core); the same for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
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
    and_,
    create_engine,
    event,
    or_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, make_url

#: Seconds since the epoch.
Clock = Callable[[], float]

metadata = MetaData()

#: One row per object in the spool; `digest` is of the data set, so the same object sent twice is one row.
instance = Table(
    "instance",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("modality", String(16), nullable=False),
    Column("patient_key", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("peer", String(64), nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("conflict", Boolean, nullable=False),
)
Index("instance_by_study", instance.c.study_uid)

#: One row per study: where it stands, and the lease of whoever works on it.
study = Table(
    "study",
    metadata,
    Column("study_uid", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("peer", String(64), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("prepared_at", Float, nullable=False, default=0.0, server_default="0"),
    Column("completed_by", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("rung_at", Float, nullable=False, default=0.0),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),
)
Index("study_by_state", study.c.state, study.c.next_at)

#: Instances that carry no label, and why.
not_labelled = Table(
    "not_labelled",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False, default=""),
)
Index("not_labelled_by_study", not_labelled.c.study_uid)

#: Reports that lie in the spool, the sheets beside them, and answers about storage commitment; `superseded_by` names
#: a report's next revision.
report = Table(
    "report",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("source_series_uid", String(64), nullable=False),
    Column("content", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("superseded_by", String(64), nullable=False, default=""),
    Column("summary", Text, nullable=False, default=""),
)
Index("report_by_series", report.c.source_series_uid)

#: Every report to every destination.
delivery = Table(
    "delivery",
    metadata,
    Column("report_uid", String(64), primary_key=True),
    Column("destination", String(64), primary_key=True),
    Column("study_uid", String(64), nullable=False),
    Column("state", String(24), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("rung_at", Float, nullable=False, default=0.0),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),
    Column("detail", Text, nullable=False, default=""),
    Column("sent_at", Float, nullable=False, default=0.0),
    Column("sent_uid", String(64), nullable=False, default=""),
    Column("transaction_uid", String(64), nullable=False, default=""),
)
Index("delivery_by_state", delivery.c.state, delivery.c.next_at)
Index("delivery_by_transaction", delivery.c.transaction_uid)

#: What people said about reports: disputes and corrections (`audit.Remark`).
remark = Table(
    "remark",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("report_uid", String(64), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("said_by", Text, nullable=False, default=""),
    Column("note", Text, nullable=False, default=""),
    Column("changes", Text, nullable=False, default="{}"),
    Column("path", Text, nullable=False),
    Column("heard_at", Float, nullable=False),
)
Index("remark_by_report", remark.c.report_uid)

#: Every process's last sign of life.
pulse = Table(
    "pulse",
    metadata,
    Column("process", String(128), primary_key=True),
    Column("doing", Text, nullable=False),
    Column("seen_at", Float, nullable=False),
)

#: Who knocked and was not let in, and objects that were refused.
refusal = Table(
    "refusal",
    metadata,
    Column("calling_ae", String(16), primary_key=True),
    Column("called_ae", String(16), primary_key=True),
    Column("host", String(64), primary_key=True),
    Column("reason", String(256), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", Float, nullable=False),
)


def open_engine(url: str) -> Engine:
    """An engine with the settings that the promises need; SQLite in WAL mode, writers queueing up to 30 s."""
    if not url.startswith("sqlite"):
        return create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1), pool_pre_ping=True)
    file = make_url(url).database
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin immediate")

    return engine


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
