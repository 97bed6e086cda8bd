"""The bytes of an association, as far as we read them ourselves: PDUs (PS3.8 9.3), command sets (PS3.7 6.3). Pure.

What breaks the protocol raises CutOff; nothing here reads further than it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from dicom_node.errors import CutOff

ASSOCIATE_RQ, _ASSOCIATE_RJ, P_DATA, ABORT = 0x01, 0x03, 0x04, 0x07
HEADER = Struct(">BxL")
_PDV = Struct(">LBB")
_ELEMENT = Struct("<HHL")

#: Bytes of a PDU that we say we receive; and those that we bear, since some peers do not count as the standard does.
MAXIMUM_PDU = 131072
LONGEST_PDU = 1 << 18
#: Bytes of a command set; real ones have about 150.
LONGEST_COMMAND = 1 << 14

#: Command elements (PS3.7 E.1) by their number in group 0000.
_CLASS_UID, _COMMAND, _MESSAGE_ID, _RESPONDED_TO, _DATA_SET, _STATUS, _COMMENT, _INSTANCE_UID = (
    0x0002,
    0x0100,
    0x0110,
    0x0120,
    0x0800,
    0x0900,
    0x0902,
    0x1000,
)
C_STORE_RQ, _C_STORE_RSP, _C_CANCEL_RQ = 0x0001, 0x8001, 0x0FFF
_NO_DATA_SET = 0x0101

#: A-ABORT from the service user, no reason given (PS3.8 9.3.8).
AN_ABORT = bytes.fromhex("07 00 00000004 00000000")


class Fragment(NamedTuple):
    """A presentation data value (PS3.8 9.3.5.1, annex E.2)."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


def pdu_length(header: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Type of a PDU, and the length of what follows its six bytes.

    Raises:
        CutOff: no such type, or longer than we bear.
    """
    kind, length = HEADER.unpack_from(header)
    if not ASSOCIATE_RQ <= kind <= ABORT:
        raise CutOff(f"a PDU of unknown type 0x{kind:02X}")
    if length > LONGEST_PDU - HEADER.size:
        raise CutOff(f"a PDU of more than {LONGEST_PDU} bytes")
    return kind, length


def fragments(variable_field: memoryview) -> Iterator[Fragment]:
    """The presentation data values of a P-DATA-TF.

    Raises:
        CutOff: their lengths do not add up.
    """
    place, end = 0, len(variable_field)
    while place < end:
        if end - place < _PDV.size:
            raise CutOff("a P-DATA PDU that ends within the head of a PDV")
        length, context_id, control = _PDV.unpack_from(variable_field, place)
        place, stop = place + _PDV.size, place + 4 + length
        if length < 2 or stop > end:
            raise CutOff("a PDV whose length does not fit its PDU")
        yield Fragment(context_id, bool(control & 1), bool(control & 2), variable_field[place:stop])
        place = stop


@dataclass(frozen=True)
class Answer:
    """What the sender of an object is told: a status, and why it failed."""

    status: int
    comment: str = ""

    @property
    def words(self) -> bytes:
        """The comment as a value of LO (PS3.5 6.2): 64 characters of the default repertoire, of even length."""
        plain = "".join(c for c in self.comment if c.isascii() and c.isprintable() and c != "\\")[:64].encode()
        return plain + b" " * (len(plain) % 2)


@dataclass(frozen=True)
class Command:
    """A command set: what is asked, and whether a data set follows."""

    elements: Mapping[int, bytes]

    @property
    def field(self) -> int:
        return self._number(_COMMAND)

    @property
    def has_data_set(self) -> bool:
        return self._number(_DATA_SET) != _NO_DATA_SET

    @property
    def awaits_answer(self) -> bool:
        """Is it a request that its sender waits on? Not so C-CANCEL, nor answers (PS3.7 E.1)."""
        return not self.field & 0x8000 and self.field != _C_CANCEL_RQ

    @property
    def sop_class_uid(self) -> str:
        return self._uid(_CLASS_UID)

    @property
    def sop_instance_uid(self) -> str:
        return self._uid(_INSTANCE_UID)

    def _number(self, element: int) -> int:
        value = self.elements.get(element, b"")
        if len(value) != 2:
            raise CutOff(f"a command set without (0000,{element:04X})")
        return int.from_bytes(value, "little")

    def _uid(self, element: int) -> str:
        return self.elements.get(element, b"").decode("ascii", "replace").strip("\0 ")

    def stored(self, said: Answer) -> bytes:
        """The body of the C-STORE-RSP to this request (PS3.7 9.3.1.2)."""
        self._number(_MESSAGE_ID)
        answer = {
            _CLASS_UID: self.elements.get(_CLASS_UID, b""),
            _COMMAND: _word(_C_STORE_RSP),
            _RESPONDED_TO: self.elements[_MESSAGE_ID],
            _DATA_SET: _word(_NO_DATA_SET),
            _STATUS: _word(said.status),
            **({_COMMENT: said.words} if said.words else {}),
            _INSTANCE_UID: self.elements.get(_INSTANCE_UID, b""),
        }
        return encode_command(answer)


def parse_command(raw: bytes) -> Command:
    """A command set in Implicit VR Little Endian (PS3.7 6.3.1).

    Raises:
        CutOff: it is none.
    """
    elements: dict[int, bytes] = {}
    place = 0
    while place + _ELEMENT.size <= len(raw):
        group, element, length = _ELEMENT.unpack_from(raw, place)
        place += _ELEMENT.size
        if group or place + length > len(raw):
            raise CutOff("a command set that is none")
        elements[element] = raw[place : place + length]
        place += length
    if place != len(raw):
        raise CutOff("a command set that is none")
    return Command(elements)


def encode_command(elements: Mapping[int, bytes]) -> bytes:
    """A command set with its group length; elements in ascending order."""
    body = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements.items())
    return _ELEMENT.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


def p_data(context_id: int, data: bytes, *, command: bool, last: bool = True) -> bytes:
    """A P-DATA-TF with one PDV."""
    control = command | last << 1
    return HEADER.pack(P_DATA, len(data) + _PDV.size) + _PDV.pack(len(data) + 2, context_id, control) + data


def _word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return HEADER.pack(_ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))
