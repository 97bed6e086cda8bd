"""The evidence sheet: valid, the same whenever it is made, where it says, and no burden to those who do not want it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, SecondaryCaptureImageStorage

from dicom_node.demo.archive import Archive
from dicom_node.errors import Quarantine
from dicom_node.reports.gate import passed_sheet
from dicom_node.reports.header import Agreement
from dicom_node.reports.report import Context, build, comparison_of, encode
from dicom_node.reports.sheet import sheet_of
from dicom_node.study import REPORT_CLASSES, Delivery, State
from tests.factories import a_series, an_answer, changed
from tests.integration.test_reports import KINDS, shown
from tests.parts import Bench
from tests.support import Orthanc, errors_of_dciodvfy, needs

PICTURE = np.linspace(-1000, 1000, 160 * 120, dtype=np.float32).reshape(120, 160)


def a_sheet(images: list[Dataset], shows: Callable[[int], tuple[str, ...]] = shown) -> Dataset:
    """Read back from its bytes."""
    answer, context = an_answer(images, shows), Context(images[0], "content", datetime(2026, 1, 2, 3, 4, 5))
    made = sheet_of(build(answer, context), answer, dict.fromkeys(answer.stations, PICTURE), context)
    return dcmread(BytesIO(encode(made)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sheet_is_a_valid_secondary_capture(tmp_path: Path, kind: str) -> None:
    needs("dciodvfy")
    images = changed(a_series("torso", 6, name=f"sheet {kind}"), KINDS[kind])
    sheet = a_sheet(images)
    sheet.save_as(tmp_path / "sheet.dcm")
    assert errors_of_dciodvfy(tmp_path / "sheet.dcm") == []
    assert passed_sheet(sheet, images[0]).StudyInstanceUID == images[0].StudyInstanceUID
    assert str(sheet.PatientName) == str(images[0].get("PatientName", ""))


def test_bars_stand_where_the_labels_do() -> None:
    """Heart on images 0-3 and 7-10 of 12: the bar is there and not between."""
    images = a_series("torso", 12, name="bars")
    with_heart, without = a_sheet(images), a_sheet(images, lambda i: tuple(set(shown(i)) - {"heart"}))
    assert with_heart.pixel_array.shape == (1080, 1920, 3)
    differ = (with_heart.pixel_array != without.pixel_array).any(axis=(0, 2))
    assert differ.any()
    only = a_sheet(images, lambda i: ("heart",) if i < 6 else ()).pixel_array[236:960, 316:1330]
    said = (only == (222, 230, 238)).all(axis=-1).any(axis=0)
    assert said[:500].mean() > 0.95
    assert not said[514:].any()


@pytest.mark.parametrize(
    ("claimed", "agreement"),
    [("CHEST", Agreement.AGREE), ("HAND", Agreement.DIFFER), ("", Agreement.ABSENT), ("CHEST", Agreement.UNSURE)],
)
def test_every_verdict_has_its_sign(claimed: str, agreement: Agreement) -> None:
    images = a_series("torso", 3, name="verdict", body_part=claimed)
    shows = (lambda _: ()) if agreement == Agreement.UNSURE else lambda _: ("chest", "lung")
    answer, context = an_answer(images, shows), Context(images[0], "content", datetime(2026, 1, 2))
    assert comparison_of(answer, context).verdict.agreement == agreement
    strip = a_sheet(images, shows).pixel_array[136:196]
    warned = (strip == (240, 160, 40)).all(axis=-1).any()
    assert warned == (agreement == Agreement.DIFFER)


def test_the_same_report_has_the_same_sheet_and_another_one_another() -> None:
    images = a_series("torso", 6, name="same")
    assert encode(a_sheet(images)) == encode(a_sheet(images))
    assert a_sheet(images).SOPInstanceUID != a_sheet(a_series("torso", 6, name="other")).SOPInstanceUID


HARMS: dict[str, Callable[[Dataset], None]] = {
    "PatientID differs": lambda s: setattr(s, "PatientID", "SOMEBODY ELSE"),
    "cannot be decoded": lambda s: setattr(s, "PixelData", s.PixelData[:400]),
    "ConversionType has no value": lambda s: delattr(s, "ConversionType"),
    "no patient is named": lambda s: setattr(s, "BurnedInAnnotation", "YES"),
    "Series Number": lambda s: setattr(s, "SeriesNumber", 1 << 31),
    "is no UID": lambda s: setattr(s, "SeriesInstanceUID", "1.2.x"),
}


@pytest.mark.parametrize("complaint", HARMS)
def test_a_harmed_sheet_stays_here(complaint: str) -> None:
    images = a_series("torso", 3, name="harm")
    sheet = a_sheet(images)
    HARMS[complaint](sheet)
    with pytest.raises(Quarantine, match=complaint):
        passed_sheet(sheet, images[0])


def test_an_archive_gets_the_sheet_beside_the_report(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "home", archive.port, sheet=True)
    images = a_series("torso", 6, name="beside")
    study = bench.take(images)
    assert bench.label(study) == State.REPORTED
    assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
    (report,), (sheet,) = archive.reports(), archive.sheets()
    assert sheet.file_meta.TransferSyntaxUID == RLELossless
    assert report.SOPInstanceUID in sheet.DerivationDescription
    assert sheet.SeriesInstanceUID != report.SeriesInstanceUID
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT
    assert len(bench.ledger.issued.of_study(study)) == 1
    bench.take(a_series("torso", 8, name="beside")[6:])
    bench.label(study)
    assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
    assert sorted(int(s.InstanceNumber) for s in archive.sheets()) == [1, 2]
    assert len({s.SeriesInstanceUID for s in archive.sheets()}) == 1
    bench.ledger.engine.dispose()


def test_who_takes_no_pictures_gets_the_report_alone(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive", "PACS", REPORT_CLASSES) as archive:
        bench = Bench(tmp_path / "home", archive.port, sheet=True)
        study = bench.take(a_series("torso", 3, name="no pictures"))
        bench.label(study)
        assert sorted(bench.deliver_all()) == [Delivery.LEFT_OUT, Delivery.SENT]  # type: ignore[type-var]
        row = bench.ledger.study(study)
        assert row is not None
        assert row.state == State.SENT
        bench.ledger.engine.dispose()


def test_who_cannot_unpack_gets_plain_pixels(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive", "PACS", packed=False) as archive:
        bench = Bench(tmp_path / "home", archive.port, sheet=True)
        study = bench.take(a_series("torso", 3, name="plain"))
        bench.label(study)
        assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
        (sheet,) = archive.sheets()
        assert not sheet.file_meta.TransferSyntaxUID.is_encapsulated
        packed = dcmread(next(p for p in bench.spool.reports.iterdir() if sheet.SOPInstanceUID in p.name))
        assert (sheet.pixel_array == packed.pixel_array).all()
        bench.ledger.engine.dispose()


def test_orthanc_holds_report_and_sheet(tmp_path: Path, orthanc: Orthanc) -> None:
    needs("dciodvfy")
    bench = Bench(tmp_path / "home", orthanc.dicom_port, sheet=True, ae_title=orthanc.ae_title)
    study = bench.take(a_series("head", 6, name="orthanc sheet", body_part="CHEST"))
    bench.label(study)
    assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
    assert len(orthanc.reports(study)) == 1
    (series,) = orthanc.find("Series", StudyInstanceUID=study, Modality="OT")
    tags = orthanc.get(f"/instances/{series['Instances'][0]}/simplified-tags")
    assert tags["SOPClassUID"] == SecondaryCaptureImageStorage
    assert "evidence sheet" in tags["SeriesDescription"]
    assert errors_of_dciodvfy(orthanc.file(tags["SOPInstanceUID"], tmp_path / "sheet.dcm")) == []
    bench.ledger.engine.dispose()
