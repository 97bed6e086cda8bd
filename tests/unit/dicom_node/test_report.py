"""Reports: the same input gives the same bytes, and reading one gives the labels back."""

from dataclasses import replace
from datetime import datetime

import pytest
from pydicom.dataset import Dataset

from dicom_node.reports.groups import Numbers, slab_ranges, slabs
from dicom_node.reports.report import Context, Predecessor, build, encode
from labeler.result import SliceLabels
from labeler.slices import Source
from labeler.sr import image_keys, read_report
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer, changed

FINISHED = datetime(2026, 1, 2, 3, 4, 5)


def shown(position: int) -> tuple[str, ...]:
    return ("chest", "lung", "heart") if position < 4 else ("abdomen", "liver") if position < 9 else ()


def a_report(images: list[Dataset] | None = None, **context: object) -> Dataset:
    images = images or a_series("torso", 10, name="report")
    header = images[0]
    return build(an_answer(images, shown), Context(header, "content", FINISHED, **context))  # type: ignore[arg-type]


def labels_of(report: Dataset) -> dict[str, set[str]]:
    """SOP Instance UID -> meanings of Finding Sites, from the slab groups alone."""
    measurements = next(i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    found: dict[str, set[str]] = {}
    for group in measurements.ContentSequence:
        items = list(group.get("ContentSequence", []))
        if group.ValueType != "CONTAINER" or any(item.ValueType == "NUM" for item in items):
            continue
        sites = {
            i.ConceptCodeSequence[0].CodeMeaning for i in items if i.ConceptNameCodeSequence[0].CodeValue == "363698007"
        }
        for item in items:
            if item.ValueType == "IMAGE":
                found.setdefault(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, set()).update(sites)
    return found


def test_the_same_input_gives_the_same_bytes():
    assert encode(a_report()) == encode(a_report())


def test_labels_come_back_image_by_image():
    images = a_series("torso", 10, name="report")
    found = labels_of(a_report(images))
    expected = {
        image.SOPInstanceUID: {"Chest", "Lung", "Heart"} if i < 4 else {"Abdomen", "Liver"}
        for i, image in enumerate(images[:9])
    }
    assert found == expected


def test_a_workstation_may_list_another_series_before_ours():
    report, words = a_report(), vocabulary()
    before, other, study = read_report(report, words), Dataset(), report.CurrentRequestedProcedureEvidenceSequence[0]
    other.SeriesInstanceUID, other.ReferencedSOPSequence = "1.2.3", [Dataset()]
    item = other.ReferencedSOPSequence[0]
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.3.4"
    study.ReferencedSeriesSequence = [other, *study.ReferencedSeriesSequence]
    assert read_report(report, words) == before


def test_evidence_lists_every_image_even_those_that_show_nothing():
    evidence = a_report().CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 10


def test_flags_say_that_no_person_has_looked():
    report = a_report()
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert report.ContentQualification == "RESEARCH"


def test_the_report_stands_in_the_study_and_patient_of_its_images():
    images = a_series("torso", 10, name="report")
    report = a_report(images)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyDate"):
        assert report[keyword].value == images[0][keyword].value
    assert report.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert report.Modality == "SR"


@pytest.mark.parametrize("sop_class", ["1.3.46.670589.5.0.1", "1.2.840.10008.5.1.1.30"], ids=["private", "retired"])
def test_images_of_a_class_that_nobody_knows_have_a_report_that_names_it(sop_class: str):
    images = changed(a_series("head", 3, name="class"), lambda image: setattr(image, "SOPClassUID", sop_class))
    report = build(an_answer(images, lambda _: ("head",)), Context(images[0], "content", datetime(2026, 1, 1)))
    assert (report.PatientID, report.StudyID) == (images[0].PatientID, images[0].StudyID)
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {item.ReferencedSOPClassUID for item in series.ReferencedSOPSequence} == {sop_class}


def test_tracking_uids_are_unique_in_a_report():
    uids = [item.UID for item in a_report().iterall() if False] or [
        item.value for item in a_report().iterall() if item.keyword == "UID"
    ]
    tracking = [uid for uid in uids if uids.count(uid) == 1]
    assert len(tracking) >= 5 + 2


def test_a_successor_names_its_predecessor():
    report = a_report(predecessors=(Predecessor("1.2.840.10008.5.1.4.1.1.88.34", "1.2.3"),), revision=2)
    previous = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert previous.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert previous.SeriesInstanceUID == report.SeriesInstanceUID
    assert report.InstanceNumber == 2


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ],
)
def test_missing_type_2_attributes_do_not_cost_the_report(keyword: str):
    images = a_series("torso", 10, name="missing")
    delattr(images[0], keyword)
    assert keyword in a_report(images)


@pytest.mark.parametrize("offset", ["+01:00", "CET", "+2400"])
def test_a_time_zone_that_is_none_is_not_told(offset: str):
    """The report's times are in UTC then."""
    images = a_series("torso", 10, name="no zone")
    images[0].TimezoneOffsetFromUTC = offset
    assert "TimezoneOffsetFromUTC" not in a_report(images)


