"""Connections, from accept to association.

Until its association request has come, whole and in time, a connection costs one thread and nothing else: it is no
association, takes no association's place, and has no buffer. The TLS handshake is made in that thread, never in the one
that accepts. Whoever is not admitted is turned away there; everybody else gets an association of pynetdicom's, with our
socket and our upper layer provider (`provider`).
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from socketserver import BaseServer
from threading import Lock, Thread
from typing import Any

import structlog
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicom_node.association.admission import Caller
from dicom_node.association.certificates import remedy_of
from dicom_node.association.provider import Door, Guest, equip
from dicom_node.association.tls import Renewed
from dicom_node.association.wire import AN_ABORT, ASSOCIATE_RQ, HEADER, pdu_length, rejection
from dicom_node.errors import ConfigurationError, CutOff

log = structlog.get_logger("transport")

#: Connections that may wait at a time, and those of one host; the longest silent one makes room for the next.
SEATS, SEATS_PER_HOST = 128, 32
#: Bytes of an association request; 128 presentation contexts with 20 transfer syntaxes each fit.
_LONGEST_REQUEST = 1 << 17


@dataclass(eq=False)
class Visitor:
    """A connection whose association request has not yet come."""

    connection: socket.socket
    address: Any
    shown_out: bool = False

    @property
    def host(self) -> str:
        return str(self.address[0])

    def show_out(self) -> None:
        self.shown_out = True
        with suppress(OSError):  # of the plain socket: its thread wakes up and takes its leave
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)


@dataclass
class WaitingRoom:
    """Connections that wait; where seats run out the longest waiting gives way, so that silence locks nobody out."""

    seats: int = SEATS
    seats_per_host: int = SEATS_PER_HOST
    _waiting: list[Visitor] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def enter(self, visitor: Visitor) -> None:
        with self._lock:
            of_host = [other for other in self._waiting if other.host == visitor.host]
            crowded = of_host if len(of_host) >= self.seats_per_host else self._waiting
            if crowded is of_host or len(self._waiting) >= self.seats:
                self._waiting.remove(crowded[0])
                crowded[0].show_out()
            self._waiting.append(visitor)

    def leave(self, visitor: Visitor) -> None:
        with self._lock:
            if visitor in self._waiting:
                self._waiting.remove(visitor)


class Listener(ThreadedAssociationServer):
    """Accepts connections on one port."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        *arguments: Any,
        door: Door,
        room: WaitingRoom,
        certificates: Renewed | None = None,
        patience: float = 10.0,
        shared: bool = False,
        **named: Any,
    ) -> None:
        """Bind and listen.

        Args:
            certificates: associations come over TLS.
            patience: seconds for handshake and association request together.
            shared: other processes listen on this port, too; the kernel shares connections out.
        """
        self.door, self._room, self._certificates = door, room, certificates
        self._patience, self._shared = patience, shared
        super().__init__(*arguments, **named)

    def server_bind(self) -> None:
        if self._shared:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def start(self) -> None:
        Thread(target=self.serve_forever, name="listener", daemon=True).start()

    def shutdown(self) -> None:
        """Accept no more; associations go on."""
        BaseServer.shutdown(self)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        visitor = Visitor(request, client_address)
        self._room.enter(visitor)
        super().process_request(visitor, client_address)

    def process_request_thread(self, request: Visitor, client_address: Any) -> None:
        """A connection's own thread, until its association has threads of its own."""
        visitor = request
        try:
            self._welcome(visitor)
        except CutOff as cut:
            self._turn_away(visitor, str(cut))
        except ssl.SSLError as error:
            reason = failure(error)
            self._turn_away(visitor, reason, remedy_of(reason))
        except TimeoutError:
            self._turn_away(visitor, f"no association request within {self._patience:g} s")
        except OSError:  # it hung up before it said anything whole, as port scanners and health checks do
            if visitor.shown_out:
                self._turn_away(visitor, "silent; gave way to newer connections")
            visitor.connection.close()
        finally:
            self._room.leave(visitor)

    def _welcome(self, visitor: Visitor) -> None:
        deadline = time.monotonic() + self._patience
        if self._certificates is not None:
            self._shake_hands(visitor, self._certificates.context())
        request = association_request(visitor.connection, deadline)
        caller = _caller(request, visitor.host, secure=self._certificates is not None)
        admission = self.door.admit(caller)
        if admission.peer is None:
            self.door.turned_away(caller, admission.reason, admission.remedy)
            _end(visitor.connection, rejection(*admission.codes))
            return
        Handler(visitor, self, request, Guest(caller, admission.peer))

    def _shake_hands(self, visitor: Visitor, context: ssl.SSLContext) -> None:
        visitor.connection.settimeout(self._patience)
        visitor.connection = context.wrap_socket(
            visitor.connection, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        visitor.connection.do_handshake()

    def _turn_away(self, visitor: Visitor, reason: str, remedy: str = "") -> None:
        self.door.turned_away(Caller("", "", visitor.host), reason, remedy)
        _end(visitor.connection, AN_ABORT)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a connection could not be served", host=str(client_address[0]))


def failure(error: ssl.SSLError) -> str:
    """A handshake's end, as the ledger keeps it and `remedy_of` knows it."""
    found = getattr(error, "verify_message", "")
    return f"TLS: {error.reason or 'handshake failed'}{f' ({found})' if found else ''}"


class Handler(RequestHandler):
    """Makes the association of an admitted visitor and starts it."""

    def __init__(self, visitor: Visitor, server: Listener, request: bytes, guest: Guest) -> None:
        self._first_pdu, self._guest = request, guest
        super().__init__(visitor.connection, visitor.address, server)

    def _create_association(self) -> Association:
        association = super()._create_association()
        equip(association, self.request, self._first_pdu, self._guest, self.server.door)
        return association


def association_request(connection: socket.socket, deadline: float) -> bytes:
    """The first PDU of a connection.

    Raises:
        TimeoutError: it did not come before the deadline, as `time.monotonic` counts.
        CutOff: it is no association request.
        OSError: the connection ended.
    """
    received, wanted = bytearray(), HEADER.size
    while len(received) < wanted:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        data = connection.recv(wanted - len(received))
        if not data:
            raise ConnectionResetError("closed before an association request")
        received += data
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(received) == HEADER.size:
            kind, length = pdu_length(received)
            if kind != ASSOCIATE_RQ or length > _LONGEST_REQUEST:
                raise CutOff(f"a PDU of type 0x{kind:02X} and {length} bytes in place of an association request")
            wanted += length
    return bytes(received)


def _caller(request: bytes, host: str, secure: bool) -> Caller:
    """Who asks for an association, in characters that can be shown (PS3.8 9.3.2)."""
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        primitive = pdu.to_primitive()
        calling, called = str(primitive.calling_ae_title), str(primitive.called_ae_title)
        for context in primitive.presentation_context_definition_list:
            if context.abstract_syntax is None or not context.transfer_syntax:
                raise ValueError("a presentation context without syntaxes")  # pynetdicom finds it too late
    except Exception as error:  # whatever a hostile request makes the parser raise is its sender's fault
        raise CutOff(f"an association request that cannot be understood ({type(error).__name__})") from error
    return Caller(_shown(calling), _shown(called), host, secure)


def _shown(title: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in title.strip())


def _end(connection: socket.socket, last_words: bytes) -> None:
    """Say it, and let the peer hang up first, as PS3.8 wants it; for a second, and not however much it still says."""
    with suppress(OSError):
        connection.settimeout(1.0)
        connection.sendall(last_words)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(HEADER.size)
    connection.close()


def listen(entity: ApplicationEntity, address: tuple[str, int], handlers: list[Any], **options: Any) -> Listener:
    """A started listener of this application entity; `options` as `Listener` takes them.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    try:
        listener: Listener = entity.make_server(address, evt_handlers=handlers, server_class=Listener, **options)
    except OSError as error:
        raise ConfigurationError(unheard(*address, error)) from error
    listener.start()
    return listener


def unheard(host: str, port: int, trouble: OSError) -> str:
    """Why nobody can listen there, and what mends it."""
    if trouble.errno == errno.EADDRINUSE:
        mended = "is another `dicom-node up` running? End it, or a receiver that it left, or set another `port`"
        return f"cannot listen at {host}:{port}: {trouble.strerror}; {mended}"
    below = ": let the service bind ports below 1024 (CAP_NET_BIND_SERVICE)" if port < 1024 else ""
    return f"cannot listen at {host}:{port} ({trouble.strerror}){below}; or set another `bind` or `port`"


def trouble_at(host: str, port: int) -> OSError | None:
    """Why nobody could listen there now, another listener included; None: one could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
