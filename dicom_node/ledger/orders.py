"""What a person orders about what nobody could label or deliver: try it again, leave it, or send it elsewhere.

Part of the ledger (`Ledger.orders`). Each order is one conditional UPDATE: whoever comes second, a person, an image or
a worker, finds the study in another state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import and_, bindparam, exists, literal, or_, select, update
from sqlalchemy.engine import Connection

from dicom_node.ledger.deliveries import Deliveries, conclude, fitting, is_undelivered, lock_studies, reopen
from dicom_node.ledger.schema import Prose, Store, delivery, in_turn, not_labelled, report, study
from dicom_node.study import LEFT_SO, OUR_FAULT, Delivery, Dismissal, Kind, Redirection, State

#: Stands beside states for studies that have reports, but not on a series which our code could not label.
IN_PART = "in-part"
#: What a study is from which work begins anew.
_AGAIN = {"state": State.QUEUED, "attempts": 0, "next_at": 0.0, "rung_at": 0.0, "reason": ""}
#: States in which nothing goes on by itself, and there may be more to do.
_RESTING = (State.QUARANTINED, State.UNLABELLED, State.DISMISSED)
#: States of studies that have reports and their images.
_REPORTED = (State.REPORTED, State.SENT)
#: What a delivery is that begins anew.
_ANEW = {
    "state": Delivery.WAITING,
    "attempts": 0,
    "stumbles": 0,
    "next_at": 0.0,
    "rung_at": 0.0,
    "sent_at": 0.0,
    "sent_uid": "",
    "transaction_uid": "",
}


class Orders:
    """Orders in the ledger's store."""

    def __init__(self, store: Store, deliveries: Deliveries) -> None:
        self.store, self._deliveries = store, deliveries

    def retry_study(self, study_uid: str) -> bool:
        """QUARANTINED, UNLABELLED or DISMISSED -> QUEUED, or REPORTED where a delivery failed; False when none is.

        So is a study of which our code could not label one series.
        """
        waits = or_(study.c.state.in_(_RESTING), in_part([OUR_FAULT, LEFT_SO]))
        stuck = and_(study.c.study_uid == study_uid, waits)
        with self.store.engine.begin() as connection:
            redelivered = self._deliveries.retry(connection, delivery.c.study_uid == study_uid)
            return connection.execute(update(study).where(stuck).values(_AGAIN)).rowcount + redelivered > 0

    def retry_studies(self, states: Collection[str], reason: str = "") -> int:
        """The same for all studies in one of these states whose reason contains this; how many these are.

        Args:
            states: with `IN_PART`, those that our code has labelled in part, by the reason of their images.
        """
        stuck = _told(states, reason)
        if IN_PART in states:
            stuck = or_(stuck, in_part(detail=reason))
        uids = select(study.c.study_uid).where(stuck)
        with self.store.engine.begin() as connection:
            count = len(connection.execute(uids).all())
            self._deliveries.retry(connection, delivery.c.study_uid.in_(uids))
            connection.execute(update(study).where(stuck).values(_AGAIN))
            return count

    def take_up_unowed(self) -> int:
        """REPORTED or SENT -> QUEUED where nobody was to get the reports, so that who is to get them now does; how
        many."""
        return self._unowed([State.REPORTED, State.SENT], _AGAIN)

    def finish_unowed(self) -> int:
        """REPORTED -> SENT where nobody is to get the reports, and a person has said so in the settings; how many."""
        told = "nobody is to get its reports (destinations = [])"
        return self._unowed([State.REPORTED], {"state": State.SENT, "reason": told})

    def _unowed(self, states: Iterable[State], values: Mapping[str, Any]) -> int:
        owed = exists().where(delivery.c.study_uid == study.c.study_uid)
        unowed = and_(study.c.state.in_(list(states)), ~owed)
        with self.store.engine.begin() as connection:
            return connection.execute(update(study).where(unowed).values(values)).rowcount

    def dismiss_study(self, study_uid: str, word: Dismissal) -> bool:
        """QUARANTINED or UNLABELLED -> DISMISSED, its reason kept behind the person's; False when it is neither.

        One that is labelled and could not be delivered is not: that is decided delivery by delivery. One that our code
        has labelled in part stays what it is, and is not told of any more.
        """
        return self._dismiss(study.c.study_uid == study_uid, word) == 1 or self._leave_so(study_uid, word)

    def dismiss_studies(self, states: Iterable[State], reason: str, word: Dismissal) -> int:
        """The same for all studies in one of these states whose reason contains this; how many these are."""
        return self._dismiss(_told(states, reason), word)

    def _dismiss(self, which: Any, word: Dismissal) -> int:
        waiting = and_(which, study.c.state.in_([State.QUARANTINED, State.UNLABELLED]), ~is_undelivered())
        told = literal(f"{word.told(self.store.clock())}; it was ", Prose()) + study.c.state + ": " + study.c.reason
        with self.store.engine.begin() as connection:
            dismissed = update(study).where(waiting).values(state=State.DISMISSED, reason=told)
            return connection.execute(dismissed).rowcount

    def _leave_so(self, study_uid: str, word: Dismissal) -> bool:
        reported = select(study.c.study_uid).where(study.c.study_uid == study_uid, study.c.state.in_(_REPORTED))
        theirs = and_(not_labelled.c.study_uid.in_(reported), not_labelled.c.reason == OUR_FAULT)
        detail = literal(f"{word.told(self.store.clock())}; it was ", Prose()) + not_labelled.c.detail
        left = update(not_labelled).where(theirs).values(reason=LEFT_SO, detail=detail)
        with self.store.engine.begin() as connection:
            return connection.execute(left).rowcount > 0

    def redirect(self, word: Redirection, report_uid: str | None = None, dismissed: bool = False) -> int:
        """A person's word: what failed or falls due again is owed to another destination instead; how much that is.

        What is under way at this moment stays, and so do answers about storage commitment, which are for who asked.
        Each object is owed once: where the other has it, or is to have it, nothing is added.

        Args:
            dismissed: what a person has dismissed, too.
        """
        given_up = [Delivery.FAILED, Delivery.DISMISSED] if dismissed else [Delivery.FAILED]
        answers = select(report.c.sop_instance_uid).where(report.c.kind == Kind.COMMITMENT)
        ours = and_(fitting(word.origin, report_uid), delivery.c.report_uid.not_in(answers))
        owed = and_(ours, or_(delivery.c.state.in_(given_up), self._deliveries.idle()))
        before, after = word.told(self.store.clock())
        told = literal(f"{before}; it was ", Prose()) + delivery.c.state + ": " + delivery.c.detail
        values = {"state": Delivery.REDIRECTED, "detail": told, "fence": delivery.c.fence + 1}
        changed = update(delivery).where(in_turn(owed)).values(values)
        with self.store.engine.begin() as connection:
            rows = connection.execute(changed.returning(delivery.c.report_uid, delivery.c.study_uid))
            moved = [(row.report_uid, row.study_uid) for row in rows]
            self._owe_instead(connection, moved + _newer(connection, word.origin, moved), word.to, after)
            for study_uid in sorted({study_uid for _, study_uid in moved}):
                reopen(connection, study_uid, or_(is_undelivered(), study.c.state.in_([State.SENT, State.PURGED])))
                conclude(connection, study_uid)
        return len(moved)

    def _owe_instead(self, connection: Connection, owed: Sequence[tuple[str, str]], to: str, told: str) -> None:
        """Owe these (report UID, study UID) to a destination, whatever a person has said of them before."""
        if not owed:
            return
        here = and_(delivery.c.report_uid == bindparam("uid"), delivery.c.destination == to)
        spared = or_(delivery.c.state == Delivery.REDIRECTED, delivery.c.state == Delivery.DISMISSED)
        back = update(delivery).where(here, spared)
        again = back.values(**_ANEW, detail=told, fence=delivery.c.fence + 1)
        connection.execute(again, [{"uid": uid} for uid, _ in owed])
        lock_studies(connection, (study_uid for _, study_uid in owed))
        rows = [
            {"report_uid": uid, "destination": to, "study_uid": study_uid, "state": Delivery.WAITING, "detail": told}
            for uid, study_uid in owed
        ]
        connection.execute(self.store.insert(delivery).on_conflict_do_nothing(), rows)


