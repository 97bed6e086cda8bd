"""C-STORE and C-ECHO SCU: one object to one peer, what its answer means, and what the peer would take at all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind, Verification

from dicom_node.dataset import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dicom_node.errors import NotTaken, Quarantine, Retry
from dicom_node.settings import Peer
from dicom_node.study import REPORT_CLASSES

#: Success, and the warnings with which the object is stored (PS3.4 Table B.2-1).
STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
#: Seconds to wait for a connection, an association and an answer.
_PATIENCE = 15
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

#: Makes an object of that class of a report.
Render = Callable[[Dataset, UID], Dataset]

#: What a peer is asked for by `preflight`: the classes that a report may take, best first, and its pictures.
WANTED: dict[UID, tuple[UID, ...]] = {
    Verification: PLAIN,
    **dict.fromkeys(REPORT_CLASSES, (*PLAIN, DeflatedExplicitVRLittleEndian)),
    SecondaryCaptureImageStorage: (*PLAIN, RLELossless),
}


@dataclass(frozen=True)
class Stored:
    """What a peer has stored: its answer, and the object as it was sent."""

    status: int
    sop_class_uid: UID
    sop_instance_uid: str

    def __str__(self) -> str:
        return f"0x{self.status:04X}, as {self.sop_class_uid.name}"


def store(path: Path, peer: Peer, calling_ae: str, render: Render | None = None) -> Stored:
    """Send one file by C-STORE; returns when the peer has stored it.

    Proposes the file's own SOP class and, for a report that can be rendered, all of `REPORT_CLASSES`: where the peer
    does not take the first, it gets the report in the best class that it takes.

    Raises:
        Retry: the peer cannot be reached, is out of resources, or gave no answer.
        Quarantine: the peer will not take this object, however often it is sent.
    """
    data_set = dcmread(path)
    own = UID(data_set.SOPClassUID)
    wanted = REPORT_CLASSES if render and own in REPORT_CLASSES else (own,)
    contexts = [(sop_class, syntaxes) for sop_class in wanted for syntaxes in _syntaxes_of(data_set)]
    with associated(peer, calling_ae, contexts) as association:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        best = own if own in accepted else next(sop_class for sop_class in wanted if sop_class in accepted)
        sent = render(data_set, best) if render else data_set
        syntaxes = {context.transfer_syntax[0] for context in association.accepted_contexts}
        if sent.file_meta.TransferSyntaxUID not in syntaxes:
            _unpack(sent)
        try:
            answer = association.send_c_store(sent)
        except (ValueError, RuntimeError) as error:
            raise Retry(f"{at(peer)}: {error}") from error
    status = answer.get("Status")
    if status is None:
        raise Retry(f"{at(peer)}: no answer to C-STORE within {_PATIENCE} s")
    if status in STORED:
        return Stored(int(status), UID(sent.SOPClassUID), str(sent.SOPInstanceUID))
    told = f"{at(peer)} answered 0x{status:04X} {answer.get('ErrorComment', '')}".strip()
    if 0xA700 <= status <= 0xA7FF or status in (0x0110, 0x0210):
        raise Retry(told)
    raise Quarantine(told)


def _syntaxes_of(data_set: Dataset) -> list[list[UID]]:
    """Transfer syntaxes by presentation context: the file's own, and the plain ones where it can be made plain.

    A peer answers one transfer syntax a presentation context, and every peer knows Implicit VR Little Endian.
    """
    own = data_set.file_meta.TransferSyntaxUID
    if own == ExplicitVRLittleEndian:
        return [[own, ImplicitVRLittleEndian]]
    return [[own], list(PLAIN)] if own == RLELossless else [[own]]


def _unpack(data_set: Dataset) -> None:
    """Run-length encoded pixels -> plain ones, in the same instance: the same picture (PS3.5 A.4.2)."""
    if data_set.file_meta.TransferSyntaxUID == RLELossless:
        data_set.decompress(generate_instance_uid=False)


def echo(peer: Peer, calling_ae: str) -> None:
    """C-ECHO; returns when the peer answers success.

    Raises:
        Retry: it does not; the message says where it stopped.
    """
    with associated(peer, calling_ae, [(Verification, PLAIN)]) as association:
        answer = association.send_c_echo()
    status = answer.get("Status")
    if status != 0x0000:
        raise Retry(f"{at(peer)}: C-ECHO answered {'nothing' if status is None else hex(status)}")


def preflight(peer: Peer, calling_ae: str) -> dict[UID, tuple[UID, ...]]:
    """What the peer would take: for every SOP class of `WANTED` the transfer syntaxes that it accepts. Sends no object.

    A peer answers one transfer syntax a presentation context (PS3.8 9.3.3.2), so each pair is proposed by itself.

    Raises:
        Retry: the peer cannot be reached or rejects the association.
        Quarantine: the settings give it no port.
    """
    pairs = [(sop_class, (syntax,)) for sop_class, syntaxes in WANTED.items() for syntax in syntaxes]
    try:
        with associated(peer, calling_ae, pairs) as association:
            accepted = {
                (context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts
            }
    except NotTaken:
        accepted = set()
    return {
        sop_class: tuple(syntax for syntax in syntaxes if (sop_class, syntax) in accepted)
        for sop_class, syntaxes in WANTED.items()
    }


def patient_id_of(peer: Peer, calling_ae: str, study_uid: str) -> str | None:
    """Under which Patient ID a peer files a study now; None where it has no such study. Raises as `_found` does."""
    return _found(peer, calling_ae, study_uid, "PatientID")


def objects_of(peer: Peer, calling_ae: str, study_uid: str) -> int:
    """How many objects of a study a peer holds, 0 where it does not say. Raises as `_found` does."""
    told = _found(peer, calling_ae, study_uid, "NumberOfStudyRelatedInstances")
    return int(told) if told and told.isdecimal() else 0


def _found(peer: Peer, calling_ae: str, study_uid: str, keyword: str) -> str | None:
    """One attribute of a study at a peer (C-FIND, PS3.4 C.6.2.1); None where it has no such study.

    Raises:
        Retry: the peer cannot be asked now.
        NotTaken: it answers no queries.
        Quarantine: the settings give it no port.
    """
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_uid
    setattr(query, keyword, None)
    model = StudyRootQueryRetrieveInformationModelFind
    found: str | None = None
    with associated(peer, calling_ae, [(model, PLAIN)]) as association:
        for status, match in association.send_c_find(query, model):
            code = status.get("Status")
            if code not in (0x0000, 0xFF00, 0xFF01):
                told = "nothing; does it know our AE title?" if code is None else hex(code)
                raise Retry(f"{at(peer)}: C-FIND answered {told}")
            if match is not None:
                found = str(match.get(keyword) or "").strip()
    return found


@contextmanager
def associated(
    peer: Peer, calling_ae: str, contexts: Iterable[tuple[str, Sequence[str]]], roles: Sequence[Any] = ()
) -> Iterator[Association]:
    """An association with a peer, released at the end.

    Raises:
        Retry: the peer cannot be reached or rejects the association.
        NotTaken: it accepts none of the presentation contexts.
        Quarantine: the settings give it no port.
    """
    if peer.port is None:
        raise Quarantine(f'{peer.name}: no port in the settings; add port = ... to [[peers]] "{peer.name}"')
    entity = AE(calling_ae)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _PATIENCE
    handlers: list[Any] = [(evt.EVT_CONN_OPEN, _hurry), (evt.EVT_PDU_SENT, _hurry), (evt.EVT_PDU_RECV, _hurry)]
    proposed = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in contexts]
    association = entity.associate(
        peer.host, peer.port, proposed, peer.ae_title, ext_neg=list(roles), evt_handlers=handlers
    )
    if not association.is_established:
        _raise_why(association, peer, proposed[0].abstract_syntax)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _raise_why(association: Association, peer: Peer, sop_class: str) -> None:
    if association.is_rejected:
        answer = association.acceptor.primitive
        why = f"{answer.source_str}: {answer.reason_str}" if answer else "no reason given"
        raise Retry(f"{at(peer)} rejected the association ({why}); check both AE titles and its list of callers")
    if association.rejected_contexts:
        raise NotTaken(f"{at(peer)} takes no {_called(sop_class)}")
    raise Retry(f"{at(peer)} cannot be reached or did not answer; check host, port and firewall")


def _called(sop_class: str) -> str:
    services = {StorageCommitmentPushModel: "storage commitment", StudyRootQueryRetrieveInformationModelFind: "queries"}
    return services.get(UID(sop_class), f"objects of the SOP class {sop_class}")


def _hurry(event: evt.Event) -> None:
    """Small answers must not wait for each other: 92 ms become 6 ms per report at Orthanc."""
    transport = event.assoc.dul.socket
    connection = transport.socket if transport else None
    if connection is not None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            return  # closed by the peer in this moment; the association will say so


def at(peer: Peer) -> str:
    """A peer as messages name it."""
    return f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
