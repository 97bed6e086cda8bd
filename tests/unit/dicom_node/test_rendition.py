"""A report in another SOP class says the same, as an object of its own."""

from __future__ import annotations

from datetime import datetime

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage, CTImageStorage

from dicom_node.reports.rendition import rendition
from dicom_node.reports.report import Context, Predecessor, build, encode
from dicom_node.study import REPORT_CLASSES
from tests.factories import a_series, an_answer


def a_report(revision: int = 1, predecessor: Predecessor | None = None, content: str = "content") -> Dataset:
    images = a_series("torso", 6, name="rendition")
    answer = an_answer(images, lambda i: ("chest", "lung") if i < 3 else ("abdomen", "liver"))
    return build(
        answer, Context(images[0], content, datetime(2026, 1, 2), revision, (predecessor,) if predecessor else ())
    )


def texts(item: Dataset) -> list[str]:
    own = [str(item.TextValue)] if item.get("ValueType") == "TEXT" else []
    return own + [text for child in item.get("ContentSequence", []) for text in texts(child)]


@pytest.mark.parametrize("sop_class", REPORT_CLASSES, ids=lambda uid: uid.name)
def test_same_patient_study_and_evidence_and_the_report_itself_untouched(sop_class) -> None:
    report = a_report()
    before = encode(report)
    made = rendition(report, sop_class)
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "CurrentRequestedProcedureEvidenceSequence"):
        assert made[keyword].value == report[keyword].value
    assert made.SOPClassUID == made.file_meta.MediaStorageSOPClassUID == sop_class
    assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
    assert (made.SOPInstanceUID == report.SOPInstanceUID) == (sop_class == Comprehensive3DSRStorage)
    assert encode(report) == before
    assert encode(rendition(report, sop_class)) == encode(made)


def test_a_rendition_replaces_the_rendition_of_the_report_s_predecessor() -> None:
    first = a_report()
    second = a_report(2, Predecessor(str(first.SOPClassUID), str(first.SOPInstanceUID)), "other content")
    made = rendition(second, ComprehensiveSRStorage)
    named = made.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == rendition(first, ComprehensiveSRStorage).SOPInstanceUID
    assert named.ReferencedSOPClassUID == ComprehensiveSRStorage


def test_basic_text_tells_every_readable_line_and_shows_the_best_image() -> None:
    report = a_report()
    made = rendition(report, BasicTextSRStorage)
    told = texts(made)
    for line in ("Chest: images 1-3 (3 of 6)", "Liver: images 4-6 (3 of 6)", "NOT VERIFIED BY A PERSON"):
        assert any(line in text for text in told)
    findings = next(i for i in made.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == "Findings")
    shown = {
        line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID for line in findings.ContentSequence
    }
    assert shown <= {image.SOPInstanceUID for image in a_series("torso", 6, name="rendition")}


def test_nothing_else_holds_a_report() -> None:
    with pytest.raises(ValueError, match="CT Image"):
        rendition(a_report(), CTImageStorage)
