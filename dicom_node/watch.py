"""The loop between receiving and labelling: complete studies are queued, silent bells are rung again.

One pass is `sweep`; it may be interrupted anywhere and run by several watchers, since every step is one conditional
change in the ledger.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.completion import by_quiet_time
from dicom_node.ledger import Ledger
from dicom_node.settings import Settings
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, Bell

log = structlog.get_logger("watch")


@dataclass(frozen=True)
class Swept:
    """What one pass did."""

    completed: int
    recovered: int
    rung: int


def sweep(settings: Settings, ledger: Ledger, bell: Bell) -> Swept:
    """Queue what is complete, take back what lost its worker, ring for what waits."""
    completed = 0
    now = ledger.clock()
    for row in ledger.receiving():
        verdict = by_quiet_time(row.last_at, now, settings.quiet_of(row.peer))
        if verdict.complete and ledger.complete(row, verdict.reason):
            completed += 1
            log.info("complete", study_uid=row.study_uid, images=row.instances, peer=row.peer, reason=verdict.reason)
    recovered = ledger.release_expired()
    for study_uid in recovered:
        log.warning("a worker was lost", study_uid=study_uid)
    return Swept(completed, len(recovered), _ring(settings, ledger, bell))


def _ring(settings: Settings, ledger: Ledger, bell: Bell) -> int:
    """First bells always; repeated ones while messages wait only rarely, so that a backlog is not doubled."""
    rung = 0
    for study_uid in ledger.due_studies(_patience(bell, LABEL_QUEUE, settings)):
        if not bell.label(study_uid):
            return rung
        ledger.rung_study(study_uid)
        rung += 1
    for report_uid, destination in ledger.deliveries.due(_patience(bell, DELIVER_QUEUE, settings)):
        if not bell.deliver(report_uid, destination):
            return rung
        ledger.deliveries.rung(report_uid, destination)
        rung += 1
    return rung


def _patience(bell: Bell, queue: str, settings: Settings) -> float:
    return settings.ring_again_seconds * (20 if bell.waiting(queue) else 1)


def watch(settings: Settings, ledger: Ledger, bell: Bell, stop: threading.Event) -> None:
    """Sweep until told to stop; a ledger that is away is waited for."""
    log.info("watching", every=settings.sweep_seconds)
    while not stop.is_set():
        try:
            sweep(settings, ledger, bell)
        except SQLAlchemyError as error:
            log.error("the ledger is away; trying again", reason=str(error.args[0]))
        stop.wait(settings.sweep_seconds)
