"""What the node has issued on each series: reports, with the sheets and rejection notes beside them, and their order.

Part of the ledger (`Ledger.issued`). A report is entered with all that is owed for it, or not at all; one that has a
successor stays, and says by which it is superseded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.engine import Connection

from dicom_node.ledger.deliveries import Deliveries
from dicom_node.ledger.schema import Store, delivery, report
from dicom_node.study import Kind, WrittenReport
from dicom_node.uids import sheet_uid


class Issued:
    """Written reports in the ledger's store."""

    def __init__(self, store: Store, deliveries: Deliveries) -> None:
        self.store, self._deliveries = store, deliveries

    def enter(self, connection: Connection, written: WrittenReport, destinations: Iterable[str]) -> str:
        """Enter a report, sheet or note, and owe it to every destination.

        What a report succeeds is superseded by it, and so is the sheet to that. Returns the report that had superseded
        it before: this one's rival, if it is another.
        """
        values = {
            "sop_instance_uid": written.sop_instance_uid,
            "kind": written.kind,
            "sop_class_uid": written.sop_class_uid,
            "study_uid": written.study_uid,
            "source_series_uid": written.source_series_uid,
            "content": written.content,
            "path": str(written.path),
            "created_at": self.store.clock(),
            "summary": written.summary,
        }
        connection.execute(self.store.insert(report).values(values).on_conflict_do_nothing())
        self._deliveries.enter(connection, written, destinations)
        return _supersede(connection, written.predecessor, written.sop_instance_uid) if written.predecessor else ""

    @staticmethod
    def put_last(connection: Connection, sop_instance_uid: str, rival: str) -> None:
        """Let the newest of the reports that follow from `rival` be superseded by this one."""
        while rival:
            rival = _supersede(connection, rival, sop_instance_uid)

    def report(self, sop_instance_uid: str) -> WrittenReport | None:
        """The report with this UID, superseded or not."""
        return self._newest(report.c.sop_instance_uid == sop_instance_uid)

    def sheet(self, sop_instance_uid: str) -> WrittenReport | None:
        """The sheet with this UID."""
        return self._newest(report.c.sop_instance_uid == sop_instance_uid, Kind.SHEET)

    def known_as(self, sop_instance_uid: str) -> WrittenReport | None:
        """The report that has this UID or was sent under it."""
        sent = select(delivery.c.report_uid).where(delivery.c.sent_uid == sop_instance_uid)
        return self._newest(or_(report.c.sop_instance_uid == sop_instance_uid, report.c.sop_instance_uid.in_(sent)))

    def current(self, study_uid: str, source_series_uid: str) -> WrittenReport | None:
        """The newest report on a series."""
        return self._newest(and_(_on(study_uid, source_series_uid), report.c.superseded_by == ""))

    def of_study(self, study_uid: str) -> list[WrittenReport]:
        """All reports on a study, the oldest first."""
        return [_written(row) for row in self._reports(report.c.study_uid == study_uid)]

    def first_study(self, source_series_uid: str) -> str:
        """The study whose series of this UID was reported first, for two may share it; empty where none was."""
        first = self._reports(report.c.source_series_uid == source_series_uid)
        return str(first[0]["study_uid"]) if first else ""

    def successor_of(self, sop_instance_uid: str) -> str:
        """The report that supersedes this one, or the one to which this is the sheet; empty where none does."""
        wanted = select(report.c.superseded_by).where(report.c.sop_instance_uid == sop_instance_uid)
        with self.store.engine.connect() as connection:
            return str(connection.execute(wanted).scalar() or "")

    def earlier(self, study_uid: str, source_series_uid: str, report_uid: str) -> list[WrittenReport]:
        """The reports on a series that this one succeeds, or will, the oldest first."""
        rows = self._reports(_on(study_uid, source_series_uid))
        before = {row["superseded_by"]: row for row in rows}
        uid = report_uid if any(row["sop_instance_uid"] == report_uid for row in rows) else ""
        chain: list[WrittenReport] = []
        while (row := before.get(uid)) is not None:
            chain.insert(0, _written(row))
            uid = row["sop_instance_uid"]
        return chain

    def has(self, sop_instance_uid: str) -> bool:
        """Is it one of ours, of whatever kind, or a report as it was sent?"""
        wanted = select(report.c.kind).where(report.c.sop_instance_uid == sop_instance_uid)
        with self.store.engine.connect() as connection:
            found = connection.execute(wanted).first()
        return found is not None or self.known_as(sop_instance_uid) is not None

    def _reports(self, condition: Any) -> list[Any]:
        wanted = select(report).where(condition, report.c.kind == Kind.REPORT).order_by(report.c.created_at)
        with self.store.engine.connect() as connection:
            return list(connection.execute(wanted).mappings())

    def _newest(self, condition: Any, kind: Kind = Kind.REPORT) -> WrittenReport | None:
        wanted = select(report).where(condition, report.c.kind == kind).order_by(report.c.created_at.desc()).limit(1)
        with self.store.engine.connect() as connection:
            row = connection.execute(wanted).mappings().first()
        return _written(row) if row else None


def _on(study_uid: str, source_series_uid: str) -> Any:
    """Of this study: two patients' images may carry one Series Instance UID, and their reports are no revisions."""
    return and_(report.c.study_uid == study_uid, report.c.source_series_uid == source_series_uid)


def _supersede(connection: Connection, earlier: str, newer: str) -> str:
    """Let a report, and the sheet to it, be superseded; returns what had superseded it before, if that is another."""
    key = and_(report.c.sop_instance_uid.in_([earlier, sheet_uid(earlier)]), report.c.superseded_by == "")
    connection.execute(update(report).where(key).values(superseded_by=newer))
    return overtaken_by(connection, earlier, newer)


def overtaken_by(connection: Connection, earlier: str, newer: str) -> str:
    """What has superseded a report, if that is another than `newer`."""
    found = select(report.c.superseded_by).where(report.c.sop_instance_uid == earlier)
    first = str(connection.execute(found).scalar() or "")
    return "" if first == newer else first


def _written(row: Any) -> WrittenReport:
    return WrittenReport(
        sop_instance_uid=row["sop_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        study_uid=row["study_uid"],
        source_series_uid=row["source_series_uid"],
        content=row["content"],
        path=Path(row["path"]),
        predecessor=None,
        summary=row["summary"],
        kind=Kind(row["kind"]),
    )
