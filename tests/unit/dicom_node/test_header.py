"""Headers as PACS has them become headers that a report can stand on; claims are compared with pixels."""

from datetime import datetime, timedelta

import pytest
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node.reports.gate import inspected
from dicom_node.reports.header import Agreement, character_set, compare, safe_header, zone_of
from dicom_node.reports.report import Context, build, encode
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer


@pytest.mark.parametrize(
    ("claimed", "stations", "agreement"),
    [
        ("CHEST", ("chest",), Agreement.AGREE),
        ("CHEST", ("chest", "abdomen"), Agreement.AGREE),
        ("chest ", ("chest",), Agreement.AGREE),
        ("BRAIN", ("head",), Agreement.AGREE),
        ("CHESTABDPELVIS", ("chest", "abdomen", "pelvis"), Agreement.AGREE),
        ("ABDOMENPELVIS", ("abdomen",), Agreement.AGREE),
        ("LSPINE", ("abdomen", "pelvis"), Agreement.AGREE),
        ("EXTREMITY", ("lower_leg", "foot"), Agreement.AGREE),
        ("CAROTID", ("neck", "head"), Agreement.AGREE),
        ("AORTA", ("chest", "abdomen", "pelvis"), Agreement.AGREE),
        ("CIRCLEOFWILLIS", ("head",), Agreement.AGREE),
        ("LSSPINE", ("pelvis",), Agreement.AGREE),
        ("C-SPINE", ("neck",), Agreement.AGREE),
        ("C-SPINE", ("pelvis",), Agreement.DIFFER),
        ("CHEST-ABD", ("abdomen",), Agreement.AGREE),
        ("CHEST/ABD", ("abdomen",), Agreement.AGREE),
        ("Head and Neck", ("neck",), Agreement.AGREE),
        (["CHEST", "ABDOMEN"], ("abdomen",), Agreement.AGREE),
        ("UNKNOWN", ("knee",), Agreement.ABSENT),
        ("HEAD", ("chest", "abdomen"), Agreement.DIFFER),
        ("CAROTID", ("pelvis",), Agreement.DIFFER),
        ("KNEE", ("hand",), Agreement.DIFFER),
        ("", ("knee",), Agreement.ABSENT),
        ("KNEE", (), Agreement.UNSURE),
    ],
)
def test_the_header_s_claim_against_the_pixels(claimed, stations, agreement):
    header = Dataset()
    header.BodyPartExamined = claimed
    assert compare(header, stations, vocabulary()).verdict.agreement == agreement


def test_what_the_pixels_imply_is_one_term_where_the_standard_has_one():
    header = Dataset()
    assert compare(header, ("abdomen", "pelvis"), vocabulary()).verdict.implied == "ABDOMENPELVIS"
    assert compare(header, ("head", "foot"), vocabulary()).verdict.implied == "HEAD\\FOOT"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("ISO_IR 100", "ISO_IR 100"),
        ("ISO_IR 192", "ISO_IR 192"),
        (["", "ISO 2022 IR 87"], "ISO_IR 192"),
        (["ISO 2022 IR 6", "ISO 2022 IR 100"], "ISO_IR 192"),
        ("ISO 2022 IR 100", "ISO_IR 192"),
        ("ISO 2022 IR 87", "ISO_IR 192"),
        ("iso8859-1", "ISO_IR 192"),
        (None, "ISO_IR 192"),
    ],
)
def test_a_single_known_character_set_stays_and_all_else_becomes_utf_8(value, wanted):
    header = Dataset()
    if value is not None:
        header.SpecificCharacterSet = value
    assert character_set(header) == wanted


@pytest.mark.parametrize(
    ("keyword", "bad", "kept"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "m", "M"),
        ("PatientBirthDate", "1960-02-29", ""),
        ("StudyTime", "10:15:00", ""),
        ("StudyDate", "20260231", ""),
        ("StudyDate", "20260228", "20260228"),
        ("StudyDate", "1996.02.28", ""),
        ("StudyDate", ["20260228", "20260301"], ""),
        ("ReferringPhysicianName", ["House^G", "Wilson^J"], ""),
        ("PatientName", ["Doe^J", "Roe^J"], "Doe^J"),
        ("AccessionNumber", "A" * 20, "A" * 20),
    ],
)
def test_values_that_break_their_vr_become_empty(keyword, bad, kept):
    image = a_series("leg", 1)[0]
    with config.disable_value_validation():
        setattr(image, keyword, bad)
        assert str(safe_header(image)[keyword].value) == kept


