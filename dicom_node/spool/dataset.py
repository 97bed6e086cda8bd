"""The few attributes that file an object, read from its bytes; and the File Meta Information that files it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_CUR, BytesIO
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicom_node.errors import NotUnderstood
from dicom_node.uids import derived, fault_of

#: What we are called in File Meta Information; our own, derived once from the product's name.
IMPLEMENTATION_CLASS_UID = derived("dicom-node", "implementation class")
IMPLEMENTATION_VERSION = "DICOM_NODE_0_1"

_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE = 0x00080005, 0x00080016, 0x00080018
_ACCESSION, _MODALITY = 0x00080050, 0x00080060
_PATIENT_ID, _ISSUER, _STUDY, _SERIES = 0x00100020, 0x00100021, 0x0020000D, 0x0020000E
_WANTED = {_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE, _ACCESSION, _MODALITY, _PATIENT_ID, _ISSUER, _STUDY, _SERIES}
#: Deflated data sets are opened only this far; the rest may be a bomb.
_HEAD_BYTES = 1 << 20
#: Elements looked at before Series Instance UID, those within sequences included, and bytes of a value that is kept.
_HEAD_ELEMENTS, _VALUE_BYTES = 200_000, 4096

_UNDEFINED = 0xFFFFFFFF
_DELIMITERS, _ITEM, _SEQUENCE_END = 0xFFFE, 0xFFFEE000, 0xFFFEE0DD
_LE_SHORT, _LE_LONG, _BE_SHORT, _BE_LONG = Struct("<HH2sH"), Struct("<L"), Struct(">HH2sH"), Struct(">L")
#: Value representations whose length has four bytes in explicit encodings (PS3.5 7.1.2).
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


@dataclass(frozen=True)
class Identity:
    """Where an object belongs."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    modality: str
    patient_key: str
    accession_key: str


def identify(data_set: bytes | memoryview | BinaryIO, transfer_syntax: str, *, whole: bool = True) -> Identity:
    """Read the identifying attributes of an encoded data set; nothing behind Series Instance UID is touched.

    Time and memory are bounded whatever the bytes are: sequences are passed over without being built.

    Args:
        whole: False for the beginning of a data set, which tells what the whole would tell, or nothing.
    Raises:
        NotUnderstood: no Study, Series or SOP Instance UID can be read.
    """
    stream = BytesIO(data_set) if isinstance(data_set, bytes | memoryview) else data_set
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        stream = BytesIO(_inflated(stream))
    found = dict(_elements(stream, _is_little_endian(transfer_syntax)))
    if not whole and not stream.read(1):
        raise NotUnderstood("the beginning of a data set that goes on before Series Instance UID is passed")
    return _identity(found)


@lru_cache(maxsize=128)
def _is_little_endian(transfer_syntax: str) -> bool:
    """What is unknown is taken to be (PS3.5 A.4)."""
    syntax = UID(transfer_syntax)
    known = syntax.is_transfer_syntax and not syntax.is_private
    return not known or syntax.is_little_endian


def _inflated(stream: BinaryIO) -> bytes:
    """The first `_HEAD_BYTES` of a deflated data set (PS3.5 A.5)."""
    inflate, head = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    try:
        while len(head) < _HEAD_BYTES and not inflate.eof and (read := stream.read(4096)):
            head += inflate.decompress(read, _HEAD_BYTES - len(head))
    except zlib.error as error:
        raise NotUnderstood(f"the deflated data set cannot be opened: {error}") from error
    return bytes(head)


def _elements(stream: BinaryIO, little: bool) -> Iterator[tuple[int, bytes]]:
    """(tag, value) of the wanted elements up to Series Instance UID (PS3.5 7.1, 7.5).

    Whether value representations are written is seen from the bytes: some senders negotiate one and send the other.
    """
    short, long = (_LE_SHORT, _LE_LONG) if little else (_BE_SHORT, _BE_LONG)
    depth = foreign = 0
    first = stream.read(6)
    stream.seek(-len(first), SEEK_CUR)
    implicit = not _is_vr(first[4:])
    for _ in range(_HEAD_ELEMENTS):
        head = stream.read(8)
        if len(head) < 8:
            return
        group, element, vr, length = short.unpack(head)
        tag = group << 16 | element
        if implicit or group == _DELIMITERS or 0 < foreign <= depth or not _is_vr(vr):
            (length,) = long.unpack_from(head, 4)
        elif vr in _LONG:
            (length,) = long.unpack(stream.read(4).ljust(4, b"\0"))
        if depth == 0 and tag > _SERIES:
            return
        if tag == _SEQUENCE_END:
            depth -= 1
        elif length == _UNDEFINED and tag != _ITEM:
            depth += 1
            if vr == b"UN" and not 0 < foreign < depth:  # such a sequence is in Implicit VR (PS3.5 6.2.2, note 4)
                foreign = depth
        elif depth == 0 and tag in _WANTED:
            value = stream.read(min(length, _VALUE_BYTES))
            stream.seek(length - len(value), SEEK_CUR)
            yield tag, value
        elif length != _UNDEFINED:
            stream.seek(length, SEEK_CUR)
    raise NotUnderstood(f"more than {_HEAD_ELEMENTS} elements before Series Instance UID")


