"""One object's way from the wire into spool and ledger (PS3.4 B.2), however its bytes come.

What is wrong with an object is found before it has a name on the disk, and answered when all of it has come: a peer
that sends does not listen.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.wire import Answer
from dicom_node.errors import CutOff, IdentityMismatch, NotAuthorised, NotUnderstood, OutOfResources, Refused
from dicom_node.ledger import Ledger
from dicom_node.reports.audit import AUDIT_CLASSES
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Part, Spool, Stored
from dicom_node.spool.dataset import Identity, file_header, identify
from dicom_node.study import Instance, Sender
from dicom_node.uids import fault_of

log = structlog.get_logger("receive")

SUCCESS = 0x0000


@dataclass(frozen=True)
class Announced:
    """What a C-STORE request says about the object that follows, and the transfer syntax of its context."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str


class Intake:
    """Takes objects for one node."""

    def __init__(self, settings: Settings, spool: Spool, ledger: Ledger) -> None:
        self.settings, self.spool, self.ledger = settings, spool, ledger
        self.limit = settings.instance_limit_mib << 20

    def begin(self, announced: Announced, sender: Sender, peer: Peer) -> Reception:
        """Get ready for an object; never fails, since the answer has to wait."""
        return Reception(self, announced, sender, peer)


class Reception:
    """One object that is coming."""

    def __init__(self, intake: Intake, announced: Announced, sender: Sender, peer: Peer) -> None:
        self._intake, self._announced, self._sender = intake, announced, sender
        self._size = 0
        self._part: Part | None = None
        self._refused: Refused | None = None
        try:
            self._part = intake.spool.begin(_header(announced, sender, peer))
        except Refused as refused:
            self._refused = refused

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the data set.

        Raises:
            CutOff: there is no end to them.
        """
        self._size += len(data)
        if self._size > self._intake.limit:
            raise CutOff(f"an object of more than instance_limit_mib = {self._intake.settings.instance_limit_mib}")
        if self._part is None:
            return
        try:
            self._part.write(data)
        except Refused as refused:
            self._refuse(refused)

    def finish(self) -> Answer:
        """All of it has come: keep it, and say so or why not (PS3.4 B.2.3); every failure is a status."""
        try:
            return Answer(self._keep())
        except Refused as refused:
            return Answer(self._refused_with(refused), refused.comment)
        except SQLAlchemyError as error:
            url = self._intake.ledger.engine.url.render_as_string()
            log.error("the ledger failed", ledger=url, reason=str(error.args[0]))
            return Answer(OutOfResources.status, "the node's ledger does not answer; send it again later")
        except OSError as error:  # the disk, when it is asked whether what was sent again is still there
            failed = OutOfResources(f"{self._intake.spool.images}: {error.strerror or error}")
            return Answer(self._refused_with(failed), failed.comment)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave nothing behind of an object that was not kept."""
        if self._part is not None:
            self._part.abandon()
            self._part = None

    def _refuse(self, refused: Refused) -> None:
        self.abandon()
        self._refused = refused

    def _keep(self) -> int:
        part, announced = self._part, self._announced
        if part is None:
            raise self._refused or OutOfResources()
        identity = _identity(part, announced.transfer_syntax)
        _compare(identity, announced)
        stored = part.commit(identity.study_uid, identity.sop_instance_uid)
        entry = as_instance(identity, stored, announced.transfer_syntax, announced.sop_class_uid, self._sender)
        new = self._intake.ledger.add_instance(entry, former=stored.former_digest)
        if not new and not stored.path.exists():
            raise OutOfResources(f"{stored.path}: purged while it was sent again; the peer may send it once more")
        return SUCCESS

    def _refused_with(self, refused: Refused) -> int:
        sender, status = self._sender, refused.status
        log.error("object refused", peer=sender.peer, host=sender.host, status=hex(status), reason=str(refused))
        settings = self._intake.settings
        try:
            self._intake.ledger.refuse(sender.ae_title, settings.ae_title, sender.host, str(refused))
        except SQLAlchemyError as error:
            log.error("the ledger failed", reason=str(error.args[0]))
        return status


def _header(announced: Announced, sender: Sender, peer: Peer) -> bytes:
    """The file's header.

    Raises:
        Refused: the peer may not push this, or the command names no object.
    """
    right = "audit" if announced.sop_class_uid in AUDIT_CLASSES else "push"
    if not {"push", right} & peer.may:
        raise NotAuthorised(f'{sender.peer} may not send {announced.sop_class_uid}: add "{right}" to its may')
    for name, uid in (("class", announced.sop_class_uid), ("instance", announced.sop_instance_uid)):
        if fault := fault_of(uid):
            comment = f"the command's SOP {name} UID is {fault}"
            raise NotUnderstood(f"the command's SOP {name} UID is {uid[:64]!r}: {fault}", comment)
    return file_header(announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax, sender.ae_title)


def _identity(part: Part, transfer_syntax: str) -> Identity:
    """Read from the data set's first bytes, or from the disk where those do not tell."""
    try:
        return identify(part.head, transfer_syntax, whole=False)
    except NotUnderstood:
        with part.data_set() as data_set:
            return identify(data_set, transfer_syntax)


def _compare(identity: Identity, announced: Announced) -> None:
    if identity.sop_instance_uid != announced.sop_instance_uid:
        raise IdentityMismatch(
            f"the command announces {announced.sop_instance_uid}, the data set is {identity.sop_instance_uid}",
            "SOP Instance UID of the command is not that of the data set",
        )
    if identity.sop_class_uid not in (announced.sop_class_uid, ""):
        raise IdentityMismatch(
            f"the command announces class {announced.sop_class_uid}, the data set is of {identity.sop_class_uid}",
            "SOP Class UID of the command is not that of the data set",
        )


def as_instance(identity: Identity, stored: Stored, syntax: str, sop_class_uid: str, sender: Sender) -> Instance:
    return Instance(
        sop_instance_uid=identity.sop_instance_uid,
        digest=stored.digest,
        study_uid=identity.study_uid,
        series_uid=identity.series_uid,
        sop_class_uid=sop_class_uid,
        transfer_syntax_uid=syntax,
        modality=identity.modality,
        patient_key=identity.patient_key,
        path=stored.path,
        size=stored.size,
        received_at=stored.received_at,
        peer=sender.peer,
        calling_ae=sender.ae_title,
        conflict=stored.conflict,
        accession_key=identity.accession_key,
    )
