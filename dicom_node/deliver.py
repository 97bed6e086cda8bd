"""A report's work: claim -> gate -> send -> settle.

It takes an id, claims a lease in the ledger and may run twice: the second run finds nothing to do, or sends the same
object under the same UID again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from logging import ERROR, INFO

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, KeyObjectSelectionDocumentStorage
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.call import Caller
from dicom_node.commitment import ask, tell
from dicom_node.errors import ConfigurationError, NodeError, NotTaken, NotYet, Quarantine, Replaced, Retry, Stumbled
from dicom_node.leases import renewed
from dicom_node.ledger import Ledger
from dicom_node.logs import where
from dicom_node.patience import pause, rest
from dicom_node.reports.gate import evidence_of, passed, passed_rejection, passed_sheet
from dicom_node.reports.rendition import rendition
from dicom_node.send import Stored, patient_id_of, store
from dicom_node.settings import Peer, Settings
from dicom_node.study import REPORT_CLASSES, Delivery, DueDelivery, Kind
from dicom_node.uids import derived
from labeler.errors import is_the_systems
from labeler.vocabulary import vocabulary

log = structlog.get_logger("deliver")

#: Seconds that an archive has for its first answer about storage commitment; doubles with every attempt.
_COMMITMENT_PATIENCE = 600.0
#: Attempts at an object on which its destination fails without a reason; with the pauses between, some ten minutes.
_TRIES = 10
#: Seconds that one destination's queue is worked off before another's gets its turn.
_TURN = 10.0


class Deliverer:
    """The parts that bring reports to where they are owed."""

    def __init__(self, settings: Settings, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.ledger, self.clock = settings, ledger, clock
        self.caller = Caller(settings)
        #: Set when this process is to end: no turn goes on.
        self.draining = False

    def work_off(self, destination: str, first: str, seconds: float = _TURN) -> None:
        """Deliver a report, then whatever else is due to its destination, until nothing is or its turn is over.

        So a queue leaves over one association, and a bell that finds the destination busy may be dropped.
        """
        until = self.clock() + seconds
        self.deliver(first, destination)
        while not self.draining and self.clock() < until and self.deliver(None, destination) is not None:
            pass

    def deliver(self, report_uid: str | None, destination: str) -> Delivery | None:
        """Send one report, or the one that fell due first, to a destination; None when there was nothing to do."""
        due = self._claimed(report_uid, destination)
        if due is None:
            return None
        lease_seconds = self.settings.lease_seconds
        with renewed(
            lambda: self.ledger.deliveries.renew(due, lease_seconds), lease_seconds, report_uid=due.report_uid
        ):
            return self._attempt(due, destination)

    def _attempt(self, due: DueDelivery, destination: str) -> Delivery:
        try:
            stored = self._send(due)
        except Stumbled as reason:
            return self._postponed(due, reason) if due.stumbles + 1 < _TRIES else self._given_up(due, reason)
        except (Retry, ConfigurationError) as reason:
            return self._postponed(due, reason)
        except Quarantine as reason:
            return self._given_up(due, reason)
        except SQLAlchemyError:
            raise
        except Exception as error:  # the edge: a file that rotted may make the parser raise anything
            if is_the_systems(error):
                return self._postponed(due, NotYet(f"{due.path}: {getattr(error, 'strerror', None) or error}"))
            return self._given_up(due, Quarantine(f"it cannot be sent: {where(error)}; {_anew(due)}"))
        log.info("delivered", report_uid=due.report_uid, destination=destination, answer=str(stored))
        if self.settings.peer(destination).commitment and due.kind != Kind.COMMITMENT:
            return self._ask_commitment(due, stored)
        self.ledger.deliveries.settle(due, Delivery.SENT, str(stored), sent_uid=stored.sop_instance_uid)
        return Delivery.SENT

    def _claimed(self, report_uid: str | None, destination: str) -> DueDelivery | None:
        parallel = next((peer.parallel for peer in self.settings.peers if peer.name == destination), 1)
        return self.ledger.deliveries.claim(destination, self.settings.lease_seconds, parallel, report_uid)

    def _postponed(self, due: DueDelivery, reason: NodeError, told: str = "", sent_uid: str = "") -> Delivery:
        wait = pause(due.attempt, self.settings.longest_pause)
        again, detail = self.clock() + wait, told or str(reason)
        blamed = None if isinstance(reason, NotYet) else self._rest
        stumbled = isinstance(reason, Stumbled)
        self.ledger.deliveries.settle(due, Delivery.WAITING, detail, again, sent_uid, rest=blamed, stumbled=stumbled)
        told = reason.loggable
        log.warning("postponed", report_uid=due.report_uid, attempt=due.attempt, again_in=round(wait), reason=told)
        return Delivery.WAITING

    def _given_up(self, due: DueDelivery, reason: NodeError) -> Delivery:
        beside = due.kind in (Kind.SHEET, Kind.REJECTION)
        spared = isinstance(reason, Replaced) or (beside and isinstance(reason, NotTaken))
        state = Delivery.LEFT_OUT if spared else Delivery.FAILED
        self.ledger.deliveries.settle(due, state, str(reason))
        log.log(INFO if spared else ERROR, f"delivery {state}", report_uid=due.report_uid, reason=reason.loggable)
        return state

    def _rest(self, failures: int) -> float:
        return rest(failures, self.settings.failures_before_rest, self.settings.longest_pause)

    def _ask_commitment(self, due: DueDelivery, stored: Stored) -> Delivery:
        """Written down before it is asked, since the answer may come at once; unanswered, all is done again."""
        transaction = derived("transaction", stored.sop_instance_uid, due.destination, str(due.attempt))
        until = self.clock() + _COMMITMENT_PATIENCE * 2.0 ** min(due.attempt - 1, 7)
        self.ledger.deliveries.settle(
            due, Delivery.AWAITED, str(stored), until, stored.sop_instance_uid, transaction_uid=transaction
        )
        try:
            ask(self.settings.peer(due.destination), self.caller, transaction, stored)
        except (Retry, Quarantine) as reason:
            told = f'{stored}, but storage commitment: {reason}; [[peers]] "{due.destination}" has commitment = true'
            if isinstance(reason, Retry):
                return self._postponed(due, reason, told, stored.sop_instance_uid)
            self.ledger.deliveries.settle(due, Delivery.FAILED, told, sent_uid=stored.sop_instance_uid)
            log.error("commitment refused", report_uid=due.report_uid, reason=reason.loggable)
            return Delivery.FAILED
        return Delivery.AWAITED

    def _send(self, due: DueDelivery) -> Stored:
        peer = self._receiver(due)
        _check_wanted(due, peer)
        if not due.path.exists():
            raise self._lost(due)
        if due.kind == Kind.COMMITMENT:
            return tell(peer, self.caller, dcmread(due.path))
        if peer.check_patient:
            self._check_patient(due, peer)
        if due.kind == Kind.REJECTION:
            self._check_rejection(due, peer)
        return store(due.path, peer, self.caller, _sendable)

    def _receiver(self, due: DueDelivery) -> Peer:
        try:
            return self.settings.peer(due.destination)
        except ConfigurationError as reason:
            other = f"`dicom-node deliveries redirect --from {due.destination} --to PEER`"
            raise ConfigurationError(f"{reason} Where another has taken its place: {other}") from reason

    def _lost(self, due: DueDelivery) -> NotYet | NotTaken | Quarantine:
        """What follows when the file is gone: a report is made again where all its images are here; a note is not, nor
        what has a successor."""
        if not due.path.parent.is_dir():
            return NotYet(f"{due.path.parent} is away")
        if due.kind == Kind.REJECTION:
            remedy = f"in {due.destination}, hide by hand what `dicom-node status {due.study_uid}` calls superseded"
            return NotTaken(f"{due.path} was lost; {remedy}")
        if newer := self.ledger.issued.successor_of(due.report_uid):
            return Replaced(f"{due.path} was lost; it is superseded by {newer}")
        lost = self.ledger.holdings.lost_reports([str(due.path)])
        if any(one.repeatable for one in lost) and self.ledger.holdings.make_again(due.study_uid):
            return NotYet(f"{due.path} was lost; the study is labelled again")
        remedy = f"push its study again where images are gone, then `dicom-node retry {due.study_uid}`"
        return Quarantine(f"{due.path} was lost and cannot be made again; {remedy}")

    def _check_rejection(self, due: DueDelivery, peer: Peer) -> None:
        """A note goes where the object that it rejects is stored, and after the report that supersedes that."""
        evidence = evidence_of(dcmread(due.path))
        for rejected in evidence:
            if self.ledger.deliveries.still_owes(rejected, peer.name):
                raise NotYet(f"{peer.name} has not stored what is to be rejected yet: {rejected}")
            if self.ledger.deliveries.sent_as(rejected, peer.name) != rejected:
                raise NotTaken(f"{peer.name} has not stored {rejected} under its own UID; there is nothing to reject")
            newer = self._superseding(rejected, peer.name)
            if not newer or not self.ledger.deliveries.sent_as(newer, peer.name):
                raise NotYet(f"{peer.name} has not stored the report that supersedes {rejected} yet")

    def _superseding(self, rejected: str, destination: str) -> str:
        """The report that supersedes another there, past those that never go there: people's own, which came from PACS,
        and those whose delivery a person has dismissed or given to another, or that were lost."""
        owed, spared = self.ledger.deliveries, ""
        newer = self.ledger.issued.successor_of(rejected)
        while newer and (not owed.has(newer) or owed.is_spared(newer, destination)):
            spared = newer if owed.is_spared(newer, destination) else spared
            newer = self.ledger.issued.successor_of(newer)
        if spared and not newer:
            remedy = f"hide {rejected} there by hand if a newer one is sent after all"
            raise NotTaken(f"the delivery of {spared} in its place was dismissed or redirected; {remedy}")
        return newer

    def _check_patient(self, due: DueDelivery, peer: Peer) -> None:
        """Hold what the peer would file under somebody else since a merge or a correction there."""
        try:
            there = patient_id_of(peer, self.caller, due.study_uid)
        except NotTaken as reason:
            raise Quarantine(f'{reason}; [[peers]] "{peer.name}" has check_patient = true, which needs it') from reason
        here = str(dcmread(due.path, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")
        if there is not None and there != here.strip():
            raise Quarantine(
                f"{peer.name} files this study under another Patient ID than its images had here; held. Undo it there "
                f"and `dicom-node retry {due.study_uid}`, or set check_patient = false to send it as it is"
            )


def _anew(due: DueDelivery) -> str:
    return f"remove {due.path} and `dicom-node deliveries retry {due.report_uid}` to have it made again"


def _check_wanted(due: DueDelivery, peer: Peer) -> None:
    """The settings may have changed since it was owed; what is not wanted need not be made again either."""
    if due.kind == Kind.SHEET and not peer.sheet:
        raise NotTaken(f"{peer.name} is to get no sheets (sheet = false)")
    if due.kind == Kind.REJECTION and not peer.reject_superseded:
        raise NotTaken(f"{peer.name} is to get no rejection notes (reject_superseded = false)")


def _sendable(report: Dataset, sop_class: UID) -> Dataset:
    """The report in a class that the destination takes, through the gate again: files rot, and renditions are new.

    The gate opens every sequence of what it is given. It gets a copy, since what is unopened is sent as it was read, in
    1 ms in place of 80.
    """
    read = deepcopy(report)
    if sop_class == KeyObjectSelectionDocumentStorage:
        passed_rejection(read, read)
    elif sop_class not in REPORT_CLASSES:
        passed_sheet(read, read)
    else:
        made = passed(rendition(read, sop_class), read, evidence_of(read), vocabulary())
        return report if made is read else made
    return report


def open_deliverer(settings: Settings) -> Deliverer:
    """The deliverer of a worker process."""
    return Deliverer(settings, Ledger(settings.ledger_url))
