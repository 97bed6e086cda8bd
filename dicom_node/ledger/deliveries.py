"""What is owed to whom: reports and sheets to archives, answers about storage commitment to scanners.

Part of the ledger (`Ledger.deliveries`), and as strict: each change of state is one conditional UPDATE, and a lease
carries a fence, so that an attempt that was overtaken leaves no trace, but for what it learnt of its destination.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Row, and_, false, func, literal, or_, select, true, update
from sqlalchemy.engine import Connection

from dicom_node.ledger.destinations import Destinations
from dicom_node.ledger.schema import Prose, Store, delivery, in_turn, lock_study, report, study
from dicom_node.study import (
    DONE,
    OPEN,
    Delivery,
    Dismissal,
    DueDelivery,
    Kind,
    State,
    WrittenReport,
)

#: Seconds before what an archive did not answer for is sent again, at most.
_LONGEST_PAUSE = 300.0
#: How the reason begins for which a study is quarantined when one of its deliveries fails.
_UNDELIVERED = "delivery to"
#: How the reason begins of a study that is SENT, and no report of it anywhere.
UNSENT = "nothing of it was delivered"


class Deliveries:
    """Deliveries in the ledger's store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.destinations = Destinations(store)

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

    def retry(self, connection: Connection, condition: Any, given_up: Sequence[Delivery] = (Delivery.FAILED,)) -> int:
        """Failed deliveries wait again, and their studies with them; how many these are."""
        failed = and_(condition, delivery.c.state.in_(given_up))
        again = {"state": Delivery.WAITING, "attempts": 0, "stumbles": 0, "next_at": 0.0, "rung_at": 0.0}
        changed = update(delivery).where(in_turn(failed)).values(again).returning(delivery.c.study_uid)
        studies = list(connection.execute(changed).scalars())
        lock_studies(connection, studies)
        done = study.c.state.in_([State.SENT, State.PURGED]) if Delivery.DISMISSED in given_up else false()
        stuck = and_(study.c.study_uid.in_(set(studies)), or_(is_undelivered(), done))
        connection.execute(update(study).where(stuck).values(state=State.REPORTED, reason=""))
        return len(studies)

    def retry_all(self, to: str | None = None, report_uid: str | None = None) -> int:
        """A person's word: what failed or waits, as far as it fits, is tried now; how many these are.

        What a person has dismissed is tried only where the report is named.
        """
        wanted = fitting(to, report_uid)
        given_up = [Delivery.FAILED] if report_uid is None else [Delivery.FAILED, Delivery.DISMISSED]
        waiting = and_(wanted, delivery.c.state == Delivery.WAITING)
        with self.store.engine.begin() as connection:
            self.destinations.wake(connection, to)
            due = connection.execute(update(delivery).where(in_turn(waiting)).values(next_at=0.0, rung_at=0.0)).rowcount
        with self.store.engine.begin() as connection:
            return due + self.retry(connection, wanted, given_up)

    def dismiss(
        self, word: Dismissal, to: str | None = None, report_uid: str | None = None, waiting: bool = False
    ) -> int:
        """A person's word: what failed, as far as it fits, need not arrive; how many these are.

        Their studies are SENT where nothing else is owed; the answer of the archive is kept behind the person's reason.

        Args:
            waiting: what falls due again, too, but for what is under way at this moment.
        """
        given_up = delivery.c.state == Delivery.FAILED
        failed = and_(fitting(to, report_uid), or_(given_up, self.idle()) if waiting else given_up)
        told = literal(f"{word.told(self.store.clock())}; the answer was: ", Prose()) + delivery.c.detail
        values = {"state": Delivery.DISMISSED, "detail": told}
        with self.store.engine.begin() as connection:
            dismissed = update(delivery).where(in_turn(failed)).values(values).returning(delivery.c.study_uid)
            studies = list(connection.execute(dismissed).scalars())
            lock_studies(connection, studies)
            for study_uid in sorted(set(studies)):
                reopen(connection, study_uid, is_undelivered())
                conclude(connection, study_uid)
        return len(studies)

    def idle(self) -> Any:
        """Deliveries that fall due again, and that nobody works on at this moment."""
        return and_(delivery.c.state.in_(OPEN), delivery.c.lease_until <= self.store.clock())

    def owed(self) -> dict[str, int]:
        """How many deliveries wait for each destination, or failed there."""
        counted = select(delivery.c.destination, func.count()).where(delivery.c.state.in_([*OPEN, Delivery.FAILED]))
        with self.store.engine.connect() as connection:
            rows = connection.execute(counted.group_by(delivery.c.destination).order_by(delivery.c.destination))
            return {str(destination): int(count) for destination, count in rows}

    def listed(self, failed: bool = False, to: str | None = None, limit: int = 200) -> list[Row[Any]]:
        """Deliveries that are not done, or only those that failed; of one destination or all, the next ones first."""
        states = [Delivery.FAILED] if failed else [Delivery.FAILED, *OPEN]
        wanted = and_(fitting(to), delivery.c.state.in_(states))
        with self.store.engine.connect() as connection:
            return list(connection.execute(select(delivery).where(wanted).order_by(delivery.c.next_at).limit(limit)))

    def due(self, ring_again_seconds: float) -> list[tuple[str, str]]:
        """Waiting deliveries (report UID, destination) whose bell has been silent for so long, or was never rung.

        None to a destination that rests; the others take turns, so that a long queue for one hides no other's.
        """
        place = func.row_number().over(partition_by=delivery.c.destination, order_by=delivery.c.next_at)
        awake = delivery.c.destination.not_in(self.destinations.resting())
        columns = select(delivery.c.report_uid, delivery.c.destination).where(awake).order_by(place)
        due = self.store.due(columns, delivery, OPEN, ring_again_seconds)
        return [(row.report_uid, row.destination) for row in due]

    def rung(self, report_uid: str, destination: str) -> None:
        """Its bell has just been rung."""
        key = and_(delivery.c.report_uid == report_uid, delivery.c.destination == destination)
        with self.store.engine.begin() as connection:
            connection.execute(update(delivery).where(key).values(rung_at=self.store.clock()))

    def claim(
        self, destination: str, lease_seconds: float, parallel: int = 1, report_uid: str | None = None
    ) -> DueDelivery | None:
        """Lease one delivery: that of this report, else the one that fell due first.

        None where nothing is due, another has it, the destination rests, or `parallel` deliveries are under way there.
        """
        now = self.store.clock()
        fits = fitting(destination, report_uid)
        free = and_(fits, delivery.c.state.in_(OPEN), delivery.c.next_at <= now, delivery.c.lease_until <= now)
        first = select(delivery.c.report_uid).where(free).order_by(delivery.c.next_at).limit(1)
        taken = {
            "lease_until": now + lease_seconds,
            "fence": delivery.c.fence + 1,
            "attempts": delivery.c.attempts + 1,
        }
        with self.store.engine.begin() as connection:
            if not self.destinations.has_room(connection, destination, parallel):
                return None
            uid = str(connection.execute(first).scalar())
            key = and_(delivery.c.report_uid == uid, delivery.c.destination == destination)
            if connection.execute(update(delivery).where(key, free).values(taken)).rowcount != 1:
                return None
            row = connection.execute(
                select(delivery, report.c.path, report.c.kind)
                .join(report, report.c.sop_instance_uid == delivery.c.report_uid)
                .where(key)
            ).one()
        path, kind = Path(row.path), Kind(row.kind)
        return DueDelivery(uid, row.study_uid, destination, path, row.attempts, row.fence, kind, row.stumbles)

    def renew(self, due: DueDelivery, lease_seconds: float) -> bool:
        """Keep a lease; False when it is lost."""
        held = and_(fitting(due.destination, due.report_uid), delivery.c.fence == due.fence, delivery.c.lease_until > 0)
        with self.store.engine.begin() as connection:
            until = self.store.clock() + lease_seconds
            return connection.execute(update(delivery).where(held).values(lease_until=until)).rowcount == 1

    def sent_as(self, report_uid: str, destination: str) -> str:
        """Under which SOP Instance UID a destination has stored a report; empty where it has not."""
        stored = delivery.c.state.in_([Delivery.SENT, Delivery.AWAITED])
        key = and_(delivery.c.report_uid == report_uid, delivery.c.destination == destination, stored)
        with self.store.engine.connect() as connection:
            return str(connection.execute(select(delivery.c.sent_uid).where(key)).scalar() or "")

    def has(self, report_uid: str) -> bool:
        """Was this ever to be delivered to anybody?"""
        return self._any(fitting(None, report_uid))

    def is_spared(self, report_uid: str, destination: str) -> bool:
        """Does what is owed not go to this destination, since a person has said so or it was lost?"""
        gone = delivery.c.state.in_([Delivery.DISMISSED, Delivery.REDIRECTED, Delivery.LEFT_OUT])
        here = fitting(destination, report_uid)
        return self.has(report_uid) and not self._any(and_(here, ~gone))

    def still_owes(self, report_uid: str, destination: str) -> bool:
        """May a destination still get this, from us or by a person's `retry`?"""
        return self._any(and_(fitting(destination, report_uid), delivery.c.state.not_in(DONE)))

    def _any(self, condition: Any) -> bool:
        with self.store.engine.connect() as connection:
            return connection.execute(select(delivery.c.state).where(condition).limit(1)).first() is not None

    def settle(
        self,
        due: DueDelivery,
        state: Delivery,
        detail: str,
        next_at: float = 0.0,
        sent_uid: str = "",
        transaction_uid: str = "",
        rest: Callable[[int], float] | None = None,
        stumbled: bool = False,
    ) -> None:
        """Write down how an attempt ended; the study is SENT when all its deliveries are.

        Args:
            next_at: when it falls due again, where it is open.
            sent_uid: SOP Instance UID of the object that went out, a rendition's where the report did not itself.
            transaction_uid: under which its storage commitment was asked for.
            rest: given where the destination is to blame: its failures in a row -> seconds that it rests.
            stumbled: it failed on this very object.
        """
        key = and_(
            delivery.c.report_uid == due.report_uid,
            delivery.c.destination == due.destination,
            delivery.c.fence == due.fence,
            delivery.c.state.in_(OPEN),  # its commitment may have been answered meanwhile
        )
        values = {
            "state": state,
            "detail": detail,
            "lease_until": 0.0,
            "next_at": next_at,
            "sent_at": self.store.clock() if state in (Delivery.SENT, Delivery.AWAITED) else 0.0,
            "sent_uid": sent_uid,
            "transaction_uid": transaction_uid,
            "stumbles": delivery.c.stumbles + int(stumbled),
        }
        with self.store.engine.begin() as connection:
            if state in (Delivery.SENT, Delivery.AWAITED):
                self.destinations.stored(connection, due.destination)
            elif rest is not None:
                self.destinations.failed(connection, due.destination, detail, rest)
            if connection.execute(update(delivery).where(key).values(values)).rowcount == 1:
                conclude(connection, due.study_uid)

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
        again = {"state": Delivery.WAITING, "attempts": 0, "stumbles": 0, "next_at": 0.0, "rung_at": 0.0}
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
            theirs = select(delivery).where(asked).order_by(delivery.c.report_uid).with_for_update()
            rows = connection.execute(theirs).all() if transaction_uid else []
            answered = [row for row in rows if row.sent_uid in committed or row.sent_uid in failed]
            for row in answered:
                if row.sent_uid in committed:
                    values = {"state": Delivery.SENT, "detail": f"{row.detail}, committed", "next_at": 0.0}
                else:
                    told = f"stored, then not committed ({failed[row.sent_uid]}); sent again"
                    again = self.store.clock() + min(_LONGEST_PAUSE, 2.0 ** min(row.attempts, 30))
                    values = {"state": Delivery.WAITING, "detail": told, "next_at": again, "rung_at": 0.0}
                key = and_(delivery.c.report_uid == row.report_uid, delivery.c.destination == destination)
                connection.execute(update(delivery).where(key, asked).values(values))
                conclude(connection, row.study_uid)
        return len(answered)


