"""Planes on disk and between processes: the same bits come out, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.dicom import Read, read_file
from labeler.packed import packed, unpacked
from labeler.slices import Skip, Skipped, Source
from tests.factories import a_series, saved


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    return read_file(saved(a_series("torso", 3, name="packed"), tmp_path_factory.mktemp("packed")) / "0002.dcm", 64)


def test_the_same_bits_come_out(read: Read) -> None:
    again = unpacked(packed(read))
    (plane,), (before,) = again.planes, read.planes
    assert np.array_equal(plane.pixels, before.pixels)
    assert plane.pixels.dtype == np.float32
    assert (plane.plane, plane.mm, plane.normal, plane.position, plane.source) == (
        (before.plane, before.mm, before.normal, before.position, before.source)
    )
    assert (again.series_instance_uid, again.modality, again.skipped) == (read.series_instance_uid, "CT", None)


@given(st.sampled_from(list(Skip)), st.text(), st.none() | st.text(max_size=64))
def test_a_reason_travels_too(reason: Skip, detail: str, uid: str | None) -> None:
    read = Read("1.2", "MR", skipped=Skipped(Source(0, uid, None, 3, 7), reason, detail))
    assert unpacked(packed(read)) == read


@given(st.data())
def test_damage_is_noticed(read: Read, data: st.DataObject) -> None:
    whole = bytearray(packed(read))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[place:]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="not the planes that were written"):
        unpacked(whole)


@pytest.mark.parametrize("kept", [b"", b"PLN1", b"PLN1" + bytes(4)], ids=["nothing", "the magic", "no check"])
def test_what_is_cut_within_its_head_is_noticed(kept: bytes) -> None:
    """The check of nothing is 0, as is one that is missing."""
    with pytest.raises(ValueError, match="not the planes that were written"):
        unpacked(kept)
