"""An association's upper layer provider: pynetdicom's, with our socket, our bounds, and C-STORE past its data sets.

pynetdicom builds a Dataset for every command and holds a whole data set in memory. Here the fragments of a C-STORE
request go straight from the receive buffer to whoever stores them, and the answer is made of bytes; everything else,
from the association's negotiation to its release, stays pynetdicom's. What we override of it: `OVERRIDDEN`.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from pynetdicom import pdu_primitives
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.transport import AssociationSocket

from dicom_node.association.admission import Admission, Caller
from dicom_node.association.messages import Begin, Messages
from dicom_node.association.wire import ABORT, HEADER, LONGEST_PDU, P_DATA, fragments, pdu_length
from dicom_node.errors import CutOff
from dicom_node.settings import Peer

log = structlog.get_logger("provider")

#: Private names of pynetdicom 3.0 that this module replaces or reads; a test fails when one of them goes.
OVERRIDDEN = {
    "dul": ("_read_pdu_data", "_is_transport_event", "run_reactor", "send_pdu", "state_machine"),
    "dul rounds": ("_run_loop_delay", "_idle_timer", "_kill_thread"),
    "dul queues": ("to_provider_queue", "to_user_queue", "event_queue"),
    "dimse": ("msg_queue", "receive_primitive"),
    "association": ("_reactor_checkpoint", "_accepted_cx"),
    "socket": ("_is_connected", "recv", "ready"),
}

#: Seconds after which a thread looks around although nobody woke it.
_ROUND = 0.5
#: Bytes that are read at a time at most; what is begun moves to the front when a longest PDU no longer fits behind it.
_BUFFER = 2 * LONGEST_PDU
_ESTABLISHED, _ENDED = "Sta6", "Sta13"


class Door(Protocol):
    """Who is asked about connections and associations; every question may come from another thread."""

    def admit(self, caller: Caller) -> Admission:
        """May this caller come in?"""

    def turned_away(self, caller: Caller, reason: str, remedy: str = "") -> None:
        """Told of everybody who was not let in, or was cut off."""

    @property
    def begin(self) -> Begin | None:
        """Takes C-STORE requests as they come; None: pynetdicom takes them."""


@dataclass(frozen=True)
class Guest:
    """An admitted caller, and the peer that it is."""

    caller: Caller
    peer: Peer


def equip(association: Association, connection: socket.socket, first_pdu: bytes, guest: Guest, door: Door) -> None:
    """Give a fresh association our provider and socket, and let its threads sleep until there is something to do."""
    checkpoint = Checkpoint()
    association._reactor_checkpoint = checkpoint
    association.dimse.msg_queue = Bell(checkpoint.ring)
    association.dul = Provider(association, checkpoint, guest, door)
    association.set_socket(BufferedSocket(association, connection, first_pdu))
    association.acse_timeout, association.network_timeout = association.acse_timeout, association.network_timeout


class Checkpoint(threading.Event):
    """What pynetdicom's association thread passes in every round, once a millisecond; here when there is news."""

    def __init__(self) -> None:
        super().__init__()
        self._news = threading.Event()
        self.set()

    def ring(self) -> None:
        self._news.set()

    def set(self) -> None:
        super().set()
        self.ring()

    def wait(self, timeout: float | None = None) -> bool:
        self._news.wait(_ROUND)
        self._news.clear()
        return super().wait(timeout)


class Bell(queue.Queue[Any]):
    """A queue that rings when something is put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class Waker:
    """Ends another thread's wait for its socket."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._near, select.POLLIN)

    def wake(self) -> None:
        with suppress(OSError):  # full: it will wake up anyway; closed: nobody sleeps
            self._far.send(b"\0")

    def wait(self, connection: socket.socket) -> bool:
        """Until somebody wakes us, the connection has something, or a round is over; is it the connection alone?"""
        with suppress(OSError, ValueError):  # closed meanwhile; pynetdicom finds out
            self._poll.register(connection, select.POLLIN)
            found = [descriptor for descriptor, _ in self._poll.poll(_ROUND * 1000)]
            if self._near.fileno() not in found:
                return bool(found)
            self._near.recv(1024)
        return False

    def close(self) -> None:
        self._near.close()
        self._far.close()


