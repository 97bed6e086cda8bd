"""The gate lets every kind of report through and nothing that is harmed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.errors import Quarantine
from dicom_node.reports.gate import complaints, evidence_of, inspected
from dicom_node.reports.rendition import rendition
from dicom_node.reports.report import Context, build, encode
from dicom_node.study import REPORT_CLASSES
from labeler.sr import concept_of
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer, as_enhanced, changed
from tests.integration.test_reports import KINDS, shown

WORDS = vocabulary()
IMAGES = a_series("torso", 6, name="gate")
UIDS = {str(image.SOPInstanceUID) for image in IMAGES}


def a_report() -> Dataset:
    """Read back from its bytes: what is built shares elements with its source."""
    made = build(an_answer(IMAGES, shown), Context(IMAGES[0], "content", datetime(2026, 1, 2, 3, 4, 5)))
    return dcmread(BytesIO(encode(made)))


def found(report: Dataset) -> list[str]:
    return list(complaints(report, IMAGES[0], UIDS, WORDS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", ["torso", "head"])
def test_every_kind_passes(kind: str, body: str) -> None:
    images = changed(a_series(body, 6, name=f"gate {kind}"), KINDS[kind])
    report = build(an_answer(images, shown), Context(images[0], "content", datetime(2026, 1, 2)))
    data = encode(report)
    assert inspected(data, images[0], {str(i.SOPInstanceUID) for i in images}, WORDS) == data


@pytest.mark.parametrize("sop_class", REPORT_CLASSES, ids=lambda uid: uid.name)
def test_every_class_passes(sop_class: str) -> None:
    assert found(rendition(a_report(), sop_class)) == []  # type: ignore[arg-type]


def test_frames_and_an_empty_answer_pass() -> None:
    enhanced = as_enhanced(a_series("torso", 4, name="gate frames"))
    for shows in (shown, lambda _: ()):
        report = build(an_answer([enhanced], shows, frames=True), Context(enhanced, "content", datetime(2026, 1, 2)))
        assert list(complaints(report, enhanced, {str(enhanced.SOPInstanceUID)}, WORDS)) == []


def groups(report: Dataset) -> list[Dataset]:
    box = next(item for item in report.ContentSequence if concept_of(item) == "126010")
    return [item for item in box.ContentSequence if concept_of(item) == "125007"]


def another_patient(report: Dataset) -> None:
    report.PatientID = "SOMEBODY-ELSE"


def another_study(report: Dataset) -> None:
    report.StudyInstanceUID = "1.2.3"


def a_broken_uid(report: Dataset) -> None:
    groups(report)[0].ContentSequence[1].UID = "1.2.../etc"


def a_foreign_image(report: Dataset) -> None:
    groups(report)[-1].ContentSequence[-1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def evidence_of_another_series(report: Dataset) -> None:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def an_unknown_site(report: Dataset) -> None:
    site = next(item for item in groups(report)[0].ContentSequence if concept_of(item) == "363698007")
    site.ConceptCodeSequence[0].CodeMeaning = "Spleen"


def evaluations_first(report: Dataset) -> None:
    items = list(report.ContentSequence)
    report.ContentSequence = [*items[:-2], items[-1], items[-2]]


def a_group_without_tracking(report: Dataset) -> None:
    group = groups(report)[0]
    group.ContentSequence = group.ContentSequence[1:]


def a_stranger_in_the_tree(report: Dataset) -> None:
    report.ContentSequence.append(report.ContentSequence[-1].ContentSequence[-1])


def another_class(report: Dataset) -> None:
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def continuous(report: Dataset) -> None:
    groups(report)[0].ContinuityOfContent = "CONTINUOUS"


def verified_by_nobody(report: Dataset) -> None:
    report.VerificationFlag = "VERIFIED"


def no_birth_date(report: Dataset) -> None:
    del report.PatientBirthDate


def another_header(report: Dataset) -> None:
    report.file_meta.MediaStorageSOPInstanceUID = "1.2.3"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (another_patient, "PatientID differs"),
        (another_study, "StudyInstanceUID differs"),
        (a_broken_uid, "is no UID"),
        (a_foreign_image, "not in the evidence"),
        (evidence_of_another_series, "not of the series"),
        (an_unknown_site, "not in the vocabulary"),
        (evaluations_first, "too late"),
        (a_group_without_tracking, "112039 stands 0 times"),
        (a_stranger_in_the_tree, "has no place below 126000"),
        (another_class, "none of a report's"),
        (continuous, "not SEPARATE"),
        (verified_by_nobody, "verified by nobody"),
        (no_birth_date, "PatientBirthDate is missing"),
        (another_header, "different instances"),
    ],
)
def test_harm_is_named(harm: Callable[[Dataset], None], words: str) -> None:
    report = a_report()
    harm(report)
    assert any(words in complaint for complaint in found(report))
    assert not any("DEMO" in complaint for complaint in found(report)), "a complaint names no patient"


def test_bytes_cut_short_stay_here() -> None:
    data = encode(a_report())
    for length in (100, 200, 1000, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(Quarantine):
            inspected(data[:length], IMAGES[0], UIDS, WORDS)


def test_the_evidence_is_every_image() -> None:
    assert evidence_of(a_report()) == UIDS
