"""Identity is read from any encoding, and from nothing that is not a data set."""

import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.errors import NotUnderstood
from dicom_node.spool import dataset
from dicom_node.spool.dataset import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION,
    accession_key,
    file_header,
    identify,
    patient_key,
)
from dicom_node.uids import is_uid
from tests.factories import a_series

IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)


def encoded(syntax: str, **elements: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT, syntax != BIG
    image = a_series("leg", 1)[0]
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    if syntax == BIG:
        image.PixelData = b"\0\0"
    image._is_implicit_VR, image._is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(buffer, image)
    raw = buffer.getvalue()
    if syntax == DEFLATED:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        raw = deflate.compress(raw) + deflate.flush()
    return raw


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG, "1.2.840.10008.1.2.4.90"])
def test_identity_is_read_from_every_encoding(syntax: str):
    image = a_series("leg", 1)[0]
    identity = identify(encoded(EXPLICIT if syntax.endswith(".90") else syntax), syntax)
    assert identity.study_uid == image.StudyInstanceUID
    assert identity.series_uid == image.SeriesInstanceUID
    assert identity.modality == "CT"
    assert identity.patient_key == patient_key(image.PatientID, "")


@given(st.sampled_from([IMPLICIT, EXPLICIT, DEFLATED, BIG]), st.data())
def test_the_beginning_alone_tells_the_same_or_nothing(syntax: str, data: st.DataObject):
    whole = encoded(syntax)
    beginning = whole[: data.draw(st.integers(0, min(len(whole), 4000)))]
    try:
        assert identify(beginning, syntax, whole=False) == identify(whole, syntax)
    except NotUnderstood:
        assert len(beginning) < 3000


def test_a_beginning_that_the_rest_gainsays_tells_nothing():
    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value

    own = {0x00080018: b"1.2.3\0", 0x0020000D: b"1.2\0", 0x0020000E: b"1.2.0\0"}
    raw = b"".join(element(tag, value) for tag, value in own.items()) + element(0x0009_0010, bytes(20_000))
    whole = raw + element(0x0020000D, b"9.9\0")
    assert identify(whole, IMPLICIT).study_uid == "9.9"
    for beginning in (raw[:16_384], raw):
        with pytest.raises(NotUnderstood):
            identify(beginning, IMPLICIT, whole=False)


@given(st.binary(max_size=400), st.sampled_from([IMPLICIT, EXPLICIT, DEFLATED, BIG, "1.2.3", ""]))
def test_noise_is_not_understood(raw: bytes, syntax: str):
    with pytest.raises(NotUnderstood):
        identify(raw, syntax)


def test_a_deflate_bomb_opens_no_further_than_the_head():
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = deflate.compress(b"\0" * (64 << 20)) + deflate.flush()
    with pytest.raises(NotUnderstood):
        identify(bomb, DEFLATED)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, "../1", "1.2.x"])
def test_an_object_that_cannot_be_filed_is_refused_with_the_reason(keyword: str, value: str | None):
    image = a_series("leg", 1)[0]
    delattr(image, keyword)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    if value is not None:
        image.add_new(keyword, "UI", value)
    write_dataset(buffer, image)
    with pytest.raises(NotUnderstood, match=keyword):
        identify(buffer.getvalue(), EXPLICIT)


def test_patients_are_told_apart_without_their_names():
    assert patient_key("P1", "A") == patient_key(" P1", "A ")
    assert len({patient_key("P1", "A"), patient_key("P1", "B"), patient_key("P2", "A")}) == 3


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
def test_the_number_of_the_order_is_kept_as_a_hash_where_there_is_one(syntax: str):
    found = identify(encoded(syntax, AccessionNumber="A-17 "), syntax).accession_key
    assert found == accession_key("A-17") != ""
    assert identify(encoded(syntax, AccessionNumber=""), syntax).accession_key == ""


