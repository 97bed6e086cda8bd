"""Codes are what they claim to be, and the hierarchy holds."""

import pytest
from pydicom.sr._concepts_dict import concepts

from labeler.vocabulary import parse, vocabulary

#: SNOMED CT concepts that DICOM lists in no context group (said in vocabulary.toml).
_NOT_IN_DICOM = {"68455001", "181674001"}

#: Verhoeff's dihedral check, with which every SNOMED CT identifier ends.
_MULTIPLY = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]
_FIRST_PERMUTATION = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]


def passes_verhoeff(identifier: str) -> bool:
    check = 0
    for position, digit in enumerate(reversed(identifier)):
        value = int(digit)
        for _ in range(position % 8):
            value = _FIRST_PERMUTATION[value]
        check = _MULTIPLY[check][value]
    return check == 0


def all_codes():
    words = vocabulary()
    return [label.code for label in words.labels] + [region.code for region in words.regions]


def test_the_check_itself_finds_the_typos_of_the_literature():
    assert passes_verhoeff("816092008")
    assert not passes_verhoeff("8106092008")
    assert not passes_verhoeff("42161009")


@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.meaning)
def test_every_code_passes_the_check_digit_and_stands_in_the_standard(code):
    assert code.scheme == "SCT"
    assert passes_verhoeff(code.value)
    assert 0 < len(code.meaning) <= 64
    known = {value for meanings in concepts["SCT"].values() for value in meanings}
    assert code.value in known or code.value in _NOT_IN_DICOM


def test_codes_of_labels_are_distinct_within_their_kind():
    for kind in ("station", "organ"):
        values = [label.code.value for label in vocabulary().labels if label.kind == kind]
        assert len(set(values)) == len(values)


def test_twelve_stations_and_fifty_one_organs_in_stable_order():
    words = vocabulary()
    assert len(words.stations) == 12
    assert len(words.organs) == 51
    assert words.names == words.stations + words.organs


def test_stations_that_the_standard_combines_have_one_term():
    words = vocabulary()
    assert words.region(["abdomen", "chest", "pelvis"]).body_part_examined == "CHESTABDPELVIS"
    assert words.region(["knee"]).body_part_examined == "KNEE"
    assert words.region(["head", "foot"]) is None


def test_an_unknown_name_is_named():
    with pytest.raises(KeyError, match="spline"):
        vocabulary()["spline"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('name = "neck"', 'name = "head"'), "twice"),
        (('stations = ["head"]', 'stations = ["moon"]'), "known station"),
        (('stations = ["head", "neck"]\ncode', 'stations = ["head", "moon"]\ncode'), "unknown station"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(change, complaint):
    from importlib.resources import files

    text = files("labeler").joinpath("vocabulary.toml").read_text()
    assert change[0] in text
    with pytest.raises(ValueError, match=complaint):
        parse(text.replace(change[0], change[1], 1).encode())