def test_issuer_and_time_zone_come_through():
    images = a_series("torso", 10, name="issuer")
    images[0].IssuerOfPatientID, images[0].TimezoneOffsetFromUTC = "HOSPITAL", "+0100"
    report = a_report(images)
    assert (report.IssuerOfPatientID, report.TimezoneOffsetFromUTC) == ("HOSPITAL", "+0100")


def test_the_header_s_disagreement_is_said():
    images = a_series("torso", 10, name="wrong", body_part="FOOT")
    text = "".join(str(item.value) for item in a_report(images).iterall() if item.keyword == "TextValue")
    assert "Header Body Part Examined: FOOT; pixels: CHESTABDOMEN -> DIFFER" in text


def test_frames_that_one_value_cannot_name_take_several_references():
    """Some functional MR: above 64 KiB the frame numbers would be written as bytes without a meaning."""
    slices = [SliceLabels(Source(0, "1.2.3", "1.2.4", frame), "axial", (), ("head",)) for frame in range(1, 14001)]
    (group,) = slabs(slices, vocabulary(), ("series", "bundle"))
    references = [item.ReferencedSOPSequence[0] for item in group[0].ContentSequence if item.ValueType == "IMAGE"]
    assert [key for reference in references for key in image_keys(reference)] == [
        ("1.2.3", frame) for frame in range(1, 14001)
    ]
    assert all(len("\\".join(map(str, item.ReferencedFrameNumber))) < 1 << 16 for item in references)


def test_slabs_cover_all_slices_once():
    answer = an_answer(a_series("torso", 10, name="report"), shown)
    ranges = list(slab_ranges(answer.slices))
    assert ranges == [(0, 3), (4, 8), (9, 9)]


def test_images_are_named_by_numbers_that_no_other_image_has():
    """Two phases of five places: places one and two are images 1, 6, 2 and 7, not `1-7`, which a person would amend."""
    images = a_series("torso", 10, name="phases")
    answer = an_answer(images, lambda i: ("chest",) if i < 4 else ("abdomen",))
    numbers = [phase * 5 + place + 1 for place in range(5) for phase in range(2)]
    slices = tuple(
        replace(item, source=replace(item.source, number=number))
        for item, number in zip(answer.slices, numbers, strict=True)
    )
    text = text_of(build(replace(answer, slices=slices), Context(images[0], "content", FINISHED)))
    assert "Chest: images 1-2, 6-7 (4 of 10)" in text
    assert "Images 3-5, 8-10: Abdomen; 0 organs" in text


@pytest.mark.parametrize(
    ("shown", "positions", "stretches"),
    [
        ((4, 5, 6, 7), (1, 2), [(5, 6)]),
        ((7, 6, 5, 4), (0, 1, 3), [(7, 6), (4, 4)]),
        ((10, 11, 12, 1, 2), range(5), [(1, 12)]),
        ((1, 3, 9), (0, 1), [(1, 3)]),
        ((0,), (0,), [(0, 0)]),
        ((1, 2, 1, 2), (0, 1), [(1, 2)]),
    ],
)
def test_stretches_run_as_the_series_does(shown, positions, stretches):
    assert Numbers(shown).stretches(positions) == stretches


def test_a_series_in_which_nothing_is_sure_still_has_a_report():
    images = a_series("torso", 3, name="nothing")
    report = build(an_answer(images, lambda _: ()), Context(images[0], "content", FINISHED))
    text = "".join(str(item.value) for item in report.iterall() if item.keyword == "TextValue")
    assert "Body stations: none found" in text


def test_no_slices_no_report():
    images = a_series("torso", 1, name="none")
    answer = an_answer(images, shown)
    with pytest.raises(ValueError, match="at least one labelled image"):
        build(type(answer)(**{**answer.__dict__, "slices": ()}), Context(images[0], "content", FINISHED))


def text_of(report: Dataset) -> str:
    """Every text value of the tree, a line each."""
    own = [str(report.TextValue)] if report.get("TextValue") else []
    return "\n".join([*own, *(text_of(child) for child in report.get("ContentSequence", []))])


def test_what_nobody_can_be_sure_of_is_said_as_such():
    images = a_series(images=4)
    sure = an_answer(images, lambda i: ("chest", "lung"))
    doubted = tuple(replace(item, unsure=("heart",)) for item in sure.slices)
    report = build(replace(sure, slices=doubted), Context(images[0], "content", FINISHED))
    assert "Not sure: Heart" in text_of(report)
    assert "Not sure" not in text_of(build(sure, Context(images[0], "content", FINISHED)))


def test_a_label_s_own_threshold_stands_beside_the_usual_one():
    images = a_series(images=4)
    answer = an_answer(images, lambda i: ("chest", "lung"))
    own = tuple((name, 0.3 if name == "liver" else 0.5) for name in answer.names)
    text = text_of(
        build(replace(answer, bundle=replace(answer.bundle, thresholds=own)), Context(images[0], "content", FINISHED))
    )
    assert "threshold=0.5" in text
    assert [line for line in text.splitlines() if line.startswith("threshold=")] == ["threshold=0.5, liver 0.3"]
