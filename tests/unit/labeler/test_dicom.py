"""Bad input: never a crash, never an invented label, always a reason."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from labeler.aggregate import Smoothing
from labeler.dicom import instance_number, read_dicom
from labeler.order import BodyOrder
from labeler.slices import Skip, Source
from labeler.vocabulary import vocabulary
from tests.factories import a_series, changed, saved
from tests.parts import LABELER


def read(images: list[Dataset], folder: Path):
    (series,) = read_dicom(saved(images, folder).iterdir(), 160)
    return series


def delete(keyword: str):
    return lambda image: delattr(image, keyword)


def set_to(keyword: str, value: object):
    return lambda image: setattr(image, keyword, value)


def raw(keyword: str, value: bytes):
    """The value as a file holds it, which pydicom itself would not write."""
    return lambda image: image._dict.update(
        {Tag(keyword): RawDataElement(Tag(keyword), "DS", len(value), value, 0, False, True)}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_to("Modality", "US"), Skip.MODALITY),
        (delete("Modality"), Skip.MODALITY),
        (delete("PixelData"), Skip.NO_PIXELS),
        (delete("ImageOrientationPatient"), Skip.NO_GEOMETRY),
        (set_to("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), Skip.NO_GEOMETRY),
        (raw("ImageOrientationPatient", b"nan\\0\\0\\0\\1\\0"), Skip.NO_GEOMETRY),
        (raw("ImageOrientationPatient", b"1e9\\0\\0\\0\\1e9\\0 "), Skip.NO_GEOMETRY),
        (raw("RescaleSlope", b"nan "), Skip.UNDECODABLE),
        (raw("RescaleSlope", b"1e300 "), Skip.UNDECODABLE),
        (raw("RescaleIntercept", b"-inf"), Skip.UNDECODABLE),
        (set_to("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), Skip.LOCALIZER),
        (set_to("ImageType", ["DERIVED", "SECONDARY", "MIP"]), Skip.DERIVED),
        (set_to("PixelData", b"\0\0" * 96 * 96), Skip.EMPTY),
        (set_to("PixelData", b"\1\0" * 100), Skip.UNDECODABLE),
        (set_to("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), Skip.MOSAIC),
        (set_to("RescaleType", "Z_EFF"), Skip.NO_HU),
        (set_to("SamplesPerPixel", 3), Skip.COLOUR),
        (set_to("PhotometricInterpretation", "PALETTE COLOR"), Skip.COLOUR),
        (set_to("Rows", 8), Skip.TOO_SMALL),
        (delete("Rows"), Skip.TOO_SMALL),
    ],
)
def test_every_unusable_image_has_its_reason(tmp_path: Path, change, reason):
    series = read(changed(a_series("torso", 3, name="bad"), change), tmp_path)
    assert series.stacks == ()
    assert [item.reason for item in series.skipped] == [reason] * 3
    assert all(item.source.sop_instance_uid for item in series.skipped)


@pytest.mark.parametrize("value", [b"nan ", b"nan\\0\\0 ", b"0\\inf\\0 ", b"0\\0\\1e300", b"0\\0", b"abc\\0\\0 "])
def test_a_position_that_is_none_is_unknown_and_its_image_labelled(tmp_path: Path, value: bytes):
    images = a_series("torso", 6, name="position")
    raw("ImagePositionPatient", value)(images[2])
    series = read(images, tmp_path)
    assert series.skipped == ()
    assert [np.isnan(plane.position) for plane in series.planes].count(True) == 1
    assert len(LABELER.label(series).slices) == 6


def test_one_bad_image_does_not_cost_the_others(tmp_path: Path):
    images = a_series("torso", 5, name="one bad")
    del images[2].PixelData
    series = read(images, tmp_path)
    assert len(series.planes) == 4
    assert len(series.skipped) == 1


def test_files_that_are_no_dicom_stand_apart(tmp_path: Path):
    folder = saved(a_series("leg", 2, name="junk"), tmp_path)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.dcm").write_bytes(b"")
    read_series = read_dicom(folder.iterdir(), 160)
    reasons = [item.reason for series in read_series for item in series.skipped]
    assert reasons == [Skip.NOT_DICOM] * 2
    assert sum(len(series.planes) for series in read_series) == 2


def test_a_missing_position_falls_back_to_the_instance_number(tmp_path: Path):
    images = changed(a_series("leg", 4, name="nopos"), delete("ImagePositionPatient"))
    series = read(images, tmp_path)
    assert [plane.source.number for plane in series.planes] == [1, 2, 3, 4]


def test_images_without_a_position_are_not_taken_for_one_place(tmp_path: Path):
    """As neighbours without a distance, all would be told the mean of the whole series."""
    series = read(changed(a_series("leg", 4, name="nopos"), delete("ImagePositionPatient")), tmp_path)
    words = vocabulary()
    logits = np.random.default_rng(1).normal(size=(4, len(words.labels))).astype(np.float32)
    positions = [plane.position for plane in series.planes]
    assert Smoothing(6.0, BodyOrder()).of(logits, positions, "axial", words) is logits


@pytest.mark.parametrize(
    ("image_type", "component", "labelled"),
    [
        (["ORIGINAL", "PRIMARY", "P", "ND"], None, False),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], None, False),
        (["ORIGINAL", "PRIMARY", "OTHER", "NONE"], "PHASE", False),
        (["ORIGINAL", "PRIMARY", "M", "ND"], "MAGNITUDE", True),
        (["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], None, True),
    ],
)
def test_phase_shows_no_anatomy(tmp_path: Path, image_type: list[str], component: str | None, labelled: bool):
    images = changed(a_series("head", 3, name="phase"), set_to("ImageType", image_type))
    if component:
        changed(images, set_to("ComplexImageComponent", component))
    series = read(images, tmp_path)
    assert len(series.planes) == (3 if labelled else 0)
    assert {item.reason for item in series.skipped} == (set() if labelled else {Skip.PHASE})


def test_a_slope_of_nothing_is_none(tmp_path: Path):
    images = changed(a_series("head", 3, name="slope"), set_to("RescaleSlope", "0"))
    assert len(read(images, tmp_path).planes) == 3


def test_what_a_map_does_not_know_is_its_lowest_value(tmp_path: Path):
    """One NaN would make the percentiles of the whole stack unknown, and every picture black."""
    images = a_series("head", 3, name="map")
    for image in images:
        values = image.pixel_array.astype("<f4")
        values[:30] = np.nan
        del image.PixelData
        image.FloatPixelData, image.BitsAllocated = values.tobytes(), 32
    series = read(images, tmp_path)
    assert len(series.planes) == 3
    assert all(np.isfinite(plane.pixels).all() for plane in series.planes)


def test_padding_does_not_set_the_scale_of_an_mr(tmp_path: Path):
    """Far below the anatomy, it would leave that the lightest greys alone."""
    images = a_series("head", 3, name="padded")
    for image in images:
        values = image.pixel_array.astype("<i2")
        values[:30] = -32768
        image.PixelData, image.PixelRepresentation = values.tobytes(), 1
        image.add_new("PixelPaddingValue", "SS", -32768)
    assert min(plane.pixels.min() for plane in read(images, tmp_path).planes) > -1000


def test_hounsfield_units_come_out_of_the_rescale(tmp_path: Path):
    series = read(a_series("torso", 2, name="hu"), tmp_path)
    assert -1100 < series.planes[0].pixels.min() < -900
    assert 300 < series.planes[0].pixels.max() < 700


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "image_dfl.dcm",
        "emri_small.dcm",
    ],
)
def test_the_transfer_syntaxes_that_pydicom_carries_are_read(tmp_path: Path, name: str):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("not in this pydicom")
    image = dcmread(str(path))
    image.Modality = image.Modality if image.Modality in ("CT", "MR") else "CT"
    image.ImageOrientationPatient = image.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
    series = read([image], tmp_path)
    assert [item.detail for item in series.skipped] == []
    assert np.isfinite(series.planes[0].pixels).all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_crash_the_reader(tmp_path: Path, data: st.DataObject):
    image = a_series("leg", 1, name="fuzz")[0]
    path = saved([image], tmp_path) / "0001.dcm"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(132, min(len(raw), 1500) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(200, len(raw)))])
    for series in read_dicom([path], 160):
        assert len(series.planes) + len(series.skipped) >= 1


@pytest.mark.parametrize(("number", "shown"), [(0, 0), (7, 7), (None, 4)])
def test_an_image_is_called_as_its_scanner_counts(number: int | None, shown: int):
    dataset = Dataset()
    dataset.InstanceNumber = number
    assert Source(3, number=instance_number(dataset)).shown_number == shown
