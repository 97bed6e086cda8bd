"""What a person orders about studies that nobody could label or deliver: try them again, or leave them.

Part of the ledger (`Ledger.orders`). Each order is one conditional UPDATE: whoever comes second, a person, an image or
a worker, finds the study in another state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, exists, literal, or_, select, update

from dicom_node.ledger.deliveries import Deliveries, is_undelivered
from dicom_node.ledger.schema import Prose, Store, delivery, not_labelled, study
from dicom_node.study import OUR_FAULT, Dismissal, State

#: What a study is from which work begins anew.
_AGAIN = {"state": State.QUEUED, "attempts": 0, "next_at": 0.0, "rung_at": 0.0, "reason": ""}
#: States in which nothing goes on by itself, and there may be more to do.
_RESTING = (State.QUARANTINED, State.UNLABELLED, State.DISMISSED)


class Orders:
    """Orders in the ledger's store."""

    def __init__(self, store: Store, deliveries: Deliveries) -> None:
        self.store, self._deliveries = store, deliveries

    def retry_study(self, study_uid: str) -> bool:
        """QUARANTINED, UNLABELLED or DISMISSED -> QUEUED, or REPORTED where a delivery failed; False when none is.

        So is a study of which our code could not label one series.
        """
        ours = and_(not_labelled.c.study_uid == study_uid, not_labelled.c.reason == OUR_FAULT)
        in_part = and_(study.c.state.in_([State.REPORTED, State.SENT]), exists().where(ours))
        stuck = and_(study.c.study_uid == study_uid, or_(study.c.state.in_(_RESTING), in_part))
        with self.store.engine.begin() as connection:
            redelivered = self._deliveries.retry(connection, delivery.c.study_uid == study_uid)
            return connection.execute(update(study).where(stuck).values(_AGAIN)).rowcount + redelivered > 0

    def retry_studies(self, states: Iterable[State], reason: str = "") -> int:
        """The same for all studies in one of these states whose reason contains this; how many these are."""
        stuck = _told(states, reason)
        uids = select(study.c.study_uid).where(stuck)
        with self.store.engine.begin() as connection:
            count = len(connection.execute(uids).all())
            self._deliveries.retry(connection, delivery.c.study_uid.in_(uids))
            connection.execute(update(study).where(stuck).values(_AGAIN))
            return count

    def take_up_unowed(self) -> int:
        """REPORTED -> QUEUED where nobody was to get the reports, so that who is to get them now does; how many."""
        owed = exists().where(delivery.c.study_uid == study.c.study_uid)
        unowed = and_(study.c.state == State.REPORTED, ~owed)
        with self.store.engine.begin() as connection:
            return connection.execute(update(study).where(unowed).values(_AGAIN)).rowcount

    def dismiss_study(self, study_uid: str, word: Dismissal) -> bool:
        """QUARANTINED or UNLABELLED -> DISMISSED, its reason kept behind the person's; False when it is neither.

        One that is labelled and could not be delivered is not: that is decided delivery by delivery.
        """
        return self._dismiss(study.c.study_uid == study_uid, word) == 1

    def dismiss_studies(self, states: Iterable[State], reason: str, word: Dismissal) -> int:
        """The same for all studies in one of these states whose reason contains this; how many these are."""
        return self._dismiss(_told(states, reason), word)

    def _dismiss(self, which: Any, word: Dismissal) -> int:
        waiting = and_(which, study.c.state.in_([State.QUARANTINED, State.UNLABELLED]), ~is_undelivered())
        told = literal(f"{word.told(self.store.clock())}; it was ", Prose()) + study.c.state + ": " + study.c.reason
        with self.store.engine.begin() as connection:
            dismissed = update(study).where(waiting).values(state=State.DISMISSED, reason=told)
            return connection.execute(dismissed).rowcount


def _told(states: Iterable[State], reason: str) -> Any:
    return and_(study.c.state.in_(list(states)), study.c.reason.icontains(reason, autoescape=True))