class BufferedSocket(AssociationSocket):
    """Reads as much as has come, up to `_BUFFER`; a PDU that is begun has to come within the network timeout."""

    def __init__(self, association: Association, connection: socket.socket, first_pdu: bytes) -> None:
        super().__init__(association, client_socket=connection)
        connection.settimeout(association.network_timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._low, self._high = 0, len(first_pdu)
        self._buffer[: self._high] = first_pdu

    @property
    def buffered(self) -> int:
        """Bytes that have been read and not yet taken."""
        return self._high - self._low

    @property
    def pending(self) -> bool:
        """Is there something to read that no poll would tell of?"""
        return self.buffered > 0 or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0)

    @property
    def ready(self) -> bool:
        return self.socket is not None and (self.buffered > 0 or super().ready)

    def next_pdu(self) -> tuple[int, int] | None:
        """Type and length of the next PDU; None when the peer has hung up.

        Raises:
            CutOff, OSError: see `pdu_length` and `has`.
        """
        return pdu_length(self._buffer[self._low :]) if self.has(HEADER.size) else None

    def take(self, count: int) -> memoryview:
        """The next bytes, where they lie; valid until more are asked for.

        Raises:
            OSError: the peer hung up before, or was too slow.
        """
        if not self.has(count):
            raise ConnectionResetError("closed within a PDU")
        self._low += count
        return self._buffer[self._low - count : self._low]

    def recv(self, nr_bytes: int) -> bytearray:
        """For pynetdicom."""
        return bytearray(self.take(nr_bytes))

    def forget(self) -> None:
        self._low = self._high = 0

    def has(self, wanted: int) -> bool:
        """Read until so many bytes have come, no more than `_BUFFER`; False when the peer has hung up.

        Raises:
            TimeoutError: they did not come within the network timeout.
            OSError: the connection broke.
        """
        if self._low == self._high:
            self.forget()
        elif self._low + wanted > len(self._buffer):
            self._buffer[: self.buffered] = self._buffer[self._low : self._high]
            self._low, self._high = 0, self.buffered
        started = time.monotonic()
        while self.buffered < wanted:
            if self.socket is None:
                return False
            count = self.socket.recv_into(self._buffer[self._high :])
            if not count:
                return False
            self._high += count
            if self.buffered < wanted and time.monotonic() - started > (self.assoc.network_timeout or _ROUND):
                raise TimeoutError
        return True


class Provider(DULServiceProvider):
    """pynetdicom's provider, which waits in place of polling and reads P-DATA past it."""

    def __init__(self, association: Association, checkpoint: Checkpoint, guest: Guest, door: Door) -> None:
        super().__init__(association)
        self.guest, self._door = guest, door
        self._waker = Waker()
        self.to_provider_queue = Bell(self._waker.wake)
        self.to_user_queue = Bell(checkpoint.ring)
        self._run_loop_delay = 0
        self._has_cut_off = False
        self.messages = Messages(association, door.begin) if door.begin else None

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except InvalidEventError as error:  # we had something to say and the peer had broken off
            log.debug("said too late", reason=str(error))
        finally:
            self.socket.close()
            if self.messages is not None and self.messages.abandon():
                self._door.turned_away(self.guest.caller, "the connection ended within an object")
            self._waker.close()
            self.to_user_queue.put(None)  # an association that still waits for its request waits in vain

    def _is_transport_event(self) -> bool:
        if self._has_cut_off and self.state_machine.current_state == _ENDED:
            self.socket.close()  # whatever else it sends is not read
            return True
        if self._may_wait() and self.socket.socket is not None:
            self._waker.wait(self.socket.socket)
        return bool(super()._is_transport_event())

    def _may_wait(self) -> bool:
        nothing_to_do = self.event_queue.empty() and self.to_provider_queue.empty() and not self.socket.pending
        return nothing_to_do and self.state_machine.current_state != _ENDED

    def _read_pdu_data(self) -> None:
        try:
            while self._read_pdu() and self._has_next():
                self._idle_timer.restart()
        except CutOff as cut:
            self._cut_off(str(cut))
        except TimeoutError:
            self._cut_off("a PDU that was begun and not finished in time")
        except OSError:
            self.event_queue.put("Evt17")

    def _read_pdu(self) -> bool:
        """Read one PDU; was it P-DATA of ours, after which nothing but another PDU need follow?"""
        found = self.socket.next_pdu()
        if found is None:
            self.event_queue.put("Evt17")
            return False
        kind, length = found
        if not self.socket.has(HEADER.size + length):
            raise ConnectionResetError("closed within a PDU")
        if kind == ABORT:
            # the end, whatever its source and reason are; pynetdicom stumbles over those it does not know
            self.socket.forget()
            self.socket.close()
            return False
        if kind != P_DATA or self.messages is None or self.state_machine.current_state != _ESTABLISHED:
            super()._read_pdu_data()
            return False
        for fragment in fragments(self.socket.take(HEADER.size + length)[HEADER.size :]):
            self.messages.add(fragment)
        return True

    def _has_next(self) -> bool:
        """Is there another PDU, and nothing else to do? Waits for it here, since pynetdicom sleeps in every round."""
        connection = self.socket.socket
        undisturbed = self.event_queue.empty() and self.to_provider_queue.empty() and not self._kill_thread
        return undisturbed and connection is not None and (self.socket.pending or self._waker.wait(connection))

    def _cut_off(self, reason: str) -> None:
        self._door.turned_away(self.guest.caller, reason)
        self._has_cut_off = True
        self.socket.forget()
        self.event_queue.put("Evt19")

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        if self.messages is not None and isinstance(primitive, pdu_primitives.P_DATA):
            self.messages.answered(primitive)