@pytest.mark.parametrize(
    ("keyword", "bad"),
    [
        ("StudyDescription", "x" * 65),
        ("StudyDescription", "CT\tHEAD"),
        ("PatientWeight", "80,5"),
        ("PatientSize", "NaN"),
        ("PatientAge", "45"),
        ("SeriesNumber", "abc"),
        ("SeriesNumber", ["1", "2"]),
    ],
)
def test_what_a_report_can_do_without_is_left_out_where_it_breaks_its_vr(keyword, bad):
    image = a_series("leg", 1)[0]
    image[keyword] = DataElement(Tag(keyword), dictionary_VR(keyword), bad, already_converted=True)
    assert keyword not in safe_header(image)
    assert image[keyword].value == bad


@pytest.mark.parametrize(
    ("value", "meaning", "kept"),
    [
        ("MRT_KOPF_NATIV_KM", "MRT Kopf", None),
        ("", "", None),
        ("KOPF", "M" * 80, "M" * 64),
        ("KOPF", ["MRT", "Kopf"], None),
    ],
)
def test_a_hospitals_own_procedure_code_does_not_cost_the_report(value, meaning, kept):
    image, code = a_series("leg", 1)[0], Dataset()
    with config.disable_value_validation():
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "99OWN", meaning
    image.ProcedureCodeSequence = [code]
    codes = safe_header(image).get("ProcedureCodeSequence") or [Dataset()]
    assert codes[0].get("CodeMeaning") == kept


def test_other_patient_ids_get_the_type_that_the_standard_asks_for():
    image, other = a_series("leg", 1)[0], Dataset()
    other.PatientID = "OTHER"
    image.OtherPatientIDsSequence = [other]
    (made,) = safe_header(image).OtherPatientIDsSequence
    assert (made.PatientID, made.TypeOfPatientID, "TypeOfPatientID" in other) == ("OTHER", "TEXT", False)


@pytest.mark.parametrize(
    ("offset", "hours"), [("+0900", 9), ("-0530", -5.5), ("+0000", 0), ("", None), ("+09:00", None), ("+9900", None)]
)
def test_the_zone_is_the_header_s_own(offset: str, hours: float | None):
    header = Dataset()
    header.TimezoneOffsetFromUTC = offset
    zone = zone_of(header)
    assert (zone and zone.utcoffset(None)) == (None if hours is None else timedelta(hours=hours))


def test_pixels_do_not_travel():
    assert "PixelData" not in safe_header(a_series("leg", 1)[0])


#: A value as a file may hold it, in a VR that need not be the attribute's.
VALUES = [
    ("LO", "abc"),
    ("LO", ["a", "b"]),
    ("UT", "a\r\nb"),
    ("PN", "A^B"),
    ("UI", "1.2.3"),
    ("IS", "7"),
    ("DS", "1.5"),
    ("US", 5),
    ("FD", 1.5),
    ("AT", 0x00100010),
    ("OB", b"xx"),
    ("SQ", [Dataset()]),
]


@pytest.mark.parametrize(("vr", "value"), VALUES, ids=[vr for vr, _ in VALUES])
@pytest.mark.parametrize(
    "keyword",
    [
        "SeriesNumber",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyTime",
        "ReferringPhysicianName",
        "TimezoneOffsetFromUTC",
        "OtherPatientIDsSequence",
        "ProcedureCodeSequence",
        "AnatomicRegionSequence",
        "InstitutionName",
    ],
)
def test_a_value_of_another_vr_than_its_attribute_s_costs_no_report(keyword, vr, value):
    images = a_series("leg", 1)
    images[0][keyword] = DataElement(Tag(keyword), vr, value)
    context = Context(images[0], "content", datetime(2026, 1, 1))
    answer = an_answer(images, lambda _: ("knee",))
    inspected(encode(build(answer, context)), images[0], {images[0].SOPInstanceUID}, vocabulary())


def test_a_number_in_another_vr_is_read_as_that_number():
    image = a_series("leg", 1)[0]
    image["SeriesNumber"] = DataElement(Tag("SeriesNumber"), "LO", "12")
    image["PatientID"] = DataElement(Tag("PatientID"), "IS", "4711")
    header = safe_header(image)
    assert (header.SeriesNumber, header.PatientID, header["PatientID"].VR) == (12, "4711", "LO")
