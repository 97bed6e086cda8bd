"""Headers are read alike in every transfer syntax, and a bomb behind one is not opened."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.peek import peek
from tests.factories import a_series


def saved(folder: Path, syntax: UID) -> Path:
    image = a_series("torso", 3, name="peek")[0]
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(folder / "image.dcm", enforce_file_format=True)
    return folder / "image.dcm"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_header_is_what_pydicom_reads(tmp_path: Path, syntax: UID) -> None:
    path = saved(tmp_path, syntax)
    whole = dcmread(path, stop_before_pixels=True)
    assert peek(path) == whole
    assert peek(path, ["PatientID", "Rows"]) == dcmread(path, specific_tags=["PatientID", "Rows"])


def test_an_attribute_beyond_reading_costs_no_other(tmp_path: Path) -> None:
    """A UN value that is no sequence, in the place of an attribute that is one, alone and within another."""
    path = saved(tmp_path, ExplicitVRLittleEndian)
    image = dcmread(path)
    image.add_new(0x00081FF0, "UN", b"abcd")
    image.ReferencedStudySequence = [Dataset()]
    image.ReferencedStudySequence[0].add_new(0x00081FF0, "UN", b"abcd")
    image.ReferencedStudySequence[0].StudyID = "1"
    image.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"\x08\0\xf0\x1fUN", b"\x08\0\x32\x10UN"))
    header = peek(path)
    assert "ProcedureCodeSequence" not in header
    assert list(header.ReferencedStudySequence[0].keys()) == [Tag("StudyID")]
    assert header.PatientID == image.PatientID


def test_a_bomb_behind_the_header_is_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path, DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    offset = 144 + int.from_bytes(whole[140:144], "little")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    inside = squeeze.compress(zlib.decompress(whole[offset:], -zlib.MAX_WBITS)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    zeros = squeeze.compress(bytes(1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(whole[:offset] + inside + 64 * zeros + squeeze.flush())
    tracemalloc.start()
    assert peek(path, ["PatientID"]).PatientID == "DEMO-PEEK"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 20
