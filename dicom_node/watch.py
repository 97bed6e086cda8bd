"""The loop between receiving and labelling: complete studies are queued, silent bells are rung again, growing studies
are prepared.

One pass is `sweep`; it may be interrupted anywhere and run by several watchers, since every step is one conditional
change in the ledger. What may take long goes on beside it: archives are asked for counts, and room is made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.completion import Known, Steady, judge, to_prepare
from dicom_node.counts import Counter
from dicom_node.ledger import Ledger
from dicom_node.logs import Complaint
from dicom_node.planes import Planes
from dicom_node.processes.notify import Signs, ready, stopping
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.spool.purge import DOUBT, Purger
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, Bell

log = structlog.get_logger("watch")

#: Seconds between two looks at what may be purged.
_PURGE_EVERY = 10.0
#: Seconds after its start in which the watcher lets nothing go for its age: a clock that is wrong when the machine
#: starts is set right by then, and that is seen.
_FIRST = 3600.0


@dataclass(frozen=True)
class Swept:
    """What one pass did."""

    completed: int
    recovered: int
    rung: int


def sweep(settings: Settings, ledger: Ledger, bell: Bell, steady_since: float = 0.0) -> Swept:
    """Queue what is complete, take back what lost its worker, ring for what waits.

    Args:
        steady_since: from when the clock can be trusted, seconds since the epoch; silence before does not count.
    """
    if moved := ledger.store.set_right(settings.longest_pause, settings.lease_seconds):
        log.warning("the clock was set back; what was to be waited for is counted anew", rows=moved)
    completed = _complete(settings, ledger, steady_since)
    recovered = ledger.release_expired()
    for study_uid in recovered:
        log.warning("a worker was lost", study_uid=study_uid)
    return Swept(completed, len(recovered), _ring(settings, ledger, bell))


def _complete(settings: Settings, ledger: Ledger, steady_since: float) -> int:
    coming = ledger.receiving()
    announced = ledger.performed.announced() if coming else {}
    counts = ledger.performed.counts() if coming else {}
    completed, now = 0, ledger.clock()
    for row in coming:
        uid = row.study_uid
        known = Known(row.instances, max(row.last_at, steady_since), announced.get(uid), counts.get(uid, ()))
        verdict = judge(known, now, settings.quiet_of(row.peer), settings.count_seconds)
        if verdict.complete and ledger.complete(row, verdict.reason):
            completed += 1
            log.info("complete", study_uid=uid, images=row.instances, peer=row.peer, reason=verdict.reason)
    return completed


def _ring(settings: Settings, ledger: Ledger, bell: Bell) -> int:
    """First bells always; repeated ones while messages wait only rarely, so that a backlog is not doubled."""
    rung = 0
    for row in ledger.growing(settings.ring_again_seconds) if settings.planes_mib else ():
        if to_prepare(row.last_at, row.prepared_at, settings.settled_after(row.peer)):
            if not bell.prepare(row.study_uid):
                return rung
            ledger.rung_study(row.study_uid)
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


def watch(settings: Settings, ledger: Ledger, bell: Bell, spool: Spool, stop: threading.Event) -> None:
    """Sweep until told to stop; a ledger that is away is waited for."""
    log.info("watching", every=settings.sweep_seconds)
    planes, signs = Planes(settings.home, settings.planes_mib << 20), Signs(ledger, "watch", settings.sign_seconds)
    now = ledger.clock()
    steady, taken_up = Steady(now, time.monotonic(), now - DOUBT + _FIRST), False

    def look() -> None:
        nonlocal steady, taken_up
        taken_up = taken_up or _took_up(settings, ledger)
        before, steady = steady, steady.look(ledger.clock(), time.monotonic())
        if steady.since != before.since:
            log.error("the clock was set; silence counts from now on, nothing is purged for its age for a day")
        sweep(settings, ledger, bell, steady.since)
        planes.drop_older_than(ledger.clock() - 3600 * settings.planes_hours)

    counter, purger = Counter(settings, ledger), Purger(settings, ledger, spool, lambda: steady.since)
    loops = [(look, settings.sweep_seconds), (counter.ask, settings.sweep_seconds), (purger.purge, _PURGE_EVERY)]
    beside = [threading.Thread(target=_repeat, args=(*loop, stop), daemon=True) for loop in loops[1:]]
    for thread in beside:
        thread.start()
    ready()
    _repeat(*loops[0], stop, lambda: signs.give("watching"))
    stopping()
    signs.leave()
    for thread in beside:
        thread.join(1.0)


def _took_up(settings: Settings, ledger: Ledger) -> bool:
    """What was reported when nobody was to get reports is owed to who gets them now; always True."""
    if settings.receivers_of_reports and (unowed := ledger.orders.take_up_unowed()):
        log.info("reports of a time without a destination are owed now", studies=unowed)
    return True


def _repeat(
    work: Callable[[], object], every: float, stop: threading.Event, after: Callable[[], object] = lambda: None
) -> None:
    complaint = Complaint()
    while not stop.is_set():
        try:
            work()
            complaint.is_new("")
        except (SQLAlchemyError, OSError) as error:
            if complaint.is_new(reason := str(error.args[0])):
                log.error("ledger or disk is away; trying again", reason=reason)
        after()
        stop.wait(every)
