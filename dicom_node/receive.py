"""C-ECHO and C-STORE SCP: who may come in; bytes as received -> spool and ledger -> 0x0000.

Success is answered only when the object would survive power loss (see `spool`) and stands in the ledger. Every object
class is taken, so that a scanner's push never fails for something that we do not label.
"""

from __future__ import annotations

from typing import Any

import structlog
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import ModalityPerformedProcedureStep, StorageCommitmentPushModel, Verification
from pynetdicom.transport import ThreadedAssociationServer
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.admission import admit
from dicom_node.audit import AUDIT_CLASSES
from dicom_node.commitment import Commitments
from dicom_node.dataset import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION,
    file_header,
    identify,
)
from dicom_node.errors import IdentityMismatch, OutOfResources, Refused
from dicom_node.ledger import Ledger
from dicom_node.mpps import PerformedSteps
from dicom_node.reconcile import as_instance, reconcile
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.study import Sender

log = structlog.get_logger("receive")

SUCCESS = 0x0000
#: PS3.7 C.5.7: refused, not authorised.
NOT_AUTHORISED = 0x0124

#: Bytes of a PDU that we are ready to receive.
MAXIMUM_PDU = 131072

#: Transfer syntaxes that the labeler can decode; chosen first when a peer offers several.
DECODABLE = frozenset(
    {
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
        "1.2.840.10008.1.2.5",  # RLE Lossless
        "1.2.840.10008.1.2.4.50",  # JPEG Baseline
        "1.2.840.10008.1.2.4.51",  # JPEG Extended
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.4.201",  # High-Throughput JPEG 2000 Lossless
        "1.2.840.10008.1.2.4.202",  # High-Throughput JPEG 2000 with RPCL Lossless
        "1.2.840.10008.1.2.4.203",  # High-Throughput JPEG 2000
    }
)


class Receiver:
    """The storage SCP of this node."""

    def __init__(self, settings: Settings, spool: Spool, ledger: Ledger) -> None:
        self.settings, self.spool, self.ledger = settings, spool, ledger
        self.commitments = Commitments(settings, spool, ledger)
        self.steps = PerformedSteps(settings, ledger)
        self._server: ThreadedAssociationServer | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; useful when the settings say 0."""
        if self._server is None:
            raise RuntimeError("the receiver has not been started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Reconcile the spool with the ledger, then listen; returns at once."""
        reconcile(self.settings, self.spool, self.ledger)
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.LOG_HANDLER_LEVEL = "none"
        entity = AE(self.settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION
        entity.maximum_associations = self.settings.associations
        entity.maximum_pdu_size = MAXIMUM_PDU
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.settings.network_timeout
        entity.add_supported_context(Verification)
        entity.add_supported_context(ModalityPerformedProcedureStep)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_CREATE, self.steps.on_create),
            (evt.EVT_N_SET, self.steps.on_set),
            (evt.EVT_N_ACTION, self.commitments.on_action),
            (evt.EVT_N_EVENT_REPORT, self.commitments.on_event_report),
        ]
        address = (self.settings.bind, self.settings.port)
        self._server = entity.start_server(address, block=False, evt_handlers=handlers)
        log.info("listening", ae_title=self.settings.ae_title, host=self.settings.bind, port=self.port)

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            _config.UNRESTRICTED_STORAGE_SERVICE = False
            self._server = None

    def _on_requested(self, event: evt.Event) -> None:
        """Admit or reject an association; decodable transfer syntaxes come first."""
        request = event.assoc.requestor.primitive
        calling, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        host = event.assoc.requestor.address
        admission = admit(calling, called, host, self.settings)
        if admission.peer is None:
            log.warning("association rejected", host=host, reason=admission.reason, admit_with=admission.remedy)
            self.ledger.refuse(calling, called, host, admission.reason)
            event.assoc.acse.send_reject(*admission.codes)
            event.assoc.kill()
            return
        for context in request.presentation_context_definition_list:
            context.transfer_syntax = sorted(context.transfer_syntax, key=lambda uid: uid not in DECODABLE)

    def _on_echo(self, event: evt.Event) -> int:
        return SUCCESS

    def _on_store(self, event: evt.Event) -> int:
        """Answer one C-STORE request (PS3.4 B.2.3); every failure is a named status, never an exception."""
        sender = self._sender(event)
        if sender is None:
            return NOT_AUTHORISED
        try:
            return self._take(event, sender)
        except Refused as refused:
            log.error(
                "object refused", peer=sender.peer, host=sender.host, status=hex(refused.status), reason=str(refused)
            )
            self.ledger.refuse(sender.ae_title, self.settings.ae_title, sender.host, str(refused))
            return refused.status
        except SQLAlchemyError as error:
            log.error("the ledger failed", ledger=self.ledger.engine.url.render_as_string(), reason=str(error.args[0]))
            return OutOfResources.status

    def _sender(self, event: evt.Event) -> Sender | None:
        requestor = event.assoc.requestor
        calling = str(requestor.ae_title).strip()
        peer = admit(calling, self.settings.ae_title, requestor.address, self.settings).peer
        right = "audit" if event.request.AffectedSOPClassUID in AUDIT_CLASSES else "push"
        if peer is None or not {"push", right} & peer.may:
            log.warning("push refused", calling_ae=calling, host=requestor.address, remedy=f'add "{right}" to its may')
            return None
        return Sender(calling, requestor.address, peer.name)

    def _take(self, event: evt.Event, sender: Sender) -> int:
        request, syntax = event.request, str(event.context.transfer_syntax)
        data_set = request.DataSet.getbuffer()
        identity = identify(data_set, syntax)
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        if identity.sop_instance_uid != announced[1] or identity.sop_class_uid not in (announced[0], ""):
            raise IdentityMismatch(f"the command announces {announced[1]}, the data set is {identity.sop_instance_uid}")
        header = file_header(announced[0], identity.sop_instance_uid, syntax, sender.ae_title)
        stored = self.spool.store(identity.study_uid, identity.sop_instance_uid, header, data_set)
        new = self.ledger.add_instance(as_instance(identity, stored, syntax, announced[0], sender))
        if not new and not stored.path.exists():  # purged in between: it stood there when it came
            stored = self.spool.store(identity.study_uid, identity.sop_instance_uid, header, data_set)
            new = self.ledger.add_instance(as_instance(identity, stored, syntax, announced[0], sender))
        log.debug("stored", sop_instance_uid=identity.sop_instance_uid, peer=sender.peer, new=new)
        return SUCCESS
