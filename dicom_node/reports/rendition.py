"""A report in the SOP class that a PACS takes, where it does not take Comprehensive 3D SR. Pure.

Comprehensive and Enhanced SR hold the same tree. Basic Text SR (PS3.3 A.35.1) knows no numbers: there the readable
lines stand, with the best image behind each, as a Basic Diagnostic Imaging Report (PS3.16 TID 2000).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

from highdicom.sr import (
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    ImageContentItem,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, BasicTextSRStorage

from dicom_node.reports.groups import SAID_BY_PERSON
from dicom_node.study import REPORT_CLASSES
from dicom_node.uids import derived
from labeler.sr import concept_of

_TITLE = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
_FINDINGS, _FINDING = CodedConcept("121070", "DCM", "Findings"), CodedConcept("121071", "DCM", "Finding")
_CONCLUSIONS, _CONCLUSION = CodedConcept("121076", "DCM", "Conclusions"), CodedConcept("121077", "DCM", "Conclusion")
_CONTAINS, _INFERRED = RelationshipTypeValues.CONTAINS, RelationshipTypeValues.INFERRED_FROM


def rendition(report: Dataset, sop_class: UID) -> Dataset:
    """The report as an object of that class; itself where it is one already.

    It is an object of its own, with a SOP Instance UID that follows from the report's, and so do its predecessors'.

    Raises:
        ValueError: no class that a report may take.
    """
    if sop_class not in REPORT_CLASSES:
        raise ValueError(f"{sop_class.name} holds no report")
    if report.SOPClassUID == sop_class:
        return report
    made = _shallow(report)
    _rename(made, sop_class)
    made.file_meta = copy(report.file_meta)
    made.file_meta.MediaStorageSOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    if "PredecessorDocumentsSequence" in report:
        made.PredecessorDocumentsSequence = [_renamed_study(item, sop_class) for item in _items(report, "Predecessor")]
    if sop_class == BasicTextSRStorage:
        _tell_in_text(made, report)
    return made


def _shallow(source: Dataset) -> Dataset:
    """A data set of its own whose elements are the source's until they are replaced."""
    made = Dataset()
    for element in source:
        made[element.tag] = copy(element)
    return made


def _rename(item: Dataset, sop_class: UID, prefix: str = "") -> None:
    uid = f"{prefix}SOPInstanceUID"
    setattr(item, uid, derived("rendition", str(item[uid].value), str(sop_class)))
    setattr(item, f"{prefix}SOPClassUID", sop_class)


def _items(report: Dataset, which: str) -> list[Dataset]:
    return list(report[f"{which}DocumentsSequence"].value)


def _renamed_study(study: Dataset, sop_class: UID) -> Dataset:
    """One item of the Hierarchical SOP Instance Reference Macro (PS3.3 C.17.2.1), its objects renamed."""
    made = _shallow(study)
    made.ReferencedSeriesSequence = [_shallow(series) for series in study.ReferencedSeriesSequence]
    for series in made.ReferencedSeriesSequence:
        series.ReferencedSOPSequence = [_shallow(item) for item in series.ReferencedSOPSequence]
        for item in series.ReferencedSOPSequence:
            _rename(item, sop_class, "Referenced")
    return made


# -- Basic Text ----------------------------------------------------------------------------------------------------


def _tell_in_text(made: Dataset, report: Dataset) -> None:
    """Replace the tree by TID 2000: who observed, what was found line by line, what follows."""
    root = ContainerContentItem(_TITLE, is_content_continuous=False, template_id="2000")
    context = [item for item in report.ContentSequence if item.RelationshipType != "CONTAINS" and not _procedure(item)]
    findings = [_line(_FINDING, title, image) for title, image in _summaries(report)]
    conclusions = [_line(_CONCLUSION, text) for text in _remarks(report)]
    sections = [_section(_FINDINGS, findings), _section(_CONCLUSIONS, conclusions)]
    for element in root:
        made[element.tag] = element
    made.ContentSequence = [*context, *(section for section in sections if section)]


def _procedure(item: Dataset) -> bool:
    return concept_of(item) == str(codes.DCM.ProcedureReported.value)


def _section(title: CodedConcept, lines: list[TextContentItem]) -> ContainerContentItem | None:
    if not lines:
        return None
    section = ContainerContentItem(title, is_content_continuous=False, relationship_type=_CONTAINS)
    section.ContentSequence = ContentSequence(lines)
    return section


def _line(name: CodedConcept, text: str, image: Dataset | None = None) -> TextContentItem:
    line = TextContentItem(name, text, relationship_type=_CONTAINS)
    if image is not None:
        reference = image.ReferencedSOPSequence[0]
        frames = reference.get("ReferencedFrameNumber")
        line.ContentSequence = ContentSequence(
            [
                ImageContentItem(
                    name=codes.DCM.SourceOfMeasurement,
                    referenced_sop_class_uid=reference.ReferencedSOPClassUID,
                    referenced_sop_instance_uid=reference.ReferencedSOPInstanceUID,
                    referenced_frame_numbers=frames,
                    relationship_type=_INFERRED,
                )
            ]
        )
    return line


def _summaries(report: Dataset) -> Iterator[tuple[str, Dataset]]:
    """Readable line and best image of every Measurement Group that sums up one label."""
    boxes = (box for box in report.ContentSequence if concept_of(box) == codes.DCM.ImagingMeasurements.value)
    for group in (group for box in boxes for group in box.ContentSequence if group.ValueType == "CONTAINER"):
        items = list(group.ContentSequence)
        title = next(str(i.TextValue) for i in items if concept_of(i) == codes.DCM.TrackingIdentifier.value)
        if any(item.ValueType == "NUM" for item in items) or title.endswith(SAID_BY_PERSON):
            yield title, next(item for item in items if item.ValueType == "IMAGE")


def _remarks(report: Dataset) -> Iterator[str]:
    """The texts of the Qualitative Evaluations."""
    for box in report.ContentSequence:
        if box.ValueType == "CONTAINER" and concept_of(box) != codes.DCM.ImagingMeasurements.value:
            yield from (str(item.TextValue) for item in box.get("ContentSequence", []) if item.ValueType == "TEXT")
