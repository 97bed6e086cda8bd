"""A report's work: claim -> gate -> send -> settle.

It takes an id, claims a lease in the ledger and may run twice: the second run finds nothing to do, or sends the same
object under the same UID again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR, INFO

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.commitment import ask, tell
from dicom_node.errors import NotTaken, Quarantine, Retry
from dicom_node.gate import evidence_of, passed, passed_sheet
from dicom_node.ledger import Ledger
from dicom_node.patience import delivery_lease, pause
from dicom_node.rendition import rendition
from dicom_node.send import Stored, patient_id_of, store
from dicom_node.settings import Peer, Settings
from dicom_node.study import REPORT_CLASSES, Delivery, DueDelivery, Kind
from dicom_node.uids import derived
from labeler.vocabulary import vocabulary

log = structlog.get_logger("deliver")

#: Seconds that an archive has for its first answer about storage commitment; doubles with every attempt.
_COMMITMENT_PATIENCE = 600.0


@dataclass
class Deliverer:
    """The parts that bring a report to where it is owed."""

    settings: Settings
    ledger: Ledger
    clock: Callable[[], float] = time.time

    def deliver(self, report_uid: str, destination: str) -> Delivery | None:
        """Send one report to one destination; None when there was nothing to do."""
        due = self.ledger.deliveries.claim(report_uid, destination, delivery_lease(self.settings.lease_seconds))
        if due is None:
            return None
        try:
            stored = self._send(due)
        except Retry as reason:
            wait = pause(due.attempt, self.settings.longest_pause)
            self.ledger.deliveries.settle(due, Delivery.WAITING, str(reason), self.clock() + wait)
            log.warning(
                "delivery postponed",
                report_uid=report_uid,
                attempt=due.attempt,
                again_in=round(wait),
                reason=str(reason),
            )
            return Delivery.WAITING
        except Quarantine as reason:
            spared = due.kind == Kind.SHEET and isinstance(reason, NotTaken)
            state = Delivery.LEFT_OUT if spared else Delivery.FAILED
            self.ledger.deliveries.settle(due, state, str(reason))
            log.log(INFO if spared else ERROR, f"delivery {state}", report_uid=report_uid, reason=str(reason))
            return state
        log.info("delivered", report_uid=report_uid, destination=destination, answer=str(stored))
        if self.settings.peer(destination).commitment and due.kind != Kind.COMMITMENT:
            return self._ask_commitment(due, stored)
        self.ledger.deliveries.settle(due, Delivery.SENT, str(stored), sent_uid=stored.sop_instance_uid)
        return Delivery.SENT

    def _ask_commitment(self, due: DueDelivery, stored: Stored) -> Delivery:
        """Written down before it is asked, since the answer may come at once; unanswered, all is done again."""
        transaction = derived("transaction", stored.sop_instance_uid, due.destination, str(due.attempt))
        until = self.clock() + _COMMITMENT_PATIENCE * 2.0 ** min(due.attempt - 1, 7)
        self.ledger.deliveries.settle(
            due, Delivery.AWAITED, str(stored), until, stored.sop_instance_uid, transaction_uid=transaction
        )
        try:
            ask(self.settings.peer(due.destination), self.settings.ae_title, transaction, stored)
        except (Retry, Quarantine) as reason:
            state = Delivery.WAITING if isinstance(reason, Retry) else Delivery.FAILED
            told = f'{stored}, but storage commitment: {reason}; [[peers]] "{due.destination}" has commitment = true'
            again = self.clock() + pause(due.attempt, self.settings.longest_pause)
            self.ledger.deliveries.settle(due, state, told, again, stored.sop_instance_uid)
            log.warning("commitment not asked", report_uid=due.report_uid, reason=told)
            return state
        return Delivery.AWAITED

    def _send(self, due: DueDelivery) -> Stored:
        peer = self.settings.peer(due.destination)
        if not due.path.exists():
            raise Quarantine(
                f"{due.path}: the file is gone; where its images are here, a receiver's start makes it again"
            )
        if due.kind == Kind.COMMITMENT:
            return tell(peer, self.settings.ae_title, dcmread(due.path))
        if peer.check_patient:
            self._check_patient(due, peer)
        if due.kind == Kind.SHEET and not peer.sheet:
            raise NotTaken(f"{peer.name} is to get no sheets (sheet = false)")
        return store(due.path, peer, self.settings.ae_title, _sendable)

    def _check_patient(self, due: DueDelivery, peer: Peer) -> None:
        """Hold what the peer would file under somebody else since a merge or a correction there."""
        try:
            there = patient_id_of(peer, self.settings.ae_title, due.study_uid)
        except NotTaken as reason:
            raise Quarantine(f'{reason}; [[peers]] "{peer.name}" has check_patient = true, which needs it') from reason
        here = str(dcmread(due.path, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")
        if there is not None and there != here.strip():
            raise Quarantine(
                f"{peer.name} files this study under another Patient ID than its images had here; held. Undo it there "
                f"and `dicom-node retry {due.study_uid}`, or set check_patient = false to send it as it is"
            )


def _sendable(report: Dataset, sop_class: UID) -> Dataset:
    """The report in a class that the destination takes, through the gate again: files rot, and renditions are new."""
    if sop_class not in REPORT_CLASSES:
        return passed_sheet(report, report)
    return passed(rendition(report, sop_class), report, evidence_of(report), vocabulary())


def open_deliverer(settings: Settings) -> Deliverer:
    """The deliverer of a worker process."""
    return Deliverer(settings, Ledger(settings.ledger_url))
