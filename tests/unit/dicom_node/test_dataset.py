"""Identity is read from any encoding, and from nothing that is not a data set."""

import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.dataset import file_header, identify, patient_key
from dicom_node.errors import NotUnderstood
from tests.factories import a_series

IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)


def encoded(syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT, syntax != BIG
    image = a_series("leg", 1)[0]
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


def test_header_and_data_set_make_a_file():
    image = a_series("leg", 1)[0]
    header = file_header(image.SOPClassUID, image.SOPInstanceUID, EXPLICIT, "CT1")
    read = dcmread(BytesIO(header + encoded(EXPLICIT)))
    assert read.SOPInstanceUID == image.SOPInstanceUID
    assert read.file_meta.SourceApplicationEntityTitle == "CT1"
    dcmwrite(BytesIO(), read, enforce_file_format=True)
