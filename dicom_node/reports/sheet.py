"""The evidence sheet: a Secondary Capture beside a report, for viewers that show pictures better than trees. Pure.

It stands in a series of its own, one instance per revision of the report, and is derived from it: the same report has
the same sheet. Run-length encoded, since a drawing shrinks to a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from dicom_node.reports.chart import Caption, drawn
from dicom_node.reports.header import compare, safe_header
from dicom_node.reports.people import corrected_by, moment_of, upheld_by
from dicom_node.reports.report import Context, comparison_of
from dicom_node.reports.restated import doubts_of
from dicom_node.uids import derived, sheet_uid
from labeler.result import SeriesLabels
from labeler.slices import FloatImage, Series
from labeler.vocabulary import vocabulary

#: Sheet series are numbered behind those of the reports.
_SERIES_NUMBER_AFTER = 1000
_COPIED = (
    "SpecificCharacterSet",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "TimezoneOffsetFromUTC",
)
_IDENTITY = ("IssuerOfPatientID", "OtherPatientIDsSequence", "PatientIdentityRemoved", "DeidentificationMethod")


def best_planes(series: Series, answer: SeriesLabels) -> dict[str, FloatImage]:
    """The upright plane that shows each station of the answer best."""
    planes = series.planes
    return {f.name: planes[f.best].pixels for f in answer.findings if f.kind == "station"}


def sheet_of(report: Dataset, answer: SeriesLabels, pictures: Mapping[str, FloatImage], context: Context) -> Dataset:
    """The sheet to a report that `report.build` has made of the same answer and context.

    Args:
        pictures: `best_planes`.
    """
    caption = Caption(
        _series(context.header),
        comparison_of(answer, context).verdict,
        str(report.SOPInstanceUID),
        f"{context.finished:%Y-%m-%d %H:%M %Z}".strip(),
        upheld_by(answer, context.upheld),
    )
    return _described(report, drawn(answer, pictures, caption, vocabulary()), f"{caption.series} (not verified)")


def corrected_sheet(
    report: Dataset,
    before: Dataset | None,
    answer: SeriesLabels,
    pictures: Mapping[str, FloatImage | None],
    header: Dataset,
) -> Dataset:
    """The sheet to a report that a person has corrected and verified.

    Args:
        before: the report that was corrected, where it can be read: what changed is marked.
        answer: what the corrected report says (`restated.restated`).
        pictures: of the best image per station; None where it cannot be shown.
        header: of the series' first image, or what is known of it.
    """
    words = vocabulary()
    people = corrected_by(report, before, answer, words)
    verdict = compare(header, answer.stations, words).verdict
    finished = f"corrected {moment_of(report)}".strip()
    caption = Caption(_series(header), verdict, str(report.SOPInstanceUID), finished, people, doubts_of(report))
    return _described(report, drawn(answer, pictures, caption, words), f"{caption.series} (verified)")


def _series(header: Dataset) -> str:
    return f"series {safe_header(header).get('SeriesNumber') or '?'}"


def _described(report: Dataset, picture: NDArray[np.uint8], about: str) -> Dataset:
    made = _captured(report, picture)
    made.SeriesDescription = f"AI evidence sheet, {about}"[:64]
    made.DerivationDescription = f"Drawn from the report {report.SOPInstanceUID}"
    return made


def _captured(report: Dataset, picture: NDArray[np.uint8]) -> Dataset:
    """The picture as an SC Image of the report's patient and study (PS3.3 A.8.1)."""
    made: Dataset = SCImage.from_ref_dataset(
        ref_dataset=report,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=derived("sheet series", str(report.SeriesInstanceUID)),
        series_number=int(report.SeriesNumber) + _SERIES_NUMBER_AFTER,
        sop_instance_uid=sheet_uid(str(report.SOPInstanceUID)),
        instance_number=int(report.InstanceNumber),
        manufacturer=str(report.Manufacturer),
        patient_orientation=("L", "P"),
        transfer_syntax_uid=RLELossless,
    )
    for keyword in (*_COPIED, *_IDENTITY):
        if report.get(keyword):
            made[keyword] = report[keyword]
    made.PatientOrientation = made.Laterality = None  # a drawing lies in no patient's direction
    made.BurnedInAnnotation = "NO"
    made.RecognizableVisualFeatures = "NO"
    if report.get("ContributingEquipmentSequence"):
        made.ContributingEquipmentSequence = report.ContributingEquipmentSequence
    for moment in ("Content", "InstanceCreation", "Series"):
        setattr(made, f"{moment}Date", report.ContentDate)
        setattr(made, f"{moment}Time", report.ContentTime)
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = report.ContentDate, report.ContentTime
    return made
