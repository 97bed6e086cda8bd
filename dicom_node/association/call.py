"""Associations that we open: over TLS where the peer wants it, without delay, and kept for the next object.

An association costs a peer more than an object does. So one that has done its work stays open for the peer's
`idle_seconds`; whoever next wants the same of the same peer goes on with it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydicom.uid import UID
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind

from dicom_node.association.tls import client_context, trouble_with
from dicom_node.errors import NotTaken, Quarantine, Retry
from dicom_node.idle import Idle, release
from dicom_node.settings import Peer, Settings
from dicom_node.spool.dataset import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

#: Seconds to wait for a connection, an association and an answer.
PATIENCE = 15
#: Seconds after which a peer that reads nothing of what we send is given up by the network itself.
_UNREAD = 60
#: Seconds to learn why a peer was not reached.
_ANEW = 3
#: SOP classes, with the transfer syntaxes of one presentation context each.
Contexts = Sequence[tuple[str, Sequence[str]]]

T = TypeVar("T")


class Caller:
    """We, as peers see us call. Safe for threads; an association is in one hand at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._idle = Idle()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what is kept open."""
        self._idle.close()

    def call(
        self, peer: Peer, contexts: Contexts, work: Callable[[Association], T | None], roles: Sequence[Any] = ()
    ) -> T:
        """What `work` is answered on an association with the peer, kept or new; it gives None for no answer.

        A kept association may be dead without our knowing. What is not answered there is asked again on a new one, so
        `work` must be something that may be done twice, as all of ours may: every object and transaction has its UID.

        Raises:
            Retry: the peer cannot be reached, rejects the association, or gives no answer.
            NotTaken: it accepts none of the presentation contexts.
            Quarantine: the settings give it no port.
            ConfigurationError: it wants TLS, and our certificates cannot be used.
        """
        key = (peer, tuple((sop_class, *syntaxes) for sop_class, syntaxes in contexts), bool(roles))
        while (kept := self._idle.take(key)) is not None:
            if (answer := self._ask(key, kept, work, peer.idle_seconds)) is not None:
                return answer
        answer = self._ask(key, self._opened(peer, contexts, roles), work, peer.idle_seconds)
        if answer is None:
            raise Retry(f"{at(peer)}: no answer within {PATIENCE} s")
        return answer

    def _ask(
        self, key: object, association: Association, work: Callable[[Association], T | None], idle_seconds: float
    ) -> T | None:
        try:
            answer = work(association)
        except BaseException as error:
            died = isinstance(error, RuntimeError) and not association.is_established
            release(association)
            if died:
                return None
            raise
        if answer is None or not idle_seconds:
            release(association)
        else:
            self._idle.keep(key, association, idle_seconds)
        return answer

    def _opened(self, peer: Peer, contexts: Contexts, roles: Sequence[Any]) -> Association:
        if peer.port is None:
            raise Quarantine(f'{peer.name}: no port in the settings; add port = ... to [[peers]] "{peer.name}"')
        entity = AE(self.settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION
        entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = PATIENCE
        entity.network_timeout = PATIENCE + peer.idle_seconds
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, _hurry), (evt.EVT_PDU_SENT, _hurry), (evt.EVT_PDU_RECV, _hurry)]
        context = client_context(self.settings) if peer.tls else None
        try:
            association = entity.associate(
                peer.host,
                peer.port,
                [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in contexts],
                peer.ae_title,
                ext_neg=list(roles),
                tls_args=(context, peer.host) if context else None,
                evt_handlers=handlers,
            )
        except socket.gaierror as error:  # no such name, or no name server: pynetdicom looks it up unguarded
            told = f'{error.strerror or error}; check host in [[peers]] "{peer.name}" and the name server'
            raise Retry(f"{at(peer)} cannot be looked up: {told}") from error
        except OSError as error:
            raise Retry(f"{at(peer)} cannot be called: {error.strerror or error}") from error
        if not association.is_established:
            _raise_why(association, peer, contexts[0][0], context)
        return association


def _raise_why(association: Association, peer: Peer, sop_class: str, context: ssl.SSLContext | None) -> None:
    if association.is_rejected:
        answer = association.acceptor.primitive
        why = f"{answer.source_str}: {answer.reason_str}" if answer else "no reason given"
        raise Retry(f"{at(peer)} rejected the association ({why}); check both AE titles and its list of callers")
    if association.rejected_contexts:
        raise NotTaken(f"{at(peer)} takes no {_called(sop_class)}")
    trouble = trouble_with(context, peer, PATIENCE) if context else None
    raise Retry(f"{at(peer)} {trouble or _unreached(peer)}")


def _unreached(peer: Peer) -> str:
    """It connects anew, since what pynetdicom meets on the way stays in its log."""
    try:
        socket.create_connection((peer.host, peer.port or 0), _ANEW).close()
    except ConnectionRefusedError:
        return "cannot be reached: connection refused; nothing listens there: check its port, and that it runs"
    except TimeoutError:
        return "cannot be reached: timed out; check host and the firewall, and that the machine is on"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}; check host and the network"
    # a peer that wants TLS hangs up on us when we do not speak it, and says no word
    return "did not answer; check port, and whether it wants tls = true"


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
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD)
        except OSError:
            return  # closed by the peer in this moment; the association will say so


def at(peer: Peer) -> str:
    """A peer as messages name it."""
    return f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
