"""What the ledger says lies in the spool: what should be there, what came back, what is gone, what may go.

Part of the ledger (`Ledger.holdings`). A purge changes the rows and removes the files within one transaction, so that
nothing that arrives meanwhile is taken for one that stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import and_, case, delete, exists, literal, or_, select, true, update
from sqlalchemy.engine import Connection

from dicom_node.ledger.deliveries import is_undelivered
from dicom_node.ledger.schema import (
    Prose,
    Store,
    archive_count,
    delivery,
    instance,
    lock_study,
    performed_step,
    remark,
    report,
    study,
)
from dicom_node.study import DONE, Absent, Delivery, Instance, Kind, State, StepStatus, moment

#: Values in one IN (...), far below what any database takes.
_AT_ONCE = 500
#: Studies with which nothing is left to do; one that is purged may hold an object that came later and changed nothing.
_FINISHED = (State.SENT, State.UNLABELLED, State.DISMISSED, State.PURGED)
#: Those of them at which nobody may want to look any more.
_DECIDED = (State.SENT, State.DISMISSED)
#: Studies that are labelled without anybody's word.
_TO_BE_LABELLED = (State.RECEIVING, State.QUEUED, State.LABELLING)


@dataclass(frozen=True)
class Lost:
    """A report or sheet whose file is gone, and whether labelling its study again would write it again."""

    sop_instance_uid: str
    study_uid: str
    path: Path
    repeatable: bool


@dataclass(frozen=True)
class Purged:
    """What a study's purge removed."""

    files: int
    bytes: int


class Holdings:
    """The spool's files in the ledger's store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def paths(self) -> set[str]:
        """Where the files of all objects should be that have not left the spool."""
        with self.store.engine.connect() as connection:
            return set(connection.execute(select(instance.c.path).where(instance.c.absent == Absent.HERE)).scalars())

    def digest_of(self, new: Instance, former: Callable[[], str]) -> str:
        """The digest by which the same object stands here, of whatever version; its own where it does not."""
        same_uid = instance.c.sop_instance_uid == new.sop_instance_uid
        with self.store.engine.connect() as connection:
            known = set(connection.execute(select(instance.c.digest).where(same_uid)).scalars())
        return new.digest if new.digest in known or (earlier := former()) not in known else earlier

    def came_back(self, connection: Connection, found: Instance) -> bool:
        """An object that stands here was stored again; True when its file had been away, and is to be labelled."""
        lock_study(connection, found.study_uid)
        key = and_(instance.c.sop_instance_uid == found.sop_instance_uid, instance.c.digest == found.digest)
        row = connection.execute(select(instance.c.absent, instance.c.path, instance.c.conflict).where(key)).one()
        if row.absent == Absent.HERE and row.path == str(found.path):
            return False
        if not found.path.exists():  # a purge took it between its sender's last byte and this look
            return False
        connection.execute(update(instance).where(key).values(absent=Absent.HERE, path=str(found.path)))
        return row.absent != Absent.HERE and not row.conflict

    def mark_missing(self, paths: Iterable[str]) -> Counter[str]:
        """Write down that these files are gone; how many by study."""
        by_study: Counter[str] = Counter()
        for some in _batches(paths):
            gone = and_(instance.c.path.in_(some), instance.c.absent == Absent.HERE)
            marked = update(instance).where(gone).values(absent=Absent.MISSING).returning(instance.c.study_uid)
            with self.store.engine.begin() as connection:
                by_study.update(connection.execute(marked).scalars())
        return by_study

    # -- reports -----------------------------------------------------------------------------------------------------

    def report_paths(self) -> set[str]:
        """Where the files of all reports, sheets and answers should be."""
        with self.store.engine.connect() as connection:
            return set(connection.execute(select(report.c.path)).scalars())

    def lost_reports(self, paths: Collection[str]) -> list[Lost]:
        """The reports and sheets of these files; what a person said, or what has a successor, is not repeatable."""
        said = exists().where(remark.c.sop_instance_uid == report.c.sop_instance_uid)
        columns = (report.c.sop_instance_uid, report.c.study_uid, report.c.path)
        repeatable = and_(~said, report.c.superseded_by == "").label("repeatable")
        wanted = select(*columns, repeatable).where(report.c.kind.in_([Kind.REPORT, Kind.SHEET]))
        lost: list[Lost] = []
        with self.store.engine.connect() as connection:
            for some in _batches(paths):
                rows = connection.execute(wanted.where(report.c.path.in_(some)))
                lost += [
                    Lost(row.sop_instance_uid, row.study_uid, Path(row.path), bool(row.repeatable)) for row in rows
                ]
        return lost

    def make_again(self, study_uid: str) -> bool:
        """A labelled study -> QUEUED, so that lost reports are written again, the same bytes; so they are in any case
        where it is about to be labelled.

        False in other states, and where images have left the spool.
        """
        gone = exists().where(instance.c.study_uid == study_uid, instance.c.absent != Absent.HERE)
        whole = and_(study.c.study_uid == study_uid, ~gone)
        done = and_(whole, or_(study.c.state.in_([State.REPORTED, State.SENT]), is_undelivered()))
        about_to_be = select(study.c.state).where(whole, study.c.state.in_(_TO_BE_LABELLED))
        times = {"attempts": 0, "next_at": 0.0, "rung_at": 0.0}
        anew = {"state": State.QUEUED, "reason": "a report's file was lost", **times}
        with self.store.engine.begin() as connection:
            if connection.execute(update(study).where(done).values(anew)).rowcount == 1:
                return True
            return connection.execute(about_to_be).first() is not None

    # -- purging -----------------------------------------------------------------------------------------------------

    def promise(self, sop_instance_uids: Iterable[str]) -> None:
        """Their studies' retention starts again: a scanner is about to be told that we answer for these objects."""
        with self.store.engine.begin() as connection:
            for some in _batches(sop_instance_uids):
                theirs = select(instance.c.study_uid).where(instance.c.sop_instance_uid.in_(some))
                promised = update(study).where(study.c.study_uid.in_(theirs)).values(promised_at=self.store.clock())
                connection.execute(promised)

    def purgeable(self, kept_since: float, early: bool = False, limit: int = 100) -> list[str]:
        """Studies whose files may go, the oldest first.

        Args:
            kept_since: what came, or was promised to a scanner, after this moment stays.
            early: room is needed: sent and dismissed studies may go before their time, but not what was promised.
        """
        wanted = select(study.c.study_uid).where(_may_go(kept_since, early)).order_by(study.c.last_at).limit(limit)
        with self.store.engine.connect() as connection:
            return list(connection.execute(wanted).scalars())

    def purge(
        self,
        study_uid: str,
        kept_since: float,
        early: bool,
        remove: Callable[[Sequence[Path]], None],
        with_sheets: bool = False,
    ) -> Purged | None:
        """SENT, UNLABELLED or DISMISSED -> PURGED, and its files removed; None when it may not go any more.

        Objects in which people said something are reports and stay. Should `remove` fail, nothing has changed here.

        Args:
            with_sheets: the sheets that have arrived, too.
        """
        still = and_(study.c.study_uid == study_uid, _may_go(kept_since, early))
        going = and_(instance.c.study_uid == study_uid, _removable())
        reason = _before_its_time(self.store.clock()) if early else study.c.reason
        purged = update(study).where(still).values(state=State.PURGED, reason=reason)
        marked = update(instance).where(going).values(absent=Absent.PURGED).returning(instance.c.path, instance.c.size)
        with self.store.engine.begin() as connection:
            if connection.execute(purged).rowcount != 1:
                return None
            rows = connection.execute(marked).all()
            sheets = connection.execute(_arrived_sheets(study_uid)).all() if with_sheets else ()
            _forget_what_was_announced(connection, study_uid)
            remove([Path(row.path) for row in (*rows, *sheets)])
        return Purged(len(rows), sum(row.size for row in rows))

    def forget_answers(self, kept_since: float, remove: Callable[[Sequence[Path]], None]) -> Counter[str] | None:
        """Remove answers about storage commitment of before, told or not: what they promise may be gone by now.

        Returns how many nobody has heard, by peer; None where there was nothing to remove.
        """
        theirs = delivery.c.report_uid == report.c.sop_instance_uid
        kept = or_(delivery.c.lease_until > self.store.clock(), delivery.c.sent_at >= kept_since)
        answers = and_(report.c.study_uid == "", report.c.kind == Kind.COMMITMENT, report.c.created_at < kept_since)
        oldest = select(report.c.sop_instance_uid).where(answers, ~exists().where(theirs, kept)).limit(_AT_ONCE)
        columns = (report.c.sop_instance_uid, report.c.path)
        with self.store.engine.begin() as connection:
            gone = delete(report).where(report.c.sop_instance_uid.in_(oldest)).returning(*columns)
            if not (rows := connection.execute(gone).all()):
                return None
            owed = delete(delivery).where(delivery.c.report_uid.in_([row.sop_instance_uid for row in rows]))
            told = connection.execute(owed.returning(delivery.c.destination, delivery.c.state)).all()
            remove([Path(row.path) for row in rows])
        return Counter(row.destination for row in told if row.state != Delivery.SENT)


