"""Headers are read alike in every transfer syntax, and a bomb behind one is not opened."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import pytest
from pydicom import dcmread
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
