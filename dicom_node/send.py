"""C-STORE and C-ECHO SCU: one object to one peer, and what its answer means."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from dicom_node.dataset import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dicom_node.errors import Quarantine, Retry
from dicom_node.settings import Peer

#: Success, and the warnings with which the object is stored (PS3.4 Table B.2-1).
STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
#: Seconds to wait for a connection, an association and an answer.
_PATIENCE = 15


def store(path: Path, peer: Peer, calling_ae: str) -> int:
    """Send one file by C-STORE; returns the status when the peer has stored it.

    Proposes the file's own SOP class and nothing else, with the two uncompressed little-endian syntaxes.

    Raises:
        Retry: the peer cannot be reached, is out of resources, or gave no answer.
        Quarantine: the peer will not take this object, however often it is sent.
    """
    data_set = dcmread(path)
    syntaxes = [data_set.file_meta.TransferSyntaxUID]
    if ExplicitVRLittleEndian in syntaxes:
        syntaxes.append(ImplicitVRLittleEndian)
    with _associated(peer, calling_ae, data_set.SOPClassUID, syntaxes) as association:
        try:
            answer = association.send_c_store(data_set)
        except (ValueError, RuntimeError) as error:
            raise Retry(f"{_at(peer)}: {error}") from error
    status = answer.get("Status")
    if status is None:
        raise Retry(f"{_at(peer)}: no answer to C-STORE within {_PATIENCE} s")
    if status in STORED:
        return int(status)
    told = f"{_at(peer)} answered 0x{status:04X} {answer.get('ErrorComment', '')}".strip()
    if 0xA700 <= status <= 0xA7FF or status in (0x0110, 0x0210):
        raise Retry(told)
    raise Quarantine(told)


def echo(peer: Peer, calling_ae: str) -> None:
    """C-ECHO; returns when the peer answers success.

    Raises:
        Retry: it does not; the message says where it stopped.
    """
    with _associated(peer, calling_ae, Verification, None) as association:
        answer = association.send_c_echo()
    status = answer.get("Status")
    if status != 0x0000:
        raise Retry(f"{_at(peer)}: C-ECHO answered {'nothing' if status is None else hex(status)}")


@contextmanager
def _associated(peer: Peer, calling_ae: str, sop_class: str, syntaxes: Sequence[str] | None) -> Iterator[Association]:
    if peer.port is None:
        raise Quarantine(f'{peer.name}: no port in the settings; add port = ... to [[peers]] "{peer.name}"')
    entity = AE(calling_ae)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _PATIENCE
    entity.add_requested_context(sop_class, syntaxes) if syntaxes else entity.add_requested_context(sop_class)
    handlers: list[Any] = [(evt.EVT_CONN_OPEN, _hurry), (evt.EVT_PDU_SENT, _hurry), (evt.EVT_PDU_RECV, _hurry)]
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=handlers)
    if not association.is_established:
        _raise_why(association, peer, sop_class)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _raise_why(association: Association, peer: Peer, sop_class: str) -> None:
    if association.is_rejected:
        answer = association.acceptor.primitive
        why = f"{answer.source_str}: {answer.reason_str}" if answer else "no reason given"
        raise Retry(f"{_at(peer)} rejected the association ({why}); check both AE titles and its list of callers")
    if association.rejected_contexts:
        raise Quarantine(f"{_at(peer)} takes no objects of the SOP class {sop_class}")
    raise Retry(f"{_at(peer)} cannot be reached or did not answer; check host, port and firewall")


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


def _at(peer: Peer) -> str:
    return f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
