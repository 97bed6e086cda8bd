"""Descriptions and codes of a header against the stations that pixels show."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from dicom_node.reports.header import Agreement, compare
from labeler.vocabulary import vocabulary

WORDS = vocabulary()


def told(stations: tuple[str, ...], **attributes: object) -> dict[str, Agreement]:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return {verdict.keyword: verdict.agreement for verdict in compare(header, stations, WORDS).others}


@pytest.mark.parametrize(
    ("text", "stations", "agreement"),
    [
        ("CT Abd/Pelv mit KM", ("abdomen", "pelvis"), Agreement.AGREE),
        ("HEAD ROUTINE 5.0", ("abdomen",), Agreement.DIFFER),
        ("C-SPINE lat", ("neck",), Agreement.AGREE),
        ("t1_tse_sag_lower leg", ("lower_leg",), Agreement.AGREE),
        ("CHESTABDPELVIS", ("pelvis",), Agreement.AGREE),
        ("KNEE", ("foot",), Agreement.DIFFER),
    ],
)
def test_descriptions_are_read(text: str, stations: tuple[str, ...], agreement: Agreement) -> None:
    assert told(stations, ProtocolName=text) == {"ProtocolName": agreement}


def test_silence_is_no_verdict() -> None:
    assert told(("chest",), SeriesDescription="AX 1.0 B31f", StudyDescription="") == {}
    assert told((), SeriesDescription="HEAD") == {}


@pytest.mark.parametrize(("name", "agreement"), [("chest", Agreement.AGREE), ("head", Agreement.DIFFER)])
def test_the_anatomic_region_is_read(name: str, agreement: Agreement) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = WORDS[name].code.value, WORDS[name].code.scheme
    assert told(("chest",), AnatomicRegionSequence=[code]) == {"AnatomicRegionSequence": agreement}


def test_an_organs_code_stands_for_its_home() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = WORDS["liver"].code.value, WORDS["liver"].code.scheme
    assert told(("abdomen",), AnatomicRegionSequence=[code]) == {"AnatomicRegionSequence": Agreement.AGREE}