@lru_cache(maxsize=128)
def _is_vr(value: bytes) -> bool:
    return value.isalpha() and value.isupper()


def _identity(found: dict[int, bytes]) -> Identity:
    named = {"StudyInstanceUID": _STUDY, "SeriesInstanceUID": _SERIES, "SOPInstanceUID": _SOP_INSTANCE}
    uids = {name: _plain(found.get(tag, b"")) for name, tag in named.items()}
    for name, value in uids.items():
        if fault := fault_of(value):
            comment = f"{name} is {fault}"
            raise NotUnderstood(f"{name} is {value[:64]!r}: {fault}" if value else comment, comment)
    return Identity(
        sop_class_uid=_plain(found.get(_SOP_CLASS, b"")),
        sop_instance_uid=uids["SOPInstanceUID"],
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        modality=_plain(found.get(_MODALITY, b""))[:16],
        patient_key=patient_key(_text(found, _PATIENT_ID), _text(found, _ISSUER)),
        accession_key=_accession(found),
    )


def _accession(found: dict[int, bytes]) -> str:
    """Nothing but a search hangs on it: one that cannot be read is none, and turns no image away."""
    try:
        return accession_key(_text(found, _ACCESSION))
    except NotUnderstood:
        return ""


def _plain(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _text(found: dict[int, bytes], tag: int) -> str:
    """A value in the data set's own character set (PS3.5 6.1)."""
    value = found.get(tag, b"")
    if value.isascii() and b"\\" not in value:
        return _plain(value)
    spoken = b"".join(
        _short(t, b"CS" if t == _CHARACTER_SET else b"LO", found.get(t, b"")) for t in (_CHARACTER_SET, tag)
    )
    try:
        return str(read_dataset(BytesIO(spoken), is_implicit_VR=False, is_little_endian=True)[tag].value)
    except Exception as error:  # whatever a hostile value makes the decoder raise is the sender's fault
        raise NotUnderstood(f"a patient's identifier cannot be decoded: {type(error).__name__}") from error


def patient_key(patient_id: str, issuer: str) -> str:
    """A hash that tells two patients apart without naming them."""
    return hashlib.sha256(f"{patient_id.strip()}\x1f{issuer.strip()}".encode()).hexdigest()[:16]


def accession_key(number: str) -> str:
    """A hash by which a study is found; empty without a number, which many studies lack."""
    return hashlib.sha256(f"accession\x1f{number.strip()}".encode()).hexdigest()[:16] if number.strip() else ""


def file_header(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, calling_ae: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1); the calling AE title goes to (0002,0016)."""
    group = b"".join(
        (
            _META_VERSION,
            _short(0x00020002, b"UI", sop_class_uid.encode()),
            _short(0x00020003, b"UI", sop_instance_uid.encode()),
            _short(0x00020010, b"UI", transfer_syntax.encode()),
            _short(0x00020012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _short(0x00020013, b"SH", IMPLEMENTATION_VERSION.encode()),
            _short(0x00020016, b"AE", calling_ae.encode()),
        )
    )
    return b"\0" * 128 + b"DICM" + _short(0x00020000, b"UL", len(group).to_bytes(4, "little")) + group


#: File Meta Information Version (0002,0001), OB.
_META_VERSION = bytes.fromhex("02000100 4f420000 02000000 0001")


def _short(tag: int, vr: bytes, value: bytes) -> bytes:
    """An element in Explicit VR Little Endian whose length has two bytes (PS3.5 7.1.2)."""
    padded = value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return _LE_SHORT.pack(tag >> 16, tag & 0xFFFF, vr, len(padded)) + padded


def read_spooled(path: Path) -> tuple[Identity, str, str]:
    """Identity, transfer syntax and calling AE title of a file in the spool.

    Raises:
        NotUnderstood: not one of our files.
    """
    try:
        meta = read_file_meta_info(path)
        syntax = str(meta.get("TransferSyntaxUID") or ExplicitVRLittleEndian)
        with path.open("rb") as file:
            file.seek(data_set_offset(file.read(144)))
            identity = identify(file, syntax)
    except Exception as error:
        raise NotUnderstood(f"{path.name}: {error}") from error
    return identity, syntax, str(meta.get("SourceApplicationEntityTitle") or "")


def data_set_offset(head: bytes) -> int:
    """Where the data set begins: after the preamble, `DICM` and the group that (0002,0000) measures (PS3.10 7.1)."""
    return 144 + int.from_bytes(head[140:144], "little")
