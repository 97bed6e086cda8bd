"""C-ECHO and C-STORE SCP: who may come in; bytes as received -> spool and ledger -> 0x0000.

Success is answered only when the object would survive power loss (see `spool`) and stands in the ledger. Every object
class is taken, so that a scanner's push never fails for something that we do not label.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import ModalityPerformedProcedureStep, StorageCommitmentPushModel, Verification
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.admission import Admission, Caller, admit, crowded
from dicom_node.association.messages import Begin
from dicom_node.association.tls import Renewed
from dicom_node.association.transport import SEATS, Listener, WaitingRoom, listen
from dicom_node.association.wire import MAXIMUM_PDU, Answer, Command
from dicom_node.commitment import Commitments
from dicom_node.errors import CutOff, OutOfResources
from dicom_node.intake import SUCCESS, Announced, Intake, Reception
from dicom_node.ledger import Ledger
from dicom_node.mpps import PerformedSteps
from dicom_node.reconcile import reconcile
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.spool.dataset import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dicom_node.study import Sender

log = structlog.get_logger("receive")

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


#: PS3.7 C.5.24: unrecognized operation.
_UNRECOGNIZED = 0x0211
#: Seconds that an object which is coming gets to arrive when the receiver is told to end.
_GRACE = 5.0


class Receiver:
    """The storage SCP of this node."""

    def __init__(self, settings: Settings, spool: Spool, ledger: Ledger) -> None:
        self.settings, self.spool, self.ledger = settings, spool, ledger
        self.commitments = Commitments(settings, spool, ledger)
        self.intake = Intake(settings, spool, ledger)
        self._entity = AE(settings.ae_title)
        self._listeners: list[Listener] = []
        self.steps = PerformedSteps(settings, ledger)

    @property
    def port(self) -> int:
        """The port that is listened on; useful when the settings say 0."""
        return self._port_of(0)

    @property
    def tls_port(self) -> int:
        """The port for associations over TLS."""
        return self._port_of(1)

    def _port_of(self, position: int) -> int:
        if len(self._listeners) <= position:
            raise RuntimeError("the receiver has not been started, or has no such port")
        return int(self._listeners[position].server_address[1])

    def start(self) -> None:
        """Reconcile the spool with the ledger, then listen; returns at once."""
        reconcile(self.settings, self.spool, self.ledger)
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.LOG_HANDLER_LEVEL = "none"
        self._introduce(self._entity)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_CREATE, self.steps.on_create),
            (evt.EVT_N_SET, self.steps.on_set),
            (evt.EVT_N_ACTION, self.commitments.on_action),
            (evt.EVT_N_EVENT_REPORT, self.commitments.on_event_report),
        ]
        self._listen(handlers)

    def _introduce(self, entity: AE) -> None:
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION
        entity.maximum_associations = self.settings.associations + SEATS  # ours are counted at the door
        entity.maximum_pdu_size = MAXIMUM_PDU
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.settings.network_timeout
        entity.add_supported_context(Verification)
        entity.add_supported_context(ModalityPerformedProcedureStep)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)

    def _listen(self, handlers: list[Any]) -> None:
        settings, tls = self.settings, self.settings.tls
        common: dict[str, Any] = {
            "door": self,
            "room": WaitingRoom(),
            "patience": settings.request_timeout,
            "shared": (settings.receivers or 1) > 1,
        }
        ports = [(settings.port, None), *([(tls.port, Renewed(tls))] if tls else [])]
        for port, certificates in ports:
            made = listen(self._entity, (settings.bind, port), handlers, certificates=certificates, **common)
            self._listeners.append(made)
            named = {"ae_title": settings.ae_title, "host": settings.bind, "port": made.server_address[1]}
            log.info("listening", tls=certificates is not None, **named)

    def stop(self) -> None:
        """Accept no more; objects that are coming get a few seconds to arrive, then all associations end."""
        for listener in self._listeners:
            listener.shutdown()
        deadline = time.monotonic() + _GRACE
        while any(_is_busy(guest) for guest in self._guests()) and time.monotonic() < deadline:
            time.sleep(0.05)
        guests = self._guests()
        for guest in guests:
            guest.abort(block=False)
        for guest in guests:
            guest.join(1.0)
        self.spool.close()
        if self._listeners:
            _config.UNRESTRICTED_STORAGE_SERVICE = False
            self._listeners.clear()

    def _guests(self) -> list[Association]:
        return [found for found in self._entity.active_associations if found.is_acceptor]

    # -- the door ----------------------------------------------------------------------------------------------------

    def admit(self, caller: Caller) -> Admission:
        """May this caller come in, now?"""
        found = admit(caller.calling_ae, caller.called_ae, caller.host, self.settings, secure=caller.secure)
        if found.peer is None:
            return found
        return crowded(found.peer, caller.host, [guest.requestor.address for guest in self._guests()], self.settings)

    def turned_away(self, caller: Caller, reason: str, remedy: str = "") -> None:
        """Say and count that somebody was not let in, or was cut off."""
        log.warning("turned away", **{**caller.__dict__, "reason": reason, "remedy": remedy})
        try:
            self.ledger.refuse(caller.calling_ae, caller.called_ae, caller.host, reason)
        except SQLAlchemyError as error:
            log.error("the ledger failed", reason=str(error.args[0]))

    @property
    def begin(self) -> Begin | None:
        return self._begin if self.settings.fast_path else None

    def _begin(self, association: Association, context: PresentationContext, request: Command) -> Reception:
        """A C-STORE request has come, its data set follows."""
        syntax = str(context.transfer_syntax[0])
        return self._reception(association, Announced(request.sop_class_uid, request.sop_instance_uid, syntax))

    def _reception(self, association: Association, announced: Announced) -> Reception:
        caller, peer = association.dul.guest.caller, association.dul.guest.peer
        return self.intake.begin(announced, Sender(caller.calling_ae, caller.host, peer.name), peer)

    # -- what pynetdicom asks ----------------------------------------------------------------------------------------

    def _on_requested(self, event: evt.Event) -> None:
        """An association was admitted; decodable transfer syntaxes come first."""
        for context in event.assoc.requestor.primitive.presentation_context_definition_list:
            context.transfer_syntax = sorted(context.transfer_syntax, key=lambda uid: uid not in DECODABLE)

    def _on_echo(self, event: evt.Event) -> int:
        return SUCCESS

    def _on_store(self, event: evt.Event) -> int | Dataset:
        """A whole object, where the fast path is not used (PS3.4 B.2.3)."""
        request, syntax = event.request, str(event.context.transfer_syntax)
        if not isinstance(request, C_STORE):
            return _UNRECOGNIZED
        announced = Announced(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), syntax)
        reception = self._reception(event.assoc, announced)
        try:
            reception.write(request.DataSet.getbuffer())
            return _as_data_set(reception.finish())
        except CutOff as cut:
            self.turned_away(event.assoc.dul.guest.caller, str(cut))
            return OutOfResources.status
        finally:
            reception.abandon()


def _as_data_set(said: Answer) -> Dataset:
    """An answer as pynetdicom takes it."""
    made = Dataset()
    made.Status = said.status
    if said.words:
        made.ErrorComment = said.words.decode()
    return made


def _is_busy(association: Association) -> bool:
    messages = association.dul.messages
    return messages is not None and messages.busy