def _arrived_sheets(study_uid: str) -> Any:
    """DELETE of a study's sheets that will not be sent again; that they were sent stays."""
    theirs = delivery.c.report_uid == report.c.sop_instance_uid
    again = exists().where(theirs, delivery.c.state.not_in([Delivery.SENT, Delivery.LEFT_OUT, Delivery.REDIRECTED]))
    sheets = and_(report.c.study_uid == study_uid, report.c.kind == Kind.SHEET, ~again)
    return delete(report).where(sheets).returning(report.c.path)


def _forget_what_was_announced(connection: Connection, study_uid: str) -> None:
    """Performed steps name every image; they and archives' counts tell only when a study is complete."""
    ended = and_(performed_step.c.study_uid == study_uid, performed_step.c.status != StepStatus.IN_PROGRESS)
    connection.execute(delete(performed_step).where(ended))
    connection.execute(delete(archive_count).where(archive_count.c.study_uid == study_uid))


def _before_its_time(at: float) -> Any:
    """Why a study was purged to make room, before what was said of it."""
    told = f"purged for room at {moment(at)}, before retention_days"
    return literal(told, Prose()) + case((study.c.reason == "", ""), else_="; it was " + study.c.reason)


def _may_go(kept_since: float, early: bool) -> Any:
    theirs = instance.c.study_uid == study.c.study_uid
    owed = exists().where(delivery.c.study_uid == study.c.study_uid, delivery.c.state.not_in(DONE))
    doubtful = exists().where(theirs, instance.c.conflict, instance.c.received_at >= kept_since)
    old = true() if early else study.c.last_at < kept_since
    states = _DECIDED if early else _FINISHED
    unpromised = study.c.promised_at < kept_since
    return and_(study.c.state.in_(states), old, unpromised, ~owed, ~doubtful, exists().where(theirs, _removable()))


def _removable() -> Any:
    said = exists().where(remark.c.sop_instance_uid == instance.c.sop_instance_uid)
    return and_(instance.c.absent == Absent.HERE, ~said)


def _batches(values: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(values)
    while some := list(islice(iterator, _AT_ONCE)):
        yield some
