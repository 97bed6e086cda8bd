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
from dicom_node.reports.header import safe_header
from dicom_node.reports.report import Context, comparison_of
from dicom_node.uids import derived, sheet_uid
from labeler.result import SeriesLabels
from labeler.slices import FloatImage, Series
from labeler.vocabulary import vocabulary

#: Sheet series are numbered behind those of the reports.
_SERIES_NUMBER_AFTER = 1000
_COPIED = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "TimezoneOffsetFromUTC")
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
    header = safe_header(context.header)
    caption = Caption(
        f"series {header.get('SeriesNumber') or '?'}",
        comparison_of(answer, context).verdict,
        str(report.SOPInstanceUID),
        f"{context.finished:%Y-%m-%d %H:%M} UTC",
    )
    made = _captured(report, drawn(answer, pictures, caption, vocabulary()))
    made.SeriesDescription = f"AI evidence sheet, series {header.get('SeriesNumber') or '?'} (not verified)"[:64]
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
        contributing_equipment=list(report.ContributingEquipmentSequence)[:1],
    )
    for keyword in (*_COPIED, *_IDENTITY):
        if report.get(keyword):
            made[keyword] = report[keyword]
    made.SpecificCharacterSet = report.SpecificCharacterSet
    made.PatientOrientation = made.Laterality = None  # a drawing lies in no patient's direction
    made.BurnedInAnnotation = "NO"
    made.RecognizableVisualFeatures = "NO"
    made.ContributingEquipmentSequence = report.ContributingEquipmentSequence
    for moment in ("Content", "InstanceCreation", "Series"):
        setattr(made, f"{moment}Date", report.ContentDate)
        setattr(made, f"{moment}Time", report.ContentTime)
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = report.ContentDate, report.ContentTime
    return made
