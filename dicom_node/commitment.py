"""Storage commitment (PS3.4 Annex J), both ways: archives answer for what we sent, we answer to scanners.

The question (N-ACTION) and the answer (N-EVENT-REPORT) travel on associations of their own, minutes apart, so nothing
of either is kept in memory. What we are asked is judged at once and written down; the answer then waits among the
deliveries until the scanner has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import structlog
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_node.association.admission import admit
from dicom_node.association.call import Caller, at
from dicom_node.errors import Quarantine, Retry
from dicom_node.ledger import Ledger
from dicom_node.send import PLAIN, Stored
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Spool
from dicom_node.uids import derived, is_uid

if TYPE_CHECKING:
    from pynetdicom import evt

log = structlog.get_logger("commitment")

SUCCESS, PROCESSING_FAILURE = 0x0000, 0x0110
#: Failure Reason (0008,1197), PS3.4 J.3.3.1.2.
NO_SUCH_OBJECT, CLASS_CONFLICT = 0x0112, 0x0119
#: Event types (PS3.4 Table J.3-2): all committed, failures exist.
_ALL, _SOME = 1, 2

Answer = tuple[int, None]


# -- our questions -------------------------------------------------------------------------------------------------


def ask(peer: Peer, caller: Caller, transaction_uid: str, stored: Stored) -> None:
    """Ask a peer to answer for an object that it has stored; the answer comes to the receiver.

    Raises:
        Retry: the peer cannot be asked now.
        NotTaken: it knows no storage commitment.
        Quarantine: it refuses.
    """
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [_reference(str(stored.sop_class_uid), stored.sop_instance_uid)]

    def work(association: Association) -> int | None:
        answer, _ = association.send_n_action(
            request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return _status_of(answer)

    status = caller.call(peer, [(StorageCommitmentPushModel, PLAIN)], work)
    if status != SUCCESS:
        raise Quarantine(f"{at(peer)} answered N-ACTION with 0x{status:04X}")


def _status_of(answer: Dataset) -> int | None:
    status = answer.get("Status")
    return None if status is None else int(status)


def _reference(sop_class_uid: str, sop_instance_uid: str, failure: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if failure is not None:
        item.FailureReason = failure
    return item


# -- our answers ---------------------------------------------------------------------------------------------------


def judged(request: Dataset, held: Callable[[str], str | None]) -> Dataset:
    """The answer to a request for commitment: what we hold, and why not the rest. Pure.

    Args:
        held: SOP Instance UID -> SOP Class UID of the object that is durable here; None where there is none.
    """
    answer = Dataset()
    answer.TransactionUID = request.TransactionUID
    good, bad = [], []
    for item in request.ReferencedSOPSequence:
        wanted, uid = str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)
        known = held(uid)
        if known == wanted:
            good.append(_reference(wanted, uid))
        else:
            bad.append(_reference(wanted, uid, NO_SUCH_OBJECT if known is None else CLASS_CONFLICT))
    if good:
        answer.ReferencedSOPSequence = good
    if bad:
        answer.FailedSOPSequence = bad
    return answer


def tell(peer: Peer, caller: Caller, answer: Dataset) -> Stored:
    """Bring an answer to who asked; we act as SCP on an association that we open (PS3.4 J.3.3.1.1).

    Raises:
        Retry: the peer cannot be told now, or does not take it.
    """
    roles = [build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)]
    event_type = _SOME if "FailedSOPSequence" in answer else _ALL

    def work(association: Association) -> int | None:
        status, _ = association.send_n_event_report(
            answer, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return _status_of(status)

    status = caller.call(peer, [(StorageCommitmentPushModel, PLAIN)], work, roles)
    if status != SUCCESS:
        raise Retry(f"{at(peer)} did not take our answer about storage commitment: 0x{status:04X}")
    return Stored(SUCCESS, UID(StorageCommitmentPushModel), str(answer.TransactionUID))


def as_file(answer: Dataset, uid: str) -> bytes:
    """An answer as it waits on the disk."""
    answer.file_meta = FileMetaDataset()
    answer.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    answer.file_meta.MediaStorageSOPClassUID = StorageCommitmentPushModel
    answer.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    buffer = BytesIO()
    answer.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Commitments:
    """What the receiver does with questions and answers."""

    def __init__(self, settings: Settings, spool: Spool, ledger: Ledger) -> None:
        self.settings, self.spool, self.ledger = settings, spool, ledger

    def on_action(self, event: evt.Event) -> Answer:
        """A scanner asks whether we answer for its images (N-ACTION)."""
        peer, request = self._peer(event), event.action_information
        if peer is None or "push" not in peer.may or peer.port is None or peer.host == "any" or "/" in peer.host:
            name = peer.name if peer else "nobody"
            remedy = f'[[peers]] "{name}" needs may = ["push"], one host, and the port on which it hears the answer'
            log.error("storage commitment refused", peer=name, remedy=remedy)
            return PROCESSING_FAILURE, None
        if not is_uid(str(request.get("TransactionUID", ""))) or not request.get("ReferencedSOPSequence"):
            log.error("storage commitment refused", peer=peer.name, reason="no transaction or no objects named")
            return PROCESSING_FAILURE, None
        named = [str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence]
        self.ledger.holdings.promise(named)  # from here on no purge takes away what is found below
        answer = judged(request, self._held)
        uid = derived("commitment", peer.name, str(request.TransactionUID))
        self.ledger.deliveries.owe_commitment(uid, self.spool.store_report(uid, as_file(answer, uid)), peer.name)
        missing = len(answer.get("FailedSOPSequence") or [])
        objects = len(request.ReferencedSOPSequence)
        log.info("storage commitment asked", peer=peer.name, objects=objects, not_held=missing)
        return SUCCESS, None

    def on_event_report(self, event: evt.Event) -> Answer:
        """An archive answers for our reports (N-EVENT-REPORT)."""
        peer, answer = self._peer(event), event.event_information
        if peer is None or "reports" not in peer.may:
            return PROCESSING_FAILURE, None
        transaction = str(answer.get("TransactionUID", ""))
        good = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        settled = self.ledger.deliveries.commitment_answered(transaction, peer.name, good, failures_of(answer))
        for uid, reason in failures_of(answer).items():
            log.warning("not committed; it will be sent again", sent_uid=uid, destination=peer.name, reason=reason)
        log.info("storage commitment answered", destination=peer.name, transaction=transaction, settled=settled)
        return SUCCESS, None

    def _peer(self, event: evt.Event) -> Peer | None:
        requestor = event.assoc.requestor
        return admit(str(requestor.ae_title), self.settings.ae_title, requestor.address, self.settings).peer

    def _held(self, sop_instance_uid: str) -> str | None:
        found = self.ledger.instance(sop_instance_uid)
        here = found is not None and not found.absent and found.path.exists()
        return found.sop_class_uid if found is not None and here else None


def failures_of(answer: Dataset) -> Mapping[str, str]:
    """SOP Instance UID -> failure reason, of an N-EVENT-REPORT."""
    return {
        str(item.ReferencedSOPInstanceUID): f"0x{int(item.get('FailureReason') or 0):04X}"
        for item in answer.get("FailedSOPSequence") or []
    }