def lock_studies(connection: Connection, study_uids: Iterable[str]) -> None:
    """Wait for whoever concludes one of these, or its new state would not be seen."""
    for study_uid in sorted(set(study_uids)):
        lock_study(connection, study_uid)


def reopen(connection: Connection, study_uid: str, condition: Any) -> None:
    """A study of this condition -> REPORTED, to be concluded."""
    key = and_(study.c.study_uid == study_uid, condition)
    connection.execute(update(study).where(key).values(state=State.REPORTED, reason=""))


def conclude(connection: Connection, study_uid: str) -> None:
    """REPORTED -> SENT or QUARANTINED, as the study's deliveries stand; two last ones wait for each other."""
    lock_study(connection, study_uid)
    states = states_of(connection, study_uid)
    reported = and_(study.c.study_uid == study_uid, study.c.state == State.REPORTED)
    if states <= DONE:
        told = unsent_because(connection, study_uid)
        connection.execute(update(study).where(reported).values(state=State.SENT, reason=told))
    elif Delivery.FAILED in states:
        told = failure_of(connection, study_uid)
        connection.execute(update(study).where(reported).values(state=State.QUARANTINED, reason=told))


def failure_of(connection: Connection, study_uid: str) -> str:
    """Why a study is laid aside of which a delivery has failed."""
    failed = and_(delivery.c.study_uid == study_uid, delivery.c.state == Delivery.FAILED)
    row = connection.execute(select(delivery.c.destination, delivery.c.detail).where(failed).limit(1)).one()
    return f"{_UNDELIVERED} {row.destination} failed: {row.detail}"


def unsent_because(connection: Connection, study_uid: str) -> str:
    """Why nothing of a study was delivered to which nothing is owed; empty where something was."""
    ended = and_(delivery.c.study_uid == study_uid, delivery.c.state.in_([Delivery.SENT, Delivery.DISMISSED]))
    rows = connection.execute(select(delivery.c.state, delivery.c.detail).where(ended)).all()
    dismissed = not any(row.state == Delivery.SENT for row in rows)
    return f"{UNSENT}: {rows[0].detail}" if rows and dismissed else ""


def is_undelivered() -> Any:
    """Studies that are laid aside because a delivery failed; labelled they are."""
    return and_(study.c.state == State.QUARANTINED, study.c.reason.startswith(_UNDELIVERED))


def fitting(destination: str | None = None, report_uid: str | None = None) -> Any:
    """Deliveries to this destination, of this report; None fits all."""
    to = true() if destination is None else delivery.c.destination == destination
    return and_(to, true() if report_uid is None else delivery.c.report_uid == report_uid)


def states_of(connection: Connection, study_uid: str) -> set[str]:
    """States of all deliveries of a study."""
    return set(connection.execute(select(delivery.c.state).where(delivery.c.study_uid == study_uid)).scalars())
