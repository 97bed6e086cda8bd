"""What is owed to whom: reports and sheets to archives, answers about storage commitment to scanners.

Part of the ledger (`Ledger.deliveries`), and as strict: each change of state is one conditional UPDATE, and a lease
carries a fence, so that an attempt that was overtaken leaves no trace.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from sqlalchemy import and_, select, update
from sqlalchemy.engine import Connection

from dicom_node.schema import Store, delivery, lock_study, report, study
from dicom_node.study import DONE, OPEN, Delivery, DueDelivery, Kind, State, WrittenReport

#: Seconds before what an archive did not answer for is sent again, at most.
_LONGEST_PAUSE = 300.0


class Deliveries:
    """Deliveries in the ledger's store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def enter(self, connection: Connection, written: WrittenReport, destinations: Iterable[str]) -> None:
        """Owe a report or a sheet to every destination, within the transaction that enters it."""
        for destination in destinations:
            row = {
                "report_uid": written.sop_instance_uid,
                "destination": destination,
                "study_uid": written.study_uid,
                "state": Delivery.WAITING,
            }
            connection.execute(self.store.insert(delivery).values(row).on_conflict_do_nothing())

    def retry(self, connection: Connection, study_uid: str) -> int:
        """Failed deliveries of a study wait again; how many these are."""
        failed = and_(delivery.c.study_uid == study_uid, delivery.c.state == Delivery.FAILED)
        waiting = {"state": Delivery.WAITING, "attempts": 0, "next_at": 0.0, "rung_at": 0.0}
        return connection.execute(update(delivery).where(failed).values(waiting)).rowcount

    def due(self, ring_again_seconds: float) -> list[tuple[str, str]]:
        """Waiting deliveries (report UID, destination) whose bell has been silent for so long, or was never rung."""
        columns = select(delivery.c.report_uid, delivery.c.destination)
        due = self.store.due(columns, delivery, OPEN, ring_again_seconds)
        return [(row.report_uid, row.destination) for row in due]

    def rung(self, report_uid: str, destination: str) -> None:
        """Its bell has just been rung."""
        key = and_(delivery.c.report_uid == report_uid, delivery.c.destination == destination)
        with self.store.engine.begin() as connection:
            connection.execute(update(delivery).where(key).values(rung_at=self.store.clock()))

    def claim(self, report_uid: str, destination: str, lease_seconds: float) -> DueDelivery | None:
        """Lease one delivery; None when it is done, not due, or another has it."""
        now = self.store.clock()
        key = and_(delivery.c.report_uid == report_uid, delivery.c.destination == destination)
        free = and_(key, delivery.c.state.in_(OPEN), delivery.c.next_at <= now, delivery.c.lease_until <= now)
        taken = {
            "lease_until": now + lease_seconds,
            "fence": delivery.c.fence + 1,
            "attempts": delivery.c.attempts + 1,
        }
        with self.store.engine.begin() as connection:
            if connection.execute(update(delivery).where(free).values(taken)).rowcount != 1:
                return None
            row = connection.execute(
                select(delivery.c.study_uid, delivery.c.attempts, delivery.c.fence, report.c.path, report.c.kind)
                .join(report, report.c.sop_instance_uid == delivery.c.report_uid)
                .where(key)
            ).one()
        path, kind = Path(row.path), Kind(row.kind)
        return DueDelivery(report_uid, row.study_uid, destination, path, row.attempts, row.fence, kind)

    def settle(
        self,
        due: DueDelivery,
        state: Delivery,
        detail: str,
        next_at: float = 0.0,
        sent_uid: str = "",
        transaction_uid: str = "",
    ) -> None:
        """Write down how an attempt ended; the study is SENT when all its deliveries are.

        Args:
            next_at: when it falls due again, where it is open.
            sent_uid: SOP Instance UID of the object that went out, a rendition's where the report did not itself.
            transaction_uid: under which its storage commitment was asked for.
        """
        key = and_(
            delivery.c.report_uid == due.report_uid,
            delivery.c.destination == due.destination,
            delivery.c.fence == due.fence,
        )
        values = {
            "state": state,
            "detail": detail,
            "lease_until": 0.0,
            "next_at": next_at,
            "sent_at": self.store.clock() if state in (Delivery.SENT, Delivery.AWAITED) else 0.0,
            "sent_uid": sent_uid,
            "transaction_uid": transaction_uid,
        }
        with self.store.engine.begin() as connection:
            if connection.execute(update(delivery).where(key).values(values)).rowcount == 1:
                told = f"delivery to {due.destination} failed: {detail}" if state == Delivery.FAILED else ""
                _conclude(connection, due.study_uid, told)

    # -- storage commitment ------------------------------------------------------------------------------------------

    def owe_commitment(self, uid: str, path: Path, peer: str) -> None:
        """Owe a peer the answer that lies at `path`; asked again, it is told again."""
        blank = dict.fromkeys(("sop_class_uid", "study_uid", "source_series_uid", "content"), "")
        answer = {
            "sop_instance_uid": uid,
            "kind": Kind.COMMITMENT,
            "path": str(path),
            "created_at": self.store.clock(),
            **blank,
        }
        owed = {"report_uid": uid, "destination": peer, "study_uid": "", "state": Delivery.WAITING}
        again = {"state": Delivery.WAITING, "attempts": 0, "next_at": 0.0, "rung_at": 0.0}
        with self.store.engine.begin() as connection:
            connection.execute(self.store.insert(report).values(answer).on_conflict_do_nothing())
            keys = [delivery.c.report_uid, delivery.c.destination]
            connection.execute(
                self.store.insert(delivery).values(owed).on_conflict_do_update(index_elements=keys, set_=again)
            )

    def commitment_answered(
        self, transaction_uid: str, destination: str, committed: Collection[str], failed: Mapping[str, str]
    ) -> int:
        """What a peer answers for is SENT, what it does not is sent again; how many deliveries this settled.

        Args:
            committed: SOP Instance UIDs.
            failed: SOP Instance UID -> reason.
        """
        asked = and_(
            delivery.c.transaction_uid == transaction_uid,
            delivery.c.destination == destination,
            delivery.c.state == Delivery.AWAITED,
        )
        with self.store.engine.begin() as connection:
            rows = connection.execute(select(delivery).where(asked)).all() if transaction_uid else []
            answered = [row for row in rows if row.sent_uid in committed or row.sent_uid in failed]
            for row in answered:
                if row.sent_uid in committed:
                    values = {"state": Delivery.SENT, "detail": f"{row.detail}, committed", "next_at": 0.0}
                else:
                    told = f"stored, then not committed ({failed[row.sent_uid]}); sent again"
                    again = self.store.clock() + min(_LONGEST_PAUSE, 2.0 ** min(row.attempts, 30))
                    values = {"state": Delivery.WAITING, "detail": told, "next_at": again, "rung_at": 0.0}
                key = and_(delivery.c.report_uid == row.report_uid, delivery.c.destination == destination)
                connection.execute(update(delivery).where(key).values(values))
                _conclude(connection, row.study_uid)
        return len(answered)


def _conclude(connection: Connection, study_uid: str, failure: str = "") -> None:
    """REPORTED -> SENT or QUARANTINED, as the study's deliveries stand; two last ones wait for each other."""
    lock_study(connection, study_uid)
    states = states_of(connection, study_uid)
    reported = and_(study.c.study_uid == study_uid, study.c.state == State.REPORTED)
    if states <= DONE:
        connection.execute(update(study).where(reported).values(state=State.SENT, reason=""))
    elif Delivery.FAILED in states:
        connection.execute(update(study).where(reported).values(state=State.QUARANTINED, reason=failure))


def states_of(connection: Connection, study_uid: str) -> set[str]:
    """States of all deliveries of a study."""
    return set(connection.execute(select(delivery.c.state).where(delivery.c.study_uid == study_uid)).scalars())
