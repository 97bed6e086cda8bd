"""What is known of a study from elsewhere: what its scanner says it has made, and how much of it archives hold.

Part of the ledger (`Ledger.performed`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, func, select, update

from dicom_node.ledger.schema import Store, archive_count, delivery, instance, performed_step, report, study
from dicom_node.study import Announced, Counted, Delivery, Kind, PerformedStep, State, StepStatus

#: The largest number that a count may be; an Integer String goes further (PS3.5 6.2).
_MOST = 2**31 - 1


class Performed:
    """Performed steps and archives' counts in the ledger's store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- steps -------------------------------------------------------------------------------------------------------

    def create(self, step: PerformedStep) -> bool:
        """Enter a step that has begun; False when it stands here already."""
        values = {**step.__dict__, "images": _listed(step), "changed_at": self.store.clock()}
        entry = self.store.insert(performed_step).values(values).on_conflict_do_nothing()
        with self.store.engine.begin() as connection:
            return connection.execute(entry.returning(performed_step.c.status)).first() is not None

    def change(self, step: PerformedStep) -> bool:
        """Write down what a step has come to; False when it had ended already, or never begun."""
        key = performed_step.c.sop_instance_uid == step.sop_instance_uid
        running = and_(key, performed_step.c.status == StepStatus.IN_PROGRESS)
        values = {"status": step.status, "images": _listed(step), "changed_at": self.store.clock()}
        with self.store.engine.begin() as connection:
            return connection.execute(update(performed_step).where(running).values(values)).rowcount == 1

    def step(self, sop_instance_uid: str) -> PerformedStep | None:
        found = self._steps(performed_step.c.sop_instance_uid == sop_instance_uid)
        return found[0] if found else None

    def steps(self, study_uid: str) -> list[PerformedStep]:
        """The steps of a study, the oldest first."""
        return self._steps(performed_step.c.study_uid == study_uid)

    def _steps(self, condition: Any) -> list[PerformedStep]:
        wanted = select(performed_step).where(condition).order_by(performed_step.c.changed_at)
        with self.store.engine.connect() as connection:
            return [_step(row) for row in connection.execute(wanted)]

    def announced(self) -> Mapping[str, Announced]:
        """What steps say of the studies to which images are still coming."""
        coming = select(study.c.study_uid).where(study.c.state == State.RECEIVING)
        by_study: dict[str, list[PerformedStep]] = defaultdict(list)
        for step in self._steps(performed_step.c.study_uid.in_(coming)):
            by_study[step.study_uid].append(step)
        return {uid: self._announced(uid, steps) for uid, steps in by_study.items()}

    def _announced(self, study_uid: str, steps: Sequence[PerformedStep]) -> Announced:
        named = frozenset[str]().union(*(step.images for step in steps))
        ours = select(instance.c.sop_instance_uid).where(instance.c.study_uid == study_uid)
        with self.store.engine.connect() as connection:
            here = named.intersection(connection.execute(ours).scalars()) if named else frozenset()
        ended = all(step.status != StepStatus.IN_PROGRESS for step in steps)
        return Announced(len(named), len(here), len(steps), ended)

    # -- counts ------------------------------------------------------------------------------------------------------

    def counted(self, study_uid: str, peer: str, objects: int) -> None:
        """Write down how many objects of a study a peer says it holds."""
        values = {"objects": min(objects, _MOST), "counted_at": self.store.clock()}
        entry = self.store.insert(archive_count).values(study_uid=study_uid, peer=peer, **values)
        keys = [archive_count.c.study_uid, archive_count.c.peer]
        with self.store.engine.begin() as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=keys, set_=values))

    def counts(self) -> Mapping[str, list[Counted]]:
        """What archives said of the studies to which images are still coming; our reports there are not counted."""
        stored = and_(
            delivery.c.study_uid == archive_count.c.study_uid,
            delivery.c.destination == archive_count.c.peer,
            delivery.c.state.in_([Delivery.SENT, Delivery.AWAITED]),
            report.c.kind != Kind.COMMITMENT,
        )
        joined = delivery.join(report, report.c.sop_instance_uid == delivery.c.report_uid)
        ours = select(func.count()).select_from(joined).where(stored).scalar_subquery()
        coming = select(study.c.study_uid).where(study.c.state == State.RECEIVING)
        wanted = select(archive_count, ours.label("ours")).where(archive_count.c.study_uid.in_(coming))
        by_study: dict[str, list[Counted]] = defaultdict(list)
        with self.store.engine.connect() as connection:
            for row in connection.execute(wanted):
                by_study[row.study_uid].append(Counted(row.peer, row.objects - row.ours, row.counted_at))
        return by_study


def _listed(step: PerformedStep) -> str:
    return json.dumps(sorted(step.images))


def _step(row: Any) -> PerformedStep:
    images = frozenset(json.loads(row.images))
    return PerformedStep(row.sop_instance_uid, row.study_uid, row.peer, StepStatus(row.status), images)
