"""The truth about studies, reports and deliveries. Redis only rings; whatever it forgets stands here.

Every change of state is one conditional UPDATE, so that two processes never both believe that they made it. A lease
carries a fence: a worker whose fence is no longer the row's has been overtaken and its result is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, and_, delete, func, or_, select, update
from sqlalchemy.engine import Connection

from dicom_node.errors import Superseded
from dicom_node.ledger.arrivals import Arrivals
from dicom_node.ledger.deliveries import Deliveries, failure_of, states_of, unsent_because
from dicom_node.ledger.holdings import Holdings
from dicom_node.ledger.issued import Issued, overtaken_by
from dicom_node.ledger.migrations import bring_up
from dicom_node.ledger.orders import Orders
from dicom_node.ledger.performed import Performed
from dicom_node.ledger.pulses import Pulses
from dicom_node.ledger.schema import (
    Clock,
    Store,
    instance,
    lock_study,
    not_labelled,
    open_engine,
    refusal,
    remark,
    report,
    study,
)
from dicom_node.study import (
    CAME_SECOND,
    DONE,
    PASSING,
    Absent,
    Delivery,
    Instance,
    Kind,
    Lease,
    NotLabelled,
    Remark,
    RemarkKind,
    State,
    StudyRow,
    WrittenReport,
)

#: Rows about refusals; whoever knocks under ever new names fills no disk.
_REFUSALS = 2000


class Ledger:
    """Reads and writes of the ledger; `clock` gives seconds since the epoch."""

    def __init__(self, url: str, clock: Clock = time.time) -> None:
        self.store = Store(open_engine(url), clock)
        self.engine, self.clock = self.store.engine, clock
        self.deliveries, self.holdings = Deliveries(self.store), Holdings(self.store)
        self.issued, self.orders = Issued(self.store, self.deliveries), Orders(self.store, self.deliveries)
        self.performed, self.pulses = Performed(self.store), Pulses(self.store)
        self._arrivals = Arrivals(self.store)
        bring_up(self.engine)

    # -- receiving -------------------------------------------------------------------------------------------------

    def add_instance(self, new: Instance, former: Callable[[], str] | None = None) -> bool:
        """Enter an object; False when it stands here already. A new image of a study reopens it, as does one whose file
        had left the spool.

        An object whose UID came before with other bytes is kept and reported, and changes nothing else; a study of
        which nothing else has come is UNLABELLED.

        Args:
            former: tells the digest by which a former version would have entered it; asked where its UID stands here.
        """
        if self._arrivals.enter_new(new):
            return True
        if former is not None:
            new = replace(new, digest=self.holdings.digest_of(new, former))
        with self.engine.begin() as connection:
            entered = self._arrivals.enter(connection, new)
            if entered is None:
                returned = self.holdings.came_back(connection, new)
                if returned:
                    self._arrivals.grow(connection, new, by=0)
                return returned
            if entered.conflict:
                note = NotLabelled(new.sop_instance_uid, new.series_uid, CAME_SECOND)
                self._note(connection, new.study_uid, new.peer, [note])
                self._arrivals.mention(connection, new, note.reason)
            else:
                self._arrivals.grow(connection, new)
        return True

    def refuse(self, calling_ae: str, called_ae: str, host: str, reason: str) -> None:
        """Count somebody who was not let in, or an object that was refused; the latest few thousand are kept."""
        values = {
            "calling_ae": calling_ae[:16],
            "called_ae": called_ae[:16],
            "host": host[:64],
            "reason": reason[:256],
            "count": 1,
            "last_at": self.clock(),
        }
        again = {"count": refusal.c.count + 1, "last_at": values["last_at"]}
        statement = self.store.insert(refusal).values(values)
        with self.engine.begin() as connection:
            keys = [refusal.c.calling_ae, refusal.c.called_ae, refusal.c.host, refusal.c.reason]
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=again))
            kept = select(refusal.c.last_at).order_by(refusal.c.last_at.desc()).offset(_REFUSALS).limit(1)
            connection.execute(delete(refusal).where(refusal.c.last_at <= kept.scalar_subquery()))

    # -- completion and the bell -----------------------------------------------------------------------------------

    def receiving(self) -> list[StudyRow]:
        """Studies to which images are still coming."""
        return self.studies(study.c.state == State.RECEIVING)

    def complete(self, row: StudyRow, reason: str) -> bool:
        """RECEIVING -> QUEUED, unless an image has come since `row` was read."""
        same = and_(study.c.instances == row.instances, study.c.last_at == row.last_at)
        still = and_(study.c.study_uid == row.study_uid, study.c.state == State.RECEIVING, same)
        return self._change(
            still, state=State.QUEUED, completed_by=reason, lease_until=0.0, rung_at=0.0, next_at=0.0, attempts=0
        )

    def due_studies(self, ring_again_seconds: float) -> list[str]:
        """Queued studies whose bell has been silent for so long, or was never rung."""
        due = self.store.due(select(study.c.study_uid), study, [State.QUEUED], ring_again_seconds)
        return [row.study_uid for row in due]

    def rung_study(self, study_uid: str) -> None:
        self._change(study.c.study_uid == study_uid, rung_at=self.clock())

    # -- preparing a study that grows -------------------------------------------------------------------------------

    def growing(self, ring_again_seconds: float) -> list[StudyRow]:
        """Studies to which images are still coming and whose bell is silent."""
        due = self.store.due(select(study.c.study_uid), study, [State.RECEIVING], ring_again_seconds)
        return self.studies(study.c.study_uid.in_([row.study_uid for row in due])) if due else []

    def prepared(self, study_uid: str, looked_at: float) -> None:
        """All that had come of a growing study by then is prepared."""
        growing = and_(study.c.study_uid == study_uid, study.c.state == State.RECEIVING)
        self._change(growing, prepared_at=looked_at, rung_at=0.0)

    # -- working on a study ----------------------------------------------------------------------------------------

    def claim(self, study_uid: str, lease_seconds: float) -> Lease | None:
        """QUEUED -> LABELLING for one worker; None when another has it, it is not due, or there is nothing to do."""
        now = self.clock()
        free = and_(study.c.study_uid == study_uid, study.c.state == State.QUEUED, study.c.next_at <= now)
        taken = {
            "state": State.LABELLING,
            "lease_until": now + lease_seconds,
            "fence": study.c.fence + 1,
            "attempts": study.c.attempts + 1,
        }
        with self.engine.begin() as connection:
            if connection.execute(update(study).where(free).values(taken)).rowcount != 1:
                return None
            row = connection.execute(
                select(study.c.fence, study.c.attempts).where(study.c.study_uid == study_uid)
            ).one()
        return Lease(study_uid, row.fence, row.attempts)

    def renew(self, lease: Lease, lease_seconds: float) -> bool:
        """Keep a lease; False when it is lost."""
        return self._change(_held(lease), lease_until=self.clock() + lease_seconds)

    def release_expired(self) -> list[str]:
        """LABELLING -> QUEUED where a lease has run out: its worker died or hangs."""
        now = self.clock()
        expired = and_(study.c.state == State.LABELLING, study.c.lease_until <= now)
        again = {"state": State.QUEUED, "fence": study.c.fence + 1, "rung_at": 0.0, "lease_until": 0.0}
        again["reason"] = "a worker was lost"
        with self.engine.begin() as connection:
            freed = update(study).where(expired).values(again).returning(study.c.study_uid)
            return list(connection.execute(freed).scalars())

    def postpone(self, lease: Lease, reason: str, until: float, *, counted: bool = True) -> None:
        """LABELLING -> QUEUED, not before `until`; an attempt that is not `counted` was not the study's fault."""
        attempts = study.c.attempts - (0 if counted else 1)
        queued = {"state": State.QUEUED, "attempts": attempts, "lease_until": 0.0, "rung_at": 0.0}
        self._or_superseded(lease, **queued, reason=reason, next_at=until)

    def hand_back(self, lease: Lease) -> None:
        """LABELLING -> QUEUED at once; the attempt does not count."""
        attempts = study.c.attempts - 1
        self._or_superseded(lease, state=State.QUEUED, attempts=attempts, next_at=0.0, lease_until=0.0, rung_at=0.0)

    def quarantine(self, lease: Lease, reason: str) -> None:
        """LABELLING -> QUARANTINED with its reason."""
        self._or_superseded(lease, state=State.QUARANTINED, reason=reason, lease_until=0.0)

    def settle(
        self,
        lease: Lease,
        reports: Sequence[WrittenReport],
        notes: Sequence[NotLabelled],
        destinations: Iterable[str],
        peer: str,
        sheets_to: Iterable[str] = (),
        rejections_to: Iterable[str] = (),
    ) -> State:
        """Write down what a worker found, all at once, and start its deliveries.

        Args:
            reports: with the sheets beside them and the notes that reject earlier ones.
            destinations, sheets_to, rejections_to: names of the peers that get each.
        Raises:
            Superseded: the lease is lost or the study has grown; nothing is written.
        """
        receivers = {Kind.REPORT: destinations, Kind.SHEET: sheets_to, Kind.REJECTION: rejections_to}
        with self.engine.begin() as connection:
            changed = connection.execute(update(study).where(_held(lease)).values(lease_until=0.0))
            if changed.rowcount != 1:
                raise Superseded(f"study {lease.study_uid}: overtaken by another worker or a late image")
            _forget(connection, lease.study_uid, reports)
            self._note(connection, lease.study_uid, peer, notes)
            for written in reports:
                if rival := self.issued.enter(connection, written, receivers[written.kind]):
                    raise Superseded(f"series {written.source_series_uid}: overtaken by report {rival}")
            state, reason = self._outcome(connection, lease.study_uid, reports, notes)
            key = study.c.study_uid == lease.study_uid
            connection.execute(update(study).where(key).values(state=state, reason=reason))
        return state

    @staticmethod
    def _outcome(
        connection: Connection, study_uid: str, reports: Sequence[WrittenReport], notes: Sequence[NotLabelled]
    ) -> tuple[State, str]:
        if not reports:
            reasons = sorted({note.reason for note in notes})
            return State.UNLABELLED, "; ".join(reasons) or "no image to label"
        states = states_of(connection, study_uid)
        if not states:
            return State.REPORTED, "no destination is configured; its reports and images stay here"
        if Delivery.FAILED in states:
            return State.QUARANTINED, failure_of(connection, study_uid)
        return (State.SENT, unsent_because(connection, study_uid)) if states <= DONE else (State.REPORTED, "")

    def _note(self, connection: Connection, study_uid: str, peer: str, notes: Iterable[NotLabelled]) -> None:
        for note in notes:
            values = {**note.__dict__, "study_uid": study_uid, "peer": peer}
            statement = self.store.insert(not_labelled).values(values)
            newer = {"reason": note.reason, "detail": note.detail}
            connection.execute(
                statement.on_conflict_do_update(index_elements=[not_labelled.c.sop_instance_uid], set_=newer)
            )

    def _change(self, condition: Any, **values: Any) -> bool:
        with self.engine.begin() as connection:
            return connection.execute(update(study).where(condition).values(**values)).rowcount == 1

    def _or_superseded(self, lease: Lease, **values: Any) -> None:
        if not self._change(_held(lease), **values):
            raise Superseded(f"study {lease.study_uid}: overtaken by another worker or a late image")

    # -- people's remarks --------------------------------------------------------------------------------------------

    def enter_remark(
        self,
        said: Remark,
        path: Path,
        successor: WrittenReport | None = None,
        destinations: Sequence[str] = (),
        beside: Iterable[tuple[WrittenReport, Sequence[str]]] = (),
        alone: bool = False,
        holds: bool = True,
    ) -> None:
        """Enter what a person said and, for a correction, the report that it is, all at once; start its deliveries.

        Args:
            beside: the sheet to it and the notes on what it supersedes, each with the peers that get it.
            alone: it is entered only where nothing else has superseded its predecessor.
            holds: else it comes last, for what follows to uphold; False: it is a remark only, and no report.
        Raises:
            Superseded: something has; nothing is written.
        """
        values = {**said.__dict__, "path": str(path), "heard_at": self.clock()}
        with self.engine.begin() as connection:
            lock_study(connection, said.study_uid)
            connection.execute(self.store.insert(remark).values(values).on_conflict_do_nothing())
            if successor is not None:
                self._enter_correction(connection, said, successor, destinations, alone, holds)
            for written, receivers in beside:
                self.issued.enter(connection, written, receivers)
            if destinations:
                done = and_(study.c.study_uid == said.study_uid, study.c.state.in_([State.SENT, State.PURGED]))
                connection.execute(update(study).where(done).values(state=State.REPORTED))

    def _enter_correction(
        self,
        connection: Connection,
        said: Remark,
        successor: WrittenReport,
        destinations: Sequence[str],
        alone: bool,
        holds: bool,
    ) -> None:
        rival = overtaken_by(connection, said.report_uid, successor.sop_instance_uid)
        if rival and alone:
            raise Superseded(f"{said.report_uid} has been superseded meanwhile; amend {rival}")
        if rival and not holds:
            return
        self.issued.enter(connection, successor, destinations)
        self.issued.put_last(connection, successor.sop_instance_uid, rival)

    def has_heard(self, sop_instance_uid: str) -> bool:
        """Has this object been taken as a remark, or is it one of ours that comes back?"""
        heard = self.rows(select(remark.c.kind).where(remark.c.sop_instance_uid == sop_instance_uid))
        return bool(heard) or self.issued.has(sop_instance_uid)

    def remarks(self, study_uid: str | None = None) -> list[tuple[Remark, float]]:
        """Remarks on one study's reports, or on all, with the time they were heard, the latest first."""
        wanted = select(remark).order_by(remark.c.heard_at.desc())
        rows = self.rows(wanted if study_uid is None else wanted.where(remark.c.study_uid == study_uid))
        return [(_remark(row), row.heard_at) for row in rows]

    # -- asking ----------------------------------------------------------------------------------------------------

    def studies(self, condition: Any = True, limit: int | None = None) -> list[StudyRow]:
        """Studies, the latest first."""
        columns = [study.c[name] for name in StudyRow.__dataclass_fields__]
        statement = select(*columns).where(condition).order_by(study.c.last_at.desc()).limit(limit)
        with self.engine.connect() as connection:
            rows = connection.execute(statement).mappings().all()
        return [StudyRow(**{**row, "state": State(row["state"])}) for row in rows]

    def study(self, study_uid: str) -> StudyRow | None:
        found = self.studies(study.c.study_uid == study_uid)
        return found[0] if found else None

    def instances(self, study_uid: str) -> list[Instance]:
        """All objects of a study, in the order of their coming."""
        statement = select(instance).where(instance.c.study_uid == study_uid)
        statement = statement.order_by(instance.c.received_at, instance.c.sop_instance_uid)
        with self.engine.connect() as connection:
            rows = connection.execute(statement).mappings().all()
        return [_instance(row) for row in rows]

    def instance(self, sop_instance_uid: str) -> Instance | None:
        """The object that came first with this UID."""
        statement = select(instance).where(instance.c.sop_instance_uid == sop_instance_uid, ~instance.c.conflict)
        with self.engine.connect() as connection:
            row = connection.execute(statement).mappings().first()
        return _instance(row) if row else None

    def counts(self, table: Any, *columns: Any) -> list[tuple[Any, ...]]:
        """Rows of (column values ..., count) of a table."""
        statement = select(*columns, func.count()).select_from(table).group_by(*columns).order_by(*columns)
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(statement)]

    def rows(self, statement: Select[Any]) -> list[Row[Any]]:
        with self.engine.connect() as connection:
            return list(connection.execute(statement))


def _held(lease: Lease) -> Any:
    return and_(study.c.study_uid == lease.study_uid, study.c.fence == lease.fence, study.c.state == State.LABELLING)


def _forget(connection: Connection, study_uid: str, reports: Iterable[WrittenReport]) -> None:
    """Why images carried no label, but for series whose report stood already, of which nothing is noted again."""
    named = [written.sop_instance_uid for written in reports]
    standing = select(report.c.source_series_uid).where(report.c.sop_instance_uid.in_(named))
    over = or_(not_labelled.c.series_uid.not_in(standing), not_labelled.c.reason.in_(PASSING))
    of_study = and_(not_labelled.c.study_uid == study_uid, not_labelled.c.reason != CAME_SECOND)
    connection.execute(delete(not_labelled).where(of_study, over))


def _instance(row: Any) -> Instance:
    return Instance(**{**row, "path": Path(row["path"]), "absent": Absent(row["absent"])})


def _remark(row: Any) -> Remark:
    return Remark(
        kind=RemarkKind(row.kind),
        sop_instance_uid=row.sop_instance_uid,
        report_uid=row.report_uid,
        study_uid=row.study_uid,
        said_by=row.said_by,
        note=row.note,
        changes=row.changes,
    )
