"""The rejection note for a superseded report, or for the sheet to one (IHE Imaging Object Change Management, RAD TF-2
4.66). Pure.

A Key Object Selection that rejects the earlier object for quality reasons, for archives that hide what such a note
names. Each object has a note of its own, since an archive may refuse one that names what it does not hold. It stands in
a series of its own and follows from the object that it rejects: the same report, the same note.
"""

from __future__ import annotations

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.reports.report import MANUFACTURER
from dicom_node.uids import derived, rejection_uid

#: Note series are numbered behind those of the sheets; notes on sheets behind those on reports.
_SERIES_NUMBER_AFTER = 2000
_COPIED = (
    "SpecificCharacterSet",
    "ContributingEquipmentSequence",
    "IssuerOfPatientID",
    "OtherPatientIDsSequence",
    "TimezoneOffsetFromUTC",
)


def rejection_of(rejected: Dataset, successor: Dataset) -> Dataset:
    """The note that rejects a report, or the sheet to it, because of the report's successor, whose time it has."""
    content = KeyObjectSelection(
        codes.DCM.RejectedForQualityReasons,
        [rejected],
        description=f"Superseded by the report {successor.SOPInstanceUID}",
    )
    made: Dataset = KeyObjectSelectionDocument(
        evidence=[rejected],
        content=content,
        series_instance_uid=derived("rejection series", str(rejected.SeriesInstanceUID)),
        series_number=int(rejected.SeriesNumber) + _SERIES_NUMBER_AFTER,
        sop_instance_uid=rejection_uid(str(rejected.SOPInstanceUID)),
        instance_number=int(rejected.get("InstanceNumber") or 1),
        manufacturer=MANUFACTURER,
    )
    for item in made.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):
            del item.ConceptNameCodeSequence  # a purpose of reference is forbidden here (PS3.16 TID 2010)
    made.SeriesDescription = "AI anatomy labels: superseded"
    for keyword in _COPIED:
        if rejected.get(keyword):
            made[keyword] = rejected[keyword]
    for moment in ("Content", "InstanceCreation"):
        setattr(made, f"{moment}Date", successor.ContentDate)
        setattr(made, f"{moment}Time", successor.ContentTime)
    return made
