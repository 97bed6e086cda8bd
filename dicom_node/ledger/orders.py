"""What a person orders about studies that nobody could label or deliver: try them again.

Part of the ledger (`Ledger.orders`). Each order is one conditional UPDATE: whoever comes second, a person, an image or
a worker, finds the study in another state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, select, update

from dicom_node.ledger.deliveries import Deliveries
from dicom_node.ledger.schema import Store, delivery, study
from dicom_node.study import State

#: What a study is from which work begins anew.
_AGAIN = {"state": State.QUEUED, "attempts": 0, "next_at": 0.0, "rung_at": 0.0, "reason": ""}
#: States in which nothing goes on by itself, and there may be more to do.
_RESTING = (State.QUARANTINED, State.UNLABELLED)


class Orders:
    """Orders in the ledger's store."""

    def __init__(self, store: Store, deliveries: Deliveries) -> None:
        self.store, self._deliveries = store, deliveries

    def retry_study(self, study_uid: str) -> bool:
        """QUARANTINED or UNLABELLED -> QUEUED, or REPORTED where a delivery failed; False when none is."""
        stuck = and_(study.c.study_uid == study_uid, study.c.state.in_(_RESTING))
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


def _told(states: Iterable[State], reason: str) -> Any:
    return and_(study.c.state.in_(list(states)), study.c.reason.icontains(reason, autoescape=True))
