"""The ledger's tables (SQLAlchemy Core); the same for SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

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

#: Reports that lie in the spool; `superseded_by` names the next revision.
report = Table(
    "report",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
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
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("rung_at", Float, nullable=False, default=0.0),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),
    Column("detail", Text, nullable=False, default=""),
    Column("sent_at", Float, nullable=False, default=0.0),
)
Index("delivery_by_state", delivery.c.state, delivery.c.next_at)

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
