"""The rejection note for a superseded report (IHE Imaging Object Change Management, RAD TF-2 4.66). Pure.

A Key Object Selection that rejects the earlier report for quality reasons, for archives that hide what such a note
names. It stands in a series of its own and follows from the report that it rejects: the same report, the same note.
"""

from __future__ import annotations

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.report import MANUFACTURER
from dicom_node.uids import derived

#: Note series are numbered behind those of the sheets.
_SERIES_NUMBER_AFTER = 2000
_IDENTITY = ("IssuerOfPatientID", "OtherPatientIDsSequence", "TimezoneOffsetFromUTC")


def rejection_uid(report_uid: str) -> str:
    """The SOP Instance UID of the note that rejects a report."""
    return derived("rejection", report_uid)


def rejection_of(report: Dataset, successor: Dataset) -> Dataset:
    """The note that rejects a report because of its successor, whose time it has."""
    content = KeyObjectSelection(
        codes.DCM.RejectedForQualityReasons,
        [report],
        description=f"Superseded by the report {successor.SOPInstanceUID}",
    )
    made: Dataset = KeyObjectSelectionDocument(
        evidence=[report],
        content=content,
        series_instance_uid=derived("rejection series", str(report.SeriesInstanceUID)),
        series_number=int(report.SeriesNumber) + _SERIES_NUMBER_AFTER,
        sop_instance_uid=rejection_uid(str(report.SOPInstanceUID)),
        instance_number=int(report.get("InstanceNumber") or 1),
        manufacturer=MANUFACTURER,
    )
    made.ContributingEquipmentSequence = report.ContributingEquipmentSequence
    made.SeriesDescription = "AI anatomy labels: superseded reports"
    made.SpecificCharacterSet = report.SpecificCharacterSet
    for keyword in _IDENTITY:
        if report.get(keyword):
            made[keyword] = report[keyword]
    for moment in ("Content", "InstanceCreation"):
        setattr(made, f"{moment}Date", successor.ContentDate)
        setattr(made, f"{moment}Time", successor.ContentTime)
    return made