def test_a_number_that_cannot_be_read_turns_no_image_away(monkeypatch: pytest.MonkeyPatch):
    raw = encoded(EXPLICIT, AccessionNumber="\u00fc", SpecificCharacterSet="ISO_IR 100")
    assert identify(raw, EXPLICIT).accession_key == accession_key("\u00fc")

    def unreadable(*_: object, **__: object) -> None:
        raise ValueError("of no character set")

    monkeypatch.setattr(dataset, "read_dataset", unreadable)
    assert identify(raw, EXPLICIT).accession_key == ""


def test_header_and_data_set_make_a_file():
    image = a_series("leg", 1)[0]
    header = file_header(image.SOPClassUID, image.SOPInstanceUID, EXPLICIT, "CT1")
    read = dcmread(BytesIO(header + encoded(EXPLICIT)))
    assert read.SOPInstanceUID == image.SOPInstanceUID
    assert read.file_meta.SourceApplicationEntityTitle == "CT1"
    dcmwrite(BytesIO(), read, enforce_file_format=True)


def test_the_header_is_what_pydicom_would_write():
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.34"
    meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle = EXPLICIT, "CT1"
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
    buffer = BytesIO()
    write_file_meta_info(buffer, meta)
    assert file_header("1.2.840.10008.5.1.4.1.1.2", "1.2.34", EXPLICIT, "CT1")[132:] == buffer.getvalue()


def sequences(count: int, vr: bytes = b"SQ", open_end: bool = True) -> bytes:
    """Referenced Image Sequence of undefined length with so many items, each with an element in it."""
    inner = b"\x08\0\x50\x11" + (b"\x02\0\0\0" if vr == b"UN" else b"UI\x02\0") + b"1\0"
    item = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\x08\0\x40\x11" + vr + b"\0\0\xff\xff\xff\xff" + item * count + b"\xfe\xff\xdd\xe0\0\0\0\0"


def with_sequence(sequence: bytes) -> bytes:
    """An image in Explicit VR with a sequence in group 0008."""
    raw = encoded(EXPLICIT)
    place = raw.index(b"\x10\0\x10\0")
    return raw[:place] + sequence + raw[place:]


@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
def test_sequences_of_undefined_length_are_passed_over(vr: bytes):
    assert identify(with_sequence(sequences(50, vr)), EXPLICIT) == identify(encoded(EXPLICIT), EXPLICIT)


def test_sequences_nested_deeper_than_any_stack_are_passed_over():
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    deep = with_sequence(opened * 20_000 + closed * 20_000)
    assert identify(deep, EXPLICIT) == identify(encoded(EXPLICIT), EXPLICIT)
    with pytest.raises(NotUnderstood):
        identify(with_sequence(opened * 20_000), EXPLICIT)


def test_an_endless_sequence_before_the_uids_costs_no_memory():
    import tracemalloc

    raw = with_sequence(sequences(150_000))
    tracemalloc.start()
    with pytest.raises(NotUnderstood, match="more than 200000 elements"):
        identify(memoryview(raw), EXPLICIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(raw) + (1 << 20)


def test_a_patient_id_in_another_script_is_read_in_its_character_set():
    image = a_series("leg", 1)[0]
    image.SpecificCharacterSet, image.PatientID = "ISO_IR 144", "Ж-17"
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, image)
    assert identify(buffer.getvalue(), EXPLICIT).patient_key == patient_key("Ж-17", "")


@given(st.data())
def test_a_damaged_head_is_read_or_not_understood(data: st.DataObject):
    raw = bytearray(encoded(EXPLICIT)[:400])
    for _ in range(data.draw(st.integers(0, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = identify(bytes(raw), EXPLICIT)
    except NotUnderstood:
        return
    assert all(map(is_uid, (found.study_uid, found.series_uid, found.sop_instance_uid)))


def test_the_encoding_is_seen_not_believed():
    assert identify(encoded(IMPLICIT), EXPLICIT) == identify(encoded(EXPLICIT), IMPLICIT)
