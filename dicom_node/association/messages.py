"""The messages of an association, put together from fragments (PS3.8 annex E, PS3.7 6.3).

A C-STORE request's data set goes to a sink as it comes; every other message goes to pynetdicom.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from pynetdicom import pdu_primitives
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from dicom_node.association.wire import C_STORE_RQ, LONGEST_COMMAND, Answer, Command, Fragment, p_data, parse_command
from dicom_node.errors import CutOff

#: Requests of one association that may wait for their answers; one is agreed (PS3.7 D.3.3.3).
_OPERATIONS = 8
#: Bytes of the data set of any message but C-STORE.
_LONGEST_MESSAGE = 16 << 20


class Sink(Protocol):
    """Takes one object as it comes."""

    def write(self, data: memoryview) -> None:
        """The next bytes of its data set; they are gone afterwards."""

    def finish(self) -> Answer:
        """The data set is complete: what to answer."""

    def abandon(self) -> None:
        """The rest will not come."""


Begin = Callable[[Association, PresentationContext, Command], Sink]


class Messages:
    """Puts the fragments of one association together."""

    def __init__(self, association: Association, begin: Begin) -> None:
        self._association, self._begin = association, begin
        self._command = bytearray()
        self._context_id = 0
        self._asked: Command | None = None
        self._sink: Sink | None = None
        self._passed = 0
        self._operations = threading.Semaphore(_OPERATIONS)

    @property
    def busy(self) -> bool:
        """Is an object coming?"""
        return self._sink is not None

    def add(self, fragment: Fragment) -> None:
        """Take the next fragment.

        Raises:
            CutOff: it breaks the protocol or a bound.
        """
        if (self._command or self._asked) and fragment.context_id != self._context_id:
            raise CutOff("a message in two presentation contexts")
        self._context_id = fragment.context_id
        if fragment.is_command:
            self._add_command(fragment)
        elif self._sink is not None:
            self._sink.write(fragment.data)
            if fragment.is_last:
                self._answer()
        elif self._asked is not None:
            self._add_data(fragment)
        else:
            raise CutOff("a data set without a command")

    def _add_command(self, fragment: Fragment) -> None:
        if self._asked is not None:
            raise CutOff("a command within a data set")
        self._command += fragment.data
        if len(self._command) > LONGEST_COMMAND:
            raise CutOff(f"a command set of more than {LONGEST_COMMAND} bytes")
        if not fragment.is_last:
            return
        raw = bytes(self._command)
        self._command.clear()
        command = parse_command(raw)
        context = self._association._accepted_cx.get(fragment.context_id)
        if context is None:
            raise CutOff(f"a presentation context that was not accepted ({fragment.context_id})")
        if command.field == C_STORE_RQ:
            self._asked, self._sink = command, self._begin(self._association, context, command)
            if not command.has_data_set:
                self._answer()
        elif context.abstract_syntax in self._services():
            self._pass_command(command, raw)
        else:
            raise CutOff(f"a request 0x{command.field:04X} in a context for storage")

    def _services(self) -> set[str]:
        """SOP classes of the services but storage; whatever else was accepted is for C-STORE."""
        return {str(context.abstract_syntax) for context in self._association.acceptor.supported_contexts}

    def _answer(self) -> None:
        """The object is complete."""
        command, sink = self._asked, self._sink
        assert command is not None
        assert sink is not None
        self._asked = self._sink = None
        answer = command.stored(sink.finish())
        self._association.dul.socket.send(p_data(self._context_id, answer, command=True))

    def _pass_command(self, command: Command, raw: bytes) -> None:
        if command.awaits_answer and not self._operations.acquire(blocking=False):
            raise CutOff(f"more than {_OPERATIONS} requests without waiting for an answer")
        if command.has_data_set:
            self._asked, self._passed = command, 0
        self._pass(b"\x03" + raw)

    def _add_data(self, fragment: Fragment) -> None:
        self._passed += len(fragment.data)
        if self._passed > _LONGEST_MESSAGE:
            raise CutOff(f"a message of more than {_LONGEST_MESSAGE} bytes that is no C-STORE")
        if fragment.is_last:
            self._asked = None
        self._pass((b"\x02" if fragment.is_last else b"\0") + bytes(fragment.data))

    def _pass(self, value: bytes) -> None:
        primitive = pdu_primitives.P_DATA()
        primitive.presentation_data_value_list = [[self._context_id, value]]
        try:
            self._association.dimse.receive_primitive(primitive)
        except Exception as error:  # whatever a hostile message makes the parser raise is its sender's fault
            raise CutOff(f"a message that cannot be understood ({type(error).__name__})") from error

    def answered(self, primitive: pdu_primitives.P_DATA) -> None:
        """pynetdicom sends something: the end of a command is an answer."""
        if any(value[0] & 3 == 3 for _, value in primitive.presentation_data_value_list):
            self._operations.release()

    def abandon(self) -> bool:
        """The association is over; was an object coming?"""
        sink, self._asked, self._sink = self._sink, None, None
        if sink is not None:
            sink.abandon()
        return sink is not None