def _newer(connection: Connection, origin: str, moved: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a destination has got in the place of one of these: (report UID, study UID), with its sheet and the notes.

    Who gets an outdated report alone would take it for the last word.
    """
    older, newer = report.alias(), report.alias()
    outdated = and_(older.c.sop_instance_uid == bindparam("uid"), older.c.superseded_by != "")
    same_series = and_(newer.c.study_uid == older.c.study_uid, newer.c.source_series_uid == older.c.source_series_uid)
    got = and_(
        delivery.c.report_uid == newer.c.sop_instance_uid,
        delivery.c.destination == origin,
        delivery.c.state.in_([Delivery.SENT, Delivery.LEFT_OUT]),
    )
    last = newer.c.superseded_by == ""
    wanted = select(newer.c.sop_instance_uid, newer.c.study_uid).where(outdated, same_series, last, got)
    return [(uid, study_uid) for key, _ in moved for uid, study_uid in connection.execute(wanted, {"uid": key})]


def in_part(reasons: Collection[str] = (OUR_FAULT,), detail: str = "") -> Any:
    """Studies with reports, but not on a series, for one of these reasons and in words that contain this."""
    told = and_(not_labelled.c.reason.in_(reasons), not_labelled.c.detail.icontains(detail, autoescape=True))
    theirs = exists().where(not_labelled.c.study_uid == study.c.study_uid, told)
    return and_(study.c.state.in_(_REPORTED), theirs)


def _told(states: Iterable[str], reason: str) -> Any:
    return and_(study.c.state.in_(list(states)), study.c.reason.icontains(reason, autoescape=True))
