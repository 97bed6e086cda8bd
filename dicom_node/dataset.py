"""The few attributes that file an object, read from its bytes; and the File Meta Information that files it."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicom_node.errors import NotUnderstood
from dicom_node.uids import derived, is_uid

#: What we are called in File Meta Information; our own, derived once from the product's name.
IMPLEMENTATION_CLASS_UID = derived("dicom-node", "implementation class")
IMPLEMENTATION_VERSION = "DICOM_NODE_0_1"

_WANTED = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
]
_LAST = Tag("SeriesInstanceUID")
#: Deflated data sets are opened only this far; the rest may be a bomb.
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Where an object belongs."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    modality: str
    patient_key: str


def identify(data_set: bytes | memoryview, transfer_syntax: str) -> Identity:
    """Read the identifying attributes of an encoded data set; nothing behind Series Instance UID is touched.

    Raises:
        NotUnderstood: no Study, Series or SOP Instance UID can be read.
    """
    syntax = UID(transfer_syntax)
    head: bytes | memoryview = data_set
    if syntax == DeflatedExplicitVRLittleEndian:
        try:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(bytes(data_set), _HEAD_BYTES)
        except zlib.error as error:
            raise NotUnderstood(f"the deflated data set cannot be opened: {error}") from error
    known = syntax.is_transfer_syntax and not syntax.is_private
    try:
        found = read_dataset(
            BytesIO(head),
            is_implicit_VR=known and syntax.is_implicit_VR,
            is_little_endian=not known or syntax.is_little_endian,
            stop_when=_behind_series,
            specific_tags=[Tag(name) for name in _WANTED],
        )
        return _identity(found)
    except NotUnderstood:
        raise
    except Exception as error:  # whatever a hostile data set makes the parser raise is the sender's fault
        raise NotUnderstood(f"the data set cannot be read: {type(error).__name__}: {error}"[:200]) from error


def _behind_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > int(_LAST)


def _identity(found: Dataset) -> Identity:
    uids = {name: str(found.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    for name, value in uids.items():
        if not is_uid(value):
            raise NotUnderstood(f"{name} is {value!r}" if value else f"{name} is absent")
    return Identity(
        sop_class_uid=str(found.get("SOPClassUID") or ""),
        sop_instance_uid=uids["SOPInstanceUID"],
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        modality=str(found.get("Modality") or "")[:16],
        patient_key=patient_key(str(found.get("PatientID") or ""), str(found.get("IssuerOfPatientID") or "")),
    )


def patient_key(patient_id: str, issuer: str) -> str:
    """A hash that tells two patients apart without naming them."""
    return hashlib.sha256(f"{patient_id.strip()}\x1f{issuer.strip()}".encode()).hexdigest()[:16]


def file_header(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, calling_ae: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1); the calling AE title goes to (0002,0016)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    meta.SourceApplicationEntityTitle = calling_ae
    buffer = BytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)  # type: ignore[arg-type]  # any writable buffer will do
    return buffer.getvalue()


def read_spooled(path: Path) -> tuple[Identity, str, str]:
    """Identity, transfer syntax and calling AE title of a file in the spool.

    Raises:
        NotUnderstood: not one of our files.
    """
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta
        syntax = str(meta.get("TransferSyntaxUID") or ExplicitVRLittleEndian)
        raw = path.read_bytes()
    except Exception as error:
        raise NotUnderstood(f"{path.name}: {error}") from error
    offset = 144 + int.from_bytes(raw[140:144], "little")
    calling = str(meta.get("SourceApplicationEntityTitle") or "")
    return identify(memoryview(raw)[offset:], syntax), syntax, calling
